"""The published configurations of the newer families, in the words of their folders, and what is read from them."""

from typing import Any

import pytest

from runtime.models.attention_kinds import AttentionKind
from runtime.models.config import ModelConfig
from runtime.models.rope import Rope

SIZES: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 8, "vocab_size": 99}
QWEN: dict[str, Any] = {**SIZES, "hidden_size": 896, "intermediate_size": 4864, "hidden_act": "silu"}
GEMMA: dict[str, Any] = {**SIZES, "hidden_size": 1152, "intermediate_size": 6912, "head_dim": 256}


def read(**config: Any) -> ModelConfig:
    return ModelConfig.from_config(config, {})


def windows(config: ModelConfig) -> list[int | None]:
    return [config.kinds[kind].window for kind in config.layer_kinds]


def test_gemma2_alternates_and_caps() -> None:
    config = read(
        **GEMMA,
        model_type="gemma2",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=144,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
        rope_theta=10000.0,
    )
    assert windows(config) == [4096, None] * 4
    assert {kind.rope for kind in config.kinds} == {Rope(10000.0)}
    assert (config.attention_softcap, config.logits_softcap, config.attention_scale) == (50.0, 30.0, 144**-0.5)
    assert (config.ties_embedding, config.qk_norm, config.biased) == (True, False, ())
    bare = read(**GEMMA, model_type="gemma2")
    assert (bare.attention_softcap, bare.logits_softcap, bare.attention_scale) == (50.0, 30.0, 256**-0.5)
    uncapped = read(**GEMMA, model_type="gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (uncapped.attention_softcap, uncapped.logits_softcap) == (None, None)


GEMMA3_OLD: dict[str, Any] = {
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window_pattern": 3,
}
GEMMA3_NEW: dict[str, Any] = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"] * 2,
}


@pytest.mark.parametrize("spelling", [GEMMA3_OLD, GEMMA3_NEW], ids=["old", "new"])
def test_gemma3_has_two_rotations_in_either_spelling(spelling: dict[str, Any]) -> None:
    config = read(**GEMMA, **spelling, model_type="gemma3_text", sliding_window=512, rms_norm_eps=1e-6)
    local, everything = AttentionKind(Rope(1e4), 512), AttentionKind(Rope(1e6, "linear", 8.0), None)
    assert [config.kinds[kind] for kind in config.layer_kinds] == [local, local, everything] * 2 + [local, local]
    assert (config.qk_norm, config.norm_names.mlp) == (True, "pre_feedforward_layernorm")


def test_gemma3_defaults() -> None:
    config = read(**GEMMA, model_type="gemma3_text")
    assert windows(config) == [4096] * 5 + [None] + [4096] * 2
    assert {kind.rope.theta for kind in config.kinds} == {1e6, 1e4}
    assert (config.attention_softcap, config.logits_softcap, config.max_positions) == (None, None, 131072)


def test_qwen2_has_biases_and_windows_only_when_asked() -> None:
    published = {"model_type": "qwen2", "sliding_window": 32768, "max_window_layers": 5, "rope_theta": 1000000.0}
    config = read(**QWEN, **published, use_sliding_window=False, tie_word_embeddings=True)
    assert config.kinds == (AttentionKind(Rope(1e6), None),)
    assert (config.biased, config.ties_embedding, config.qk_norm) == (("q_proj", "k_proj", "v_proj"), True, False)
    assert windows(read(**QWEN, **published, use_sliding_window=True)) == [None] * 5 + [32768] * 3


def test_qwen2_yarn_as_its_cards_describe_it() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    (kind,) = read(**QWEN, model_type="qwen2", rope_theta=1e6, rope_scaling=yarn).kinds
    assert (kind.rope.kind, kind.rope.factor, kind.rope.original_positions) == ("yarn", 4.0, 32768)
    assert kind.rope.amplitude == pytest.approx(1.1386294361)  # 0.1 ln 4 + 1
    outside = {"rope_scaling": {"factor": 4.0, "type": "yarn"}, "original_max_position_embeddings": 4096}
    assert read(**QWEN, model_type="qwen2", **outside).kinds[0].rope.original_positions == 4096
    stated = read(**QWEN, model_type="qwen2", rope_scaling={**yarn, "attention_factor": 0.5}).kinds[0].rope
    assert stated.amplitude == 0.5
    ratio = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8192}
    assert read(**QWEN, model_type="qwen2", rope_parameters=ratio).kinds[0].rope.factor == 4.0


def test_qwen3_norms_its_heads() -> None:
    config = read(**QWEN, model_type="qwen3", head_dim=128, attention_bias=False, rope_theta=1e6)
    assert (config.qk_norm, config.biased, config.geometry.shape("o_proj")) == (True, (), (896, 1024))
    biased = read(**QWEN, model_type="qwen3", head_dim=128, attention_bias=True)
    assert biased.biased == ("q_proj", "k_proj", "v_proj", "o_proj")
