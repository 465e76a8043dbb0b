"""What a decoder needs to know about itself, read from the files of a Hugging Face folder.

One record for every supported family; a family differs by values (activation, norm offset, embedding scale), never by
code. Whatever the decoder cannot compute exactly is refused here, so that a folder that loads gives right answers.

Both spellings of the rotary settings are read: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling`.
Absent fields take the family's defaults of transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from kernels.silu_mul import Activation
from runtime.errors import ModelInvalid
from storage.geometry import Geometry

RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True)
class Family:
    """What a model family fixes, and the transformers defaults of fields that config.json may leave out."""

    activation: Activation
    activation_names: tuple[str, ...]
    norm_offset: float = 0.0
    scales_embedding: bool = False
    ties_embedding: bool = False
    max_positions: int = 2048
    sliding_window: int | None = None


FAMILIES: Final[dict[str, Family]] = {
    "llama": Family("silu", ("silu", "swish")),
    "mistral": Family("silu", ("silu", "swish"), max_positions=131072, sliding_window=4096),
    # The first Gemma releases say "gelu" and mean the tanh approximation, as transformers reads them.
    "gemma": Family(
        "gelu_tanh",
        ("gelu", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        scales_embedding=True,
        ties_embedding=True,
        max_positions=8192,
    ),
}


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies. The last three fields belong to kind "llama3"; `factor` also to "linear"."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A supported decoder. max_positions: the longest sequence the model was made for.

    norm_offset: added to norm weights. embedding_scale: factor on embeddings, or None. sliding_window: how many
    latest positions a query sees, itself included, or None for all.
    """

    geometry: Geometry
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    activation: Activation
    norm_offset: float
    embedding_scale: float | None
    ties_embedding: bool
    sliding_window: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Raises ModelInvalid, with the folder and the field, for anything missing or not supported."""
        config = _read_json(folder / "config.json")
        generation = _read_json(folder / "generation_config.json") if _exists(folder / "generation_config.json") else {}
        try:
            return cls.from_config(config, generation)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelInvalid(f"{folder}: {error if isinstance(error, ValueError) else repr(error)}") from error

    @classmethod
    def from_config(cls, config: dict[str, Any], generation: dict[str, Any]) -> "ModelConfig":
        """From parsed files. Raises ValueError, TypeError or KeyError about the field that does not fit."""
        name = str(config.get("model_type"))
        family = FAMILIES.get(name)
        if family is None:
            raise ValueError(f"model_type {name!r} is not supported; supported are {', '.join(sorted(FAMILIES))}")
        _refuse_unsupported(config, family)
        geometry = Geometry.from_config(config)
        if geometry.head_dim % 2 or geometry.num_heads % geometry.num_kv_heads:
            raise ValueError(
                f"head_dim {geometry.head_dim} must be even, and num_attention_heads {geometry.num_heads} a multiple "
                f"of num_key_value_heads {geometry.num_kv_heads}"
            )
        max_positions = _positive(config, "max_position_embeddings", family.max_positions)
        window = config.get("sliding_window", family.sliding_window)
        if window is not None and int(window) < 1:
            raise ValueError(f"sliding_window {window} must be null or at least 1")
        return cls(
            geometry=geometry,
            vocab_size=_positive(config, "vocab_size", None),
            max_positions=max_positions,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=_rope(config, max_positions),
            activation=family.activation,
            norm_offset=family.norm_offset,
            embedding_scale=geometry.hidden_size**0.5 if family.scales_embedding else None,
            ties_embedding=bool(config.get("tie_word_embeddings", family.ties_embedding)),
            sliding_window=int(window) if window is not None and name == "mistral" else None,
            eos_token_ids=_eos(generation.get("eos_token_id", config.get("eos_token_id"))),
        )


def _refuse_unsupported(config: dict[str, Any], family: Family) -> None:
    for field in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if config.get(field):
            raise ValueError(f"{field} is not supported")
    if config.get("quantization_config"):
        raise ValueError("quantized weights are not supported; use float32, float16 or bfloat16 weights")
    for field in ("hidden_act", "hidden_activation"):
        name = config.get(field)
        if name is not None and name not in family.activation_names:
            raise ValueError(f"{field} {name!r} is not supported; supported are {', '.join(family.activation_names)}")


def _rope(config: dict[str, Any], max_positions: int) -> Rope:
    parameters = dict(config.get("rope_scaling") or {})
    parameters.update(config.get("rope_parameters") or {})
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope type {kind!r} is not supported; supported are default, linear, llama3")
    if float(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return Rope(theta)
    factor = float(parameters["factor"])
    if factor <= 0:
        raise ValueError(f"rope factor {factor} must be positive")
    if kind == "linear":
        return Rope(theta, "linear", factor)
    return Rope(
        theta,
        "llama3",
        factor,
        float(parameters["low_freq_factor"]),
        float(parameters["high_freq_factor"]),
        int(parameters.get("original_max_position_embeddings") or max_positions),
    )


def _eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) for item in ids):
        raise ValueError(f"eos_token_id {value!r} must be a token id or a list of them")
    return tuple(ids)


def _positive(config: dict[str, Any], field: str, default: int | None) -> int:
    value = config.get(field, default)
    if value is None or int(value) < 1:
        raise ValueError(f"{field} must be at least 1, not {value!r}")
    return int(value)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{path} cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise ModelInvalid(f"{path} is not a JSON object")
    return parsed
