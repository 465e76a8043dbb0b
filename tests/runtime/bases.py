"""Small configurations of every supported family, with odd sizes and each setting that changes the arithmetic.

Windows are shorter than most sequences of the tests, and caps lie far below the scores that the random weights give.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

_SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "intermediate_size": 91,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}
_GQA: dict[str, Any] = {"hidden_size": 54, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
_DEEP: dict[str, Any] = {**_SMALL, "num_hidden_layers": 7}
# Caps far below the scores that these weights give, so that a missing cap shows.
_GEMMA2: dict[str, Any] = {
    "query_pre_attn_scalar": 7,
    "sliding_window": 19,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 4.0,
}
_MQA: dict[str, Any] = {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 22}


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5000.0, **values}}


def _two_ropes() -> dict[str, Any]:
    full = {"rope_type": "linear", "factor": 3.0, "rope_theta": 50000.0}
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 700.0}}


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-gqa": lambda: LlamaConfig(**_SMALL, **_GQA, **_rope(rope_type="default"), tie_word_embeddings=False),
    "llama-mqa-tied": lambda: LlamaConfig(**_SMALL, **_MQA, tie_word_embeddings=True),
    "llama-heads": lambda: LlamaConfig(**_SMALL, hidden_size=40, num_attention_heads=4, tie_word_embeddings=False),
    "llama3-rope": lambda: LlamaConfig(
        **_SMALL,
        **_GQA,
        **_rope(
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama-linear-rope": lambda: LlamaConfig(**_SMALL, **_GQA, **_rope(rope_type="linear", factor=2.5)),
    "mistral": lambda: MistralConfig(**_SMALL, **_GQA, **_rope(rope_type="default"), sliding_window=None),
    "mistral-window": lambda: MistralConfig(**_SMALL, **_GQA, **_rope(rope_type="default"), sliding_window=19),
    "mistral-mqa-window": lambda: MistralConfig(**_SMALL, **_MQA, sliding_window=23),
    "gemma-gqa": lambda: GemmaConfig(**_SMALL, **_GQA),
    "gemma-mqa": lambda: GemmaConfig(**_SMALL, **_MQA),
    "gemma-heads": lambda: GemmaConfig(
        **_SMALL, hidden_size=40, num_attention_heads=4, num_key_value_heads=4, head_dim=18
    ),
    "llama-yarn-rope": lambda: LlamaConfig(
        **_SMALL, **_GQA, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    ),
    "llama-yarn-whole": lambda: LlamaConfig(
        **_SMALL,
        **_GQA,
        **_rope(
            rope_type="yarn",
            rope_theta=100.0,  # so that the mixed dimensions lie within so small a head
            factor=8.0,
            original_max_position_embeddings=256,
            beta_fast=8.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=0.4,
            truncate=False,
        ),
    ),
    "llama-biases": lambda: LlamaConfig(**_SMALL, **_GQA, attention_bias=True, mlp_bias=True),
    "gemma2-gqa": lambda: Gemma2Config(**_SMALL, **_GQA, **_GEMMA2),
    "gemma2-mqa-uncapped": lambda: Gemma2Config(
        **_SMALL, **_MQA, **{**_GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3-gqa": lambda: Gemma3TextConfig(
        **_DEEP, **_GQA, query_pre_attn_scalar=7, sliding_window=19, rope_parameters=_two_ropes()
    ),
    "gemma3-mqa": lambda: Gemma3TextConfig(
        **_SMALL,
        **_MQA,
        query_pre_attn_scalar=30,
        sliding_window=1,
        final_logit_softcapping=3.0,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "qwen2-gqa": lambda: Qwen2Config(**_SMALL, **_GQA, **_rope(rope_type="default")),
    "qwen2-window-tied": lambda: Qwen2Config(
        **_SMALL, **_MQA, use_sliding_window=True, sliding_window=23, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen2-yarn": lambda: Qwen2Config(
        **_SMALL, **_GQA, **_rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=128)
    ),
    "qwen3-gqa": lambda: Qwen3Config(**_SMALL, **_GQA, **_rope(rope_type="default")),
    "qwen3-window": lambda: Qwen3Config(
        **_SMALL,
        **_GQA,
        **_rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=128),
        use_sliding_window=True,
        sliding_window=19,
        max_window_layers=2,
    ),
    "mistral-yarn": lambda: MistralConfig(
        **_SMALL, **_GQA, **_rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=128)
    ),
    "qwen3-mqa-biases": lambda: Qwen3Config(**_SMALL, **_MQA, attention_bias=True, tie_word_embeddings=True),
}
