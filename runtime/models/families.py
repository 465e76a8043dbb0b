"""The supported model families: what each fixes, and the transformers defaults of fields that config.json may omit.

A family is a record of values. The decoder never asks for a family's name; it sees what `config.py` derives from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kernels.silu_mul import Activation

ATTENTION_SOFTCAP: Final = "attn_logit_softcapping"
LOGITS_SOFTCAP: Final = "final_logit_softcapping"
WindowRule = Literal["never", "every layer", "all but each nth", "from a layer on"]


class NormNames(NamedTuple):
    """Of one layer: the norms on the inputs of attention and MLP, and on their outputs where there are any."""

    attention: str
    mlp: str
    attention_out: str | None = None
    mlp_out: str | None = None


_INPUTS: Final = NormNames("input_layernorm", "post_attention_layernorm")
_SANDWICH: Final = NormNames(
    "input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"
)


@dataclass(frozen=True)
class Family:
    """How one `model_type` reads its config.json.

    norm_offset: added to norm weights. windows: which layers have a sliding window; `full_every` is the n of "all but
    each nth". local_rope: layers with a window have a rotary theta of their own, `local_theta`. qk_norm: heads of q
    and k are normalised. qkv_bias: always there, whatever the config says. bias_fields: the config's own switches
    that transformers heeds. scales_queries: `query_pre_attn_scalar` replaces the head's size. softcaps: the fields
    that are heeded, with their defaults. required: fields whose transformers default does not follow from the others,
    so that a folder without them could only be guessed.
    """

    activation: Activation
    activation_names: tuple[str, ...]
    norms: NormNames = _INPUTS
    norm_offset: float = 0.0
    scales_embedding: bool = False
    ties_embedding: bool = False
    max_positions: int = 2048
    windows: WindowRule = "never"
    full_every: int = 0
    sliding_window: int | None = None
    rope_theta: float = 10000.0
    local_rope: bool = False
    local_theta: float = 10000.0
    qk_norm: bool = False
    qkv_bias: bool = False
    bias_fields: tuple[str, ...] = ()
    scales_queries: bool = False
    softcaps: Mapping[str, float | None] = field(default_factory=dict)
    required: tuple[str, ...] = ()


_SILU: Final = ("silu", "swish")
_HEADS: Final = ("head_dim", "num_key_value_heads")

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family("silu", _SILU, bias_fields=("attention_bias", "mlp_bias")),
    "mistral": Family(
        "silu",
        _SILU,
        max_positions=131072,
        windows="every layer",
        sliding_window=4096,
        required=("num_key_value_heads",),
    ),
    "gemma": Family(
        "gelu_tanh",
        # The first releases say "gelu" and mean the tanh approximation, as transformers reads them.
        ("gelu", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        scales_embedding=True,
        ties_embedding=True,
        max_positions=8192,
        bias_fields=("attention_bias",),
        required=_HEADS,
    ),
    "gemma2": Family(
        "gelu_tanh",
        ("gelu_pytorch_tanh",),
        norms=_SANDWICH,
        norm_offset=1.0,
        scales_embedding=True,
        ties_embedding=True,
        max_positions=8192,
        windows="all but each nth",
        full_every=2,
        sliding_window=4096,
        bias_fields=("attention_bias",),
        scales_queries=True,
        softcaps={ATTENTION_SOFTCAP: 50.0, LOGITS_SOFTCAP: 30.0},
        required=_HEADS,
    ),
    "gemma3_text": Family(
        "gelu_tanh",
        ("gelu_pytorch_tanh",),
        norms=_SANDWICH,
        norm_offset=1.0,
        scales_embedding=True,
        ties_embedding=True,
        max_positions=131072,
        windows="all but each nth",
        full_every=6,
        sliding_window=4096,
        rope_theta=1e6,
        local_rope=True,
        qk_norm=True,
        bias_fields=("attention_bias",),
        scales_queries=True,
        softcaps={LOGITS_SOFTCAP: None},
        required=_HEADS,
    ),
    "qwen2": Family(
        "silu",
        _SILU,
        max_positions=32768,
        windows="from a layer on",
        sliding_window=4096,
        qkv_bias=True,
        required=("num_key_value_heads",),
    ),
    "qwen3": Family(
        "silu",
        _SILU,
        max_positions=32768,
        windows="from a layer on",
        sliding_window=4096,
        qk_norm=True,
        bias_fields=("attention_bias",),
        required=_HEADS,
    ),
}
