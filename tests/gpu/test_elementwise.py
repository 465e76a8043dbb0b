"""Norms, rotary embedding and activations at real shapes, bf16 against float64, and in a graph."""

import pytest
import torch

from kernels.silu_mul import Activation
from tests.kernels.elementwise_trials import (
    delta_trial,
    gated_activation_trial,
    head_norm_trial,
    replay_trial,
    rms_norm_trial,
    rope_trial,
)

DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS = 133


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [896, 3584, 4096, 2049])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(dtype: str, width: int, residual: bool) -> None:
    rms_norm_trial(33, width, DTYPES[dtype], DTYPES[dtype], DEVICE, residual=residual)
    rms_norm_trial(1, width, DTYPES[dtype], torch.float32, DEVICE, residual=residual, gap=64)


def test_rms_norm_of_the_widest() -> None:
    rms_norm_trial(3, 1 << 16, DTYPES["bf16"], DTYPES["bf16"], DEVICE, residual=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (16, 8, 256), (7, 1, 80)])
def test_head_norm(dtype: str, heads: int, kv_heads: int, dim: int) -> None:
    head_norm_trial(TOKENS, heads, kv_heads, dim, DTYPES[dtype], DTYPES[dtype], DEVICE)
    head_norm_trial(1, heads, kv_heads, dim, DTYPES[dtype], torch.float32, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_tokens"), [(32, 8, 128, 32), (16, 8, 256, 16), (9, 3, 64, 64), (8, 2, 96, 13)]
)
def test_rope_write_kv(dtype: str, heads: int, kv_heads: int, dim: int, block_tokens: int) -> None:
    rope_trial(TOKENS, heads, kv_heads, dim, block_tokens, DTYPES[dtype], DEVICE)
    rope_trial(1, heads, kv_heads, dim, block_tokens, DTYPES[dtype], DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activation(dtype: str, activation: Activation) -> None:
    for width in (11008, 14336, 4864, 130):
        gated_activation_trial(TOKENS, width, activation, DTYPES[dtype], DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_added_on_the_way(dtype: str) -> None:
    delta_trial(33, 32, 8, 128, DTYPES[dtype], DEVICE)
    delta_trial(3, 7, 1, 80, DTYPES[dtype], DEVICE)


def test_graph_replay_is_eager_bit_for_bit() -> None:
    replay_trial(8, 4096, 32, 8, 128, DTYPES["bf16"], DEVICE)


def test_tiny_steps() -> None:
    """Few programs, for the sanitizer."""
    replay_trial(3, 70, 3, 1, 10, DTYPES["bf16"], DEVICE)
