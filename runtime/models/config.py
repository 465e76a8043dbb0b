"""What a decoder needs to know about itself, read from the files of a Hugging Face folder.

One record for every supported family; a family differs by values (`families.py`), never by code. Whatever the decoder
cannot compute exactly is refused here, so that a folder that loads gives right answers. Absent fields take the
family's defaults of transformers.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernels.silu_mul import Activation
from runtime.errors import ModelInvalid
from runtime.model_types import model_type_of
from runtime.models.attention_kinds import AttentionKind, read_kinds
from runtime.models.families import ATTENTION_SOFTCAP, FAMILIES, LOGITS_SOFTCAP, Family, NormNames
from storage.geometry import GROUPS, Geometry

_BIASED: Final = {
    "attention_bias": (*GROUPS["qkv"], *GROUPS["o"]),
    "mlp_bias": (*GROUPS["gate_up"], *GROUPS["down"]),
}


@dataclass(frozen=True)
class ModelConfig:
    """A supported decoder. max_positions: the longest sequence the model was made for.

    kinds, layer_kinds: the kinds of attention, and the index of each layer's. norm_offset: added to norm weights.
    norm_names: where each layer has norms. qk_norm: heads of q and k are normalised. biased: modules with a bias.
    embedding_scale: factor on embeddings, or None. attention_scale: factor on q . k, or None for 1 / sqrt(head_dim).
    attention_softcap, logits_softcap: bounds on scores and logits (cap * tanh(x / cap)), or None.
    """

    geometry: Geometry
    vocab_size: int
    max_positions: int
    norm_eps: float
    kinds: tuple[AttentionKind, ...]
    layer_kinds: tuple[int, ...]
    activation: Activation
    norm_offset: float
    norm_names: NormNames
    qk_norm: bool
    biased: tuple[str, ...]
    embedding_scale: float | None
    attention_scale: float | None
    attention_softcap: float | None
    logits_softcap: float | None
    ties_embedding: bool
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
        family = FAMILIES[model_type_of(config)]
        _refuse_unsupported(config, family)
        geometry = Geometry.from_config(config)
        if geometry.head_dim % 2 or geometry.num_heads % geometry.num_kv_heads:
            raise ValueError(
                f"head_dim {geometry.head_dim} must be even, and num_attention_heads {geometry.num_heads} a multiple "
                f"of num_key_value_heads {geometry.num_kv_heads}"
            )
        max_positions = _whole(config, "max_position_embeddings", family.max_positions)
        kinds, layer_kinds = read_kinds(config, family, geometry.num_layers, max_positions)
        scalar = _positive(config, "query_pre_attn_scalar", 256.0) if family.scales_queries else None
        return cls(
            geometry=geometry,
            vocab_size=_whole(config, "vocab_size", None),
            max_positions=max_positions,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            kinds=kinds,
            layer_kinds=layer_kinds,
            activation=family.activation,
            norm_offset=family.norm_offset,
            norm_names=family.norms,
            qk_norm=family.qk_norm,
            biased=_biased(config, family),
            embedding_scale=geometry.hidden_size**0.5 if family.scales_embedding else None,
            attention_scale=None if scalar is None else scalar**-0.5,
            attention_softcap=_positive(config, ATTENTION_SOFTCAP, family.softcaps.get(ATTENTION_SOFTCAP)),
            logits_softcap=_positive(config, LOGITS_SOFTCAP, family.softcaps.get(LOGITS_SOFTCAP)),
            ties_embedding=bool(config.get("tie_word_embeddings", family.ties_embedding)),
            eos_token_ids=_eos(generation.get("eos_token_id", config.get("eos_token_id"))),
        )


def _refuse_unsupported(config: dict[str, Any], family: Family) -> None:
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field) and field not in family.bias_fields:
            raise ValueError(f"{field} is not supported for this family")
    for field in (ATTENTION_SOFTCAP, LOGITS_SOFTCAP):
        if config.get(field) is not None and field not in family.softcaps:
            raise ValueError(f"{field} is not supported for this family")
    if config.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported")
    if config.get("quantization_config"):
        raise ValueError("quantized weights are not supported; use float32, float16 or bfloat16 weights")
    for field in ("hidden_act", "hidden_activation"):
        name = config.get(field)
        if name is not None and name not in family.activation_names:
            raise ValueError(f"{field} {name!r} is not supported; supported are {', '.join(family.activation_names)}")
    for field in family.required:
        if field not in config:
            raise ValueError(f"{field} is missing")


def _biased(config: dict[str, Any], family: Family) -> tuple[str, ...]:
    fields = [field for field in family.bias_fields if config.get(field)]
    modules = [module for field in fields for module in _BIASED[field]]
    return tuple(modules) if modules or not family.qkv_bias else GROUPS["qkv"]


def _eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) for item in ids):
        raise ValueError(f"eos_token_id {value!r} must be a token id or a list of them")
    return tuple(ids)


def _whole(config: dict[str, Any], field: str, default: int | None) -> int:
    value = config.get(field, default)
    if value is None or int(value) < 1:
        raise ValueError(f"{field} must be at least 1, not {value!r}")
    return int(value)


def _positive(config: dict[str, Any], field: str, default: float | None) -> float | None:
    value = config.get(field, default)
    if value is not None and not (math.isfinite(float(value)) and float(value) > 0):
        raise ValueError(f"{field} must be above 0, not {value!r}")
    return None if value is None else float(value)


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
