"""Norm, rotary embedding with the cache write, and gated activations against their formulas in float64."""

import math

import pytest
import torch

from kernels.head_norm import head_norm_
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv, rotary_table
from kernels.silu_mul import Activation, gated_activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_is_fp32", [True, False])
def test_rms_norm_rounds_once(dtype: torch.dtype, weight_is_fp32: bool) -> None:
    x = (torch.randn(7, 33) * 3).to(dtype)
    weight = torch.rand(33) + 0.5
    weight = weight if weight_is_fp32 else weight.to(dtype)
    exact = x.double() / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    found = rms_norm(x, weight, 1e-5)
    assert found.dtype == dtype
    # Half a unit in the last place, and a little for sums in fp32.
    assert bool(((found.double() - exact).abs() <= exact.abs() * (torch.finfo(dtype).eps * 0.51 + 1e-6)).all())


def test_rms_norm_does_not_overflow_in_half_precision() -> None:
    x = torch.full((1, 8), 60000.0, dtype=torch.float16)
    assert torch.allclose(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8, dtype=torch.float16))


def test_rms_norm_refuses_a_weight_of_another_shape() -> None:
    with pytest.raises(ValueError, match="rms_norm"):
        rms_norm(torch.zeros(2, 8), torch.ones(7), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_is_fp32", [True, False])
def test_head_norm_changes_q_and_k_only(dtype: torch.dtype, weight_is_fp32: bool) -> None:
    heads, kv_heads, dim = 4, 2, 6
    qkv = (torch.randn(5, (heads + 2 * kv_heads) * dim) * 3).to(dtype)
    before = qkv.double().view(5, -1, dim)
    weight = torch.rand(heads + kv_heads, dim) + 0.5
    weight = weight if weight_is_fp32 else weight.to(dtype)
    head_norm_(qkv, weight, 1e-3)
    after = qkv.double().view(5, -1, dim)
    exact = before[:, :6] / torch.sqrt((before[:, :6] ** 2).mean(-1, keepdim=True) + 1e-3) * weight.double()
    assert bool(((after[:, :6] - exact).abs() <= exact.abs() * (torch.finfo(dtype).eps * 0.51 + 1e-6)).all())
    assert torch.equal(after[:, 6:], before[:, 6:])


def test_head_norm_refuses_a_weight_that_does_not_fit() -> None:
    for weight in (torch.ones(8, 6), torch.ones(6, 6).half()):
        with pytest.raises(ValueError, match="head_norm"):
            head_norm_(torch.zeros(2, 48), weight, 1e-6)


@pytest.mark.parametrize(("activation", "reference"), [("silu", "silu"), ("gelu_tanh", "gelu")])
def test_gated_activation(activation: Activation, reference: str) -> None:
    x = torch.randn(5, 26, dtype=torch.float64)
    gate, up = x[:, :13], x[:, 13:]
    if reference == "silu":
        exact = gate / (1 + torch.exp(-gate)) * up
    else:
        exact = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    assert torch.allclose(gated_activation(x, activation), exact)
    assert torch.allclose(gated_activation(x.float(), activation).double(), exact, atol=1e-5)


def test_gated_activation_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="gated_activation"):
        gated_activation(torch.zeros(2, 7), "silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_rotates_q_and_k_and_writes_k_and_v(dtype: torch.dtype) -> None:
    heads, kv_heads, dim, tokens = 4, 2, 6, 5
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=generator).to(dtype)
    before = qkv.double().view(tokens, -1, dim)
    cache = torch.full((4, 4, 2, kv_heads, dim), 9.0, dtype=dtype)
    frequency = torch.tensor([1.0, 0.3, 0.01])
    cos, sin = rotary_table(frequency, 32)
    positions, places = torch.tensor([0, 1, 30, 7, 7]), torch.tensor([5, 0, 15, 2, 9])
    q = rope_write_kv(qkv, cos[positions], sin[positions], cache, places, heads)
    angles = positions.double()[:, None, None] * frequency.double()
    low, high = before[..., :3], before[..., 3:]
    rotated = torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), -1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert torch.allclose(q.double(), rotated[:, :heads], atol=tolerance, rtol=tolerance)
    cells = cache.view(16, 2, kv_heads, dim).double()
    assert torch.allclose(cells[places, 0], rotated[:, heads : heads + kv_heads], atol=tolerance, rtol=tolerance)
    assert torch.equal(cells[places, 1], before[:, heads + kv_heads :])
    untouched = [place for place in range(16) if place not in places.tolist()]
    assert bool((cells[untouched] == 9.0).all())


def test_rope_refuses_shapes_that_do_not_fit() -> None:
    cos, sin = rotary_table(torch.tensor([1.0, 0.5]), 4)
    cache = torch.zeros(2, 4, 2, 1, 4)
    for qkv, places in ((torch.zeros(3, 13), torch.arange(3)), (torch.zeros(3, 12), torch.arange(2))):
        with pytest.raises(ValueError, match="rope"):
            rope_write_kv(qkv, cos[:3], sin[:3], cache, places, 1)
