"""Norm, rotation, activations, softmax and soft cap of one row against float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.cpu.compiling import compiled
from kernels.cpu.elementwise import exp, gelu_mul, rms_norm, rotate, silu_mul, soft_cap, softmax
from kernels.cpu.tiles import first_greatest

Row = npt.NDArray[np.float32]
SIZES = [1, 2, 7, 16, 64, 100, 577]


@compiled
def exponentials(x: Any, y: Any) -> None:
    for i in range(len(x)):
        y[i] = exp(x[i])


def row(size: int, seed: int = 0) -> Row:
    return np.random.default_rng(seed + size).standard_normal(size).astype(np.float32)


def test_exp_is_good_to_two_roundings() -> None:
    x = np.linspace(-87, 88, 100_001).astype(np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 2**-22
    special = np.array([-1000.0, math.nan, math.inf, -math.inf], np.float32)
    y = np.empty_like(special)
    exponentials(special, y)
    assert 0 < y[0] < 1e-37
    assert np.isnan(y[1:]).all()


@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int) -> None:
    x, weight, y = row(size), row(size, 1), np.zeros(size, np.float32)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5) * weight
    rms_norm(x.ctypes.data, weight.ctypes.data, y.ctypes.data, size, np.float32(1e-5))
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-6)
    rms_norm(x.ctypes.data, weight.ctypes.data, x.ctypes.data, size, np.float32(1e-5))
    assert np.array_equal(x, y)


@pytest.mark.parametrize("size", [2, 6, 64, 80])
def test_rotation_turns_pairs(size: int) -> None:
    x, half = row(size), size // 2
    angles = row(half, 3)
    cos, sin = np.tile(np.cos(angles), 2), np.concatenate((-np.sin(angles), np.sin(angles)))
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angles.astype(np.float64))
    rotate(x.ctypes.data, cos.ctypes.data, sin.ctypes.data, size)
    np.testing.assert_allclose(x, np.concatenate((pairs.real, pairs.imag)), atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (silu_mul, lambda x: x / (1 + np.exp(-x))),
        (gelu_mul, lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_gated_activations(function: Callable[..., None], activation: Callable[[Any], Any], size: int) -> None:
    gate, up = row(size) * 8, row(size, 1)
    wanted = activation(gate.astype(np.float64)) * up
    function(gate.ctypes.data, up.ctypes.data, size)
    np.testing.assert_allclose(gate, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("cap", [1.0, 30.0])
def test_soft_cap(cap: float) -> None:
    x = row(100) * 40
    wanted = cap * np.tanh(x.astype(np.float64) / cap)
    soft_cap(x.ctypes.data, 100, np.float32(cap))
    np.testing.assert_allclose(x, wanted, atol=3e-7 * cap)


@pytest.mark.parametrize(("first", "count"), [(0, 40), (3, 30), (39, 1), (17, 16)])
def test_softmax_weighs_only_what_is_seen(first: int, count: int) -> None:
    x = row(40) * 20 - 50
    x[:first] = math.nan
    x[first + count :] = math.inf
    seen = x[first : first + count].astype(np.float64)
    total = softmax(x.ctypes.data, first, count, 40)
    weights = np.exp(seen - seen.max())
    np.testing.assert_allclose(x[first : first + count], weights, atol=1e-6)
    assert not x[:first].any()
    assert not x[first + count :].any()
    assert total == pytest.approx(weights.sum(), rel=1e-6)


def test_weights_that_change_nothing_are_nothing() -> None:
    x = np.array([0, -60, -75, -87, -1000], np.float32)
    assert softmax(x.ctypes.data, 0, 5, 5) == 1
    assert x[1] > 0
    assert x[2:].tolist() == [0, 0, 0]


def test_a_score_that_is_not_a_number_spoils_the_row() -> None:
    """A sequence whose numbers overflowed must be noticed, not answered."""
    x = row(20)
    x[7] = math.nan
    assert math.isnan(softmax(x.ctypes.data, 0, 20, 20))


@compiled
def greatest(x: Any) -> int:
    place: int = first_greatest(x.ctypes.data, len(x))
    return place


@pytest.mark.parametrize("size", [*SIZES, 5000])
def test_the_first_greatest(size: int) -> None:
    for seed in range(20):
        x = np.round(row(size, seed) * 2)  # with ties
        assert greatest(x) == int(x.argmax())
        place = seed % size
        for wrong in (math.nan, math.inf, -math.inf):
            spoilt = x.copy()
            spoilt[place] = wrong
            assert greatest(spoilt) == -1
    assert greatest(np.full(size, -1e30, np.float32)) == 0
