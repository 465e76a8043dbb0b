"""Norms, rotary embedding and activations: the kernels in the interpreter.

Not in bf16: the interpreter cuts bits off instead of rounding."""

import pytest
import torch

from kernels.head_norm import head_norm_
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv, rotary_table
from kernels.silu_mul import Activation, gated_activation
from tests.kernels.elementwise_trials import (
    delta_trial,
    gated_activation_trial,
    head_norm_trial,
    replay_trial,
    rms_norm_trial,
    rope_trial,
)
from tests.kernels.interpreter_memory import InterpreterMemory

DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "gap"), [(3, 64, 0), (5, 33, 7), (1, 2049, 0), (2, 1, 0)])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(
    interpreter: InterpreterMemory, dtype: torch.dtype, tokens: int, width: int, gap: int, residual: bool
) -> None:
    for weight_dtype in {dtype, torch.float32}:
        rms_norm_trial(tokens, width, dtype, weight_dtype, "cpu", residual=residual, gap=gap)
    assert interpreter.launches == len({dtype, torch.float32})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (7, 1, 80), (20, 4, 128), (1, 1, 5)])
def test_head_norm(interpreter: InterpreterMemory, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    head_norm_trial(3, heads, kv_heads, dim, dtype, torch.float32, "cpu")
    head_norm_trial(2, heads, kv_heads, dim, dtype, dtype, "cpu")
    assert interpreter.launches == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_tokens"),
    [(4, 2, 16, 8), (7, 1, 80, 16), (9, 3, 64, 64), (16, 4, 128, 32), (1, 1, 6, 5)],
)
def test_rope_write_kv(
    interpreter: InterpreterMemory, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, block_tokens: int
) -> None:
    rope_trial(7, heads, kv_heads, dim, block_tokens, dtype, "cpu")
    assert interpreter.launches == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 10)])
def test_what_is_added_on_the_way(
    interpreter: InterpreterMemory, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    delta_trial(3, heads, kv_heads, dim, dtype, "cpu")
    assert interpreter.launches == 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [4, 130, 1500])
def test_gated_activation(
    interpreter: InterpreterMemory, dtype: torch.dtype, activation: Activation, width: int
) -> None:
    gated_activation_trial(3, width, activation, dtype, "cpu")
    assert interpreter.launches == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_references_do_the_same(dtype: torch.dtype) -> None:
    """On a CPU without the interpreter: the residual and the place of -1 are no kernel's privilege."""
    rms_norm_trial(3, 33, dtype, torch.float32, "cpu", residual=True)
    rope_trial(7, 4, 2, 16, 8, dtype, "cpu")
    rope_trial(1, 4, 2, 16, 8, dtype, "cpu")


def test_a_residual_in_the_same_launch_gives_the_same_bits(interpreter: InterpreterMemory) -> None:
    x, residual, weight = torch.randn(3, 40).half(), torch.randn(3, 40).half(), torch.rand(40).half()
    together = rms_norm(x, weight, 1e-6, residual.clone())
    assert torch.equal(together, rms_norm(x + residual, weight, 1e-6))


def test_a_replay_gives_the_same_bits(interpreter: InterpreterMemory) -> None:
    replay_trial(4, 24, 4, 2, 16, torch.float16, "cpu")
    assert interpreter.launches == 2 * 3 * 4


def test_nothing_to_do_is_no_launch(interpreter: InterpreterMemory) -> None:
    cache, empty = torch.zeros(2, 4, 2, 1, 4), torch.zeros(0, 12)
    cos, sin = rotary_table(torch.tensor([1.0, 0.5]), 4)
    assert rms_norm(empty, torch.ones(12), 1e-6).shape == (0, 12)
    assert gated_activation(empty, "silu").shape == (0, 6)
    head_norm_(empty, torch.ones(2, 4), 1e-6)
    assert rope_write_kv(empty, cos[:0], sin[:0], cache, torch.zeros(0).long(), 1).shape == (0, 1, 4)
    assert interpreter.launches == 0


def test_what_a_kernel_cannot_take_is_refused(interpreter: InterpreterMemory) -> None:
    wide = torch.zeros(3, 24)
    for x, weight, residual in (
        (wide[:, ::2], torch.ones(12), None),
        (wide.double(), torch.ones(24).double(), None),
        (wide.view(3, 2, 12), torch.ones(12), None),
        (wide, torch.ones(48)[::2], None),
        (wide, torch.ones(24), wide.half()),
        (wide, torch.ones(24), wide[:2]),
    ):
        with pytest.raises(ValueError, match="rms_norm"):
            rms_norm(x, weight, 1e-6, residual)
    with pytest.raises(ValueError, match="gated_activation"):
        gated_activation(wide[:, ::2], "silu")
    with pytest.raises(ValueError, match="head_norm"):
        head_norm_(wide.T.contiguous().T, torch.ones(4, 4), 1e-6)
    cos, sin = rotary_table(torch.tensor([1.0, 0.5]), 4)
    cache, places = torch.zeros(2, 4, 2, 2, 4), torch.arange(3)
    for qkv, cosine, cells, at in (
        (wide, cos[:3], cache, places.int()),
        (wide, cos[:3].half(), cache, places),
        (wide.double(), cos[:3], cache.double(), places),
        (wide, cos[:3], torch.zeros(2, 2, 2, 4, 4).transpose(1, 3), places),
        (torch.zeros(24, 3).T, cos[:3], cache, places),
    ):
        with pytest.raises(ValueError, match="rope"):
            rope_write_kv(qkv, cosine, sin[:3], cells, at, 2)
