"""The rotary settings of a config.json, as one record per kind of layer.

Three spellings are read, as transformers reads them: `rope_theta` + `rope_scaling`, `rope_parameters`, and, for
families whose windowed layers rotate differently, `rope_parameters` keyed by layer type or `rope_local_base_freq`.
A kind of scaling that the decoder does not know is refused, because a model with the wrong one still talks, but badly.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from runtime.models.families import Family

RopeKind = Literal["default", "linear", "llama3", "yarn"]
FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies. `factor` is for every kind but "default", `original_positions` for "llama3" and "yarn".

    The low and high factors belong to "llama3", the betas (rotations within the original positions), `truncate` and
    `amplitude` (a factor on cosine and sine) to "yarn".
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_positions: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    amplitude: float = 1.0


@dataclass(frozen=True)
class Ropes:
    """Of layers that see everything and of layers with a window; the same for most families."""

    full: Rope
    sliding: Rope


def read_ropes(config: dict[str, Any], family: Family, max_positions: int) -> Ropes:
    """Raises ValueError, TypeError or KeyError about the field that does not fit."""
    if float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    if family.local_rope:
        return _by_layer_type(config, family, max_positions)
    parameters = _mapping(config, "rope_scaling") or _mapping(config, "rope_parameters")
    original = config.get("original_max_position_embeddings")
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    theta = float(config.get("rope_theta") or family.rope_theta)
    rope = _rope(parameters, theta, max_positions)
    return Ropes(rope, rope)


def _by_layer_type(config: dict[str, Any], family: Family, max_positions: int) -> Ropes:
    nested = _mapping(config, "rope_parameters")
    if not set(nested) <= {FULL, SLIDING}:
        raise ValueError(f"rope_parameters must be keyed by {FULL} and {SLIDING}, not by {', '.join(nested)}")
    full = {**_mapping(nested, FULL), **_mapping(config, "rope_scaling")}
    theta = float(config.get("rope_theta") or family.rope_theta)
    local = float(config.get("rope_local_base_freq") or family.local_theta)
    return Ropes(_rope(full, theta, max_positions), _rope(_mapping(nested, SLIDING), local, max_positions))


def _mapping(config: dict[str, Any], field: str) -> dict[str, Any]:
    """A copy; empty when the field is absent or null."""
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{field} must be an object")  # noqa: TRY004 - a wrong file
    return dict(value)


def _rope(parameters: dict[str, Any], default_theta: float, max_positions: int) -> Rope:
    theta = float(parameters.get("rope_theta") or default_theta)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in get_args(RopeKind):
        raise ValueError(f"rope type {kind!r} is not supported; supported are {', '.join(get_args(RopeKind))}")
    if float(parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    if nested := [name for name, value in parameters.items() if isinstance(value, dict)]:
        raise ValueError(f"rope_parameters by layer type ({', '.join(nested)}) are not supported for this family")
    if not (math.isfinite(theta) and theta > 1):
        raise ValueError(f"rope_theta {theta} must be above 1")
    if kind == "default":
        return Rope(theta)
    original = int(parameters.get("original_max_position_embeddings") or max_positions)
    if original < 1:
        raise ValueError(f"original_max_position_embeddings {original} must be at least 1")
    stated = parameters["factor"]
    factor = max_positions / original if kind == "yarn" and stated is None else float(stated)
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"rope factor {factor} must be positive")
    if kind == "linear":
        return Rope(theta, "linear", factor)
    if kind == "yarn":
        return _yarn(parameters, theta, factor, original)
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    if not 0 < low < high:
        raise ValueError(f"low_freq_factor {low} must be above 0 and below high_freq_factor {high}")
    return Rope(theta, "llama3", factor, original, low, high)


def _yarn(parameters: dict[str, Any], theta: float, factor: float, original: int) -> Rope:
    amplitude = parameters.get("attention_factor")
    if amplitude is None:
        mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        amplitude = _magnitude(factor, 1.0)
        if mscale and mscale_all:
            amplitude = _magnitude(factor, float(mscale)) / _magnitude(factor, float(mscale_all))
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
        amplitude=float(amplitude),
    )


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
