"""What a decoder does to one row of fp32 numbers: norm, rotation, gated activation, softmax, soft cap.

Plain loops, which LLVM turns into vector code, and sums in a stated order (`tiles.reduction`): a row comes out the same
whatever else the step computes.
"""

from typing import Any, Final

import numpy as np
from numba import carray

from kernels.cpu.compiling import compiled
from kernels.cpu.tiles import floats_at, reduction

_sum, _sum_of_squares, _greatest = reduction("sum"), reduction("squares"), reduction("greatest")

_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)

# exp(x) = 2^n exp(r), r = x - n ln 2 in two parts; the polynomial and its error (1 ulp) are those of Cephes' expf.
_LEAST, _MOST = np.float32(-87.3), np.float32(88.3)
_LOG2_E: Final = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_GELU_A, _GELU_B = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi), and of the cubic term

# A weight below this changes nothing, and its products with values would be denormal numbers, which are slow.
_NO_WEIGHT: Final = np.float32(1e-30)


@compiled
def floats(address: int, count: int) -> Any:
    """The fp32 numbers at an address as an array."""
    return carray(floats_at(address), count)


@compiled
def exp(x: Any) -> Any:
    """e^x for fp32; below -87.3 it is that of -87.3, about 1e-38. NaN and infinities give NaN."""
    clamped = min(max(x, _LEAST), _MOST)
    n = np.floor(clamped * _LOG2_E + _HALF)
    r = clamped - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + _ONE) * power + (x - x)


@compiled
def rms_norm(x: int, weight: int, y: int, columns: int, eps: Any) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight; x and y may be the same row."""
    factor = _ONE / np.sqrt(_sum_of_squares(x, columns) / np.float32(columns) + eps)
    numbers, weights, out = floats(x, columns), floats(weight, columns), floats(y, columns)
    for i in range(columns):
        out[i] = numbers[i] * factor * weights[i]


@compiled
def add(x: int, y: int, columns: int) -> None:
    """y += x."""
    numbers, out = floats(x, columns), floats(y, columns)
    for i in range(columns):
        out[i] += numbers[i]


@compiled
def rotate(x: int, cos: int, sin: int, columns: int) -> None:
    """Rotary embedding of one head, in place; `sin` is signed (`kernels/rope.py`)."""
    half = columns // 2
    first, second = floats(x, half), floats(x + half * 4, half)
    cosines, sines = floats(cos, columns), floats(sin, columns)
    for i in range(half):
        a, b = first[i], second[i]
        first[i] = a * cosines[i] + b * sines[i]
        second[i] = b * cosines[half + i] + a * sines[half + i]


@compiled
def silu_mul(gate: int, up: int, columns: int) -> None:
    """gate = gate / (1 + e^-gate) * up."""
    gates, ups = floats(gate, columns), floats(up, columns)
    for i in range(columns):
        x = gates[i]
        gates[i] = x / (_ONE + exp(-x)) * ups[i]


@compiled
def gelu_mul(gate: int, up: int, columns: int) -> None:
    """gate = gelu(gate) * up, gelu approximated by tanh: x / 2 (1 + tanh u) = x / (1 + e^-2u)."""
    gates, ups = floats(gate, columns), floats(up, columns)
    for i in range(columns):
        x = gates[i]
        u = _GELU_A * (x + _GELU_B * x * x * x)
        gates[i] = x / (_ONE + exp(-(u + u))) * ups[i]


@compiled
def soft_cap(x: int, columns: int, cap: Any) -> None:
    """x = cap * tanh(x / cap), in place."""
    numbers = floats(x, columns)
    for i in range(columns):
        u = numbers[i] / cap
        numbers[i] = cap * (_ONE - (_ONE + _ONE) / (exp(u + u) + _ONE))


@compiled
def softmax(x: int, first: int, count: int, columns: int) -> Any:
    """Weights e^(x - max) of x[first : first + count], in place and zero outside; returns the sum of the weights."""
    greatest = _greatest(x + first * 4, count)
    _clear(x, first)
    seen = floats(x + first * 4, count)  # loops from 0 become vector code; from elsewhere an index might be negative
    for i in range(count):
        weight = exp(seen[i] - greatest)
        seen[i] = np.float32(0) if weight < _NO_WEIGHT else weight  # keeps NaN
    _clear(x + (first + count) * 4, columns - first - count)
    return _sum(x, columns)


@compiled
def _clear(x: int, columns: int) -> None:
    numbers = floats(x, columns)
    for i in range(columns):
        numbers[i] = np.float32(0)
