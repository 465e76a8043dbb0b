"""Norms, rotary embedding and activations at real shapes, bf16 against float64, and in a graph."""

import pytest
import torch

from kernels.silu_mul import Activation
from tests.kernels.elementwise_trials import (
    gated_activation_trial,
    head_norm_trial,
    replay_trial,
    rms_norm_trial,
    rope_trial,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [896, 3584, 4096, 2049])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(dtype: torch.dtype, width: int, residual: bool) -> None:
    rms_norm_trial(33, width, dtype, dtype, "cuda", residual=residual)
    rms_norm_trial(1, width, dtype, torch.float32, "cuda", residual=residual, gap=64)


def test_rms_norm_of_the_widest() -> None:
    rms_norm_trial(3, 1 << 16, torch.bfloat16, torch.bfloat16, "cuda", residual=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (16, 8, 256), (7, 1, 80)])
def test_head_norm(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    head_norm_trial(130, heads, kv_heads, dim, dtype, dtype, "cuda")
    head_norm_trial(1, heads, kv_heads, dim, dtype, torch.float32, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_tokens"), [(32, 8, 128, 32), (16, 8, 256, 16), (9, 3, 64, 64), (8, 2, 96, 13)]
)
def test_rope_write_kv(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, block_tokens: int) -> None:
    rope_trial(133, heads, kv_heads, dim, block_tokens, dtype, "cuda")
    rope_trial(1, heads, kv_heads, dim, block_tokens, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activation(dtype: torch.dtype, activation: Activation) -> None:
    for width in (11008, 14336, 4864, 130):
        gated_activation_trial(65, width, activation, dtype, "cuda")


def test_graph_replay_is_eager_bit_for_bit() -> None:
    replay_trial(8, 4096, 32, 8, 128, torch.bfloat16, "cuda")
