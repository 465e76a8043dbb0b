"""Products of many rows (`panels.py`) put together: packing what is read, then tile after tile.

The same numbers as `rows.dot`, faster from MANY rows on. Addresses and strides in bytes.
"""

from typing import Any, Final

import numpy as np
from numba import carray

from kernels.cpu.compiling import compiled
from kernels.cpu.panels import GROUPS, STRIP, integers_at, packing, panel_tile
from kernels.cpu.rows import axpy, axpy_band
from kernels.cpu.vectors import LANES, REGISTERS

MANY: Final = 64
"""Rows from which on packing weights for them pays: 49 to 86, as k falls from 1536 to 576."""

_FLOAT: Final = np.float32(0)  # the marker of x
_pack_group, _pack_strips = packing(LANES), packing(STRIP)
_single, _widest = panel_tile(1), panel_tile(GROUPS)


@compiled
def packed_bytes(rows: int, k: int) -> int:
    """What `rows` rows need when they are packed, as strips or as groups."""
    return (rows + LANES - 1) // LANES * LANES * ((k + LANES - 1) // LANES * LANES) * 4


@compiled
def addresses(place: int, first: int, stride: int, count: int) -> None:
    """LANES addresses at `place`: of rows 0 to count - 1, then of the last one again and again."""
    out = carray(integers_at(place), LANES)
    for i in range(LANES):
        out[i] = first + min(i, count - 1) * stride


@compiled
def pack_strips(x: int, xs: int, rows: int, k: int, target: int, scratch: int) -> None:
    """`rows` rows of x (at most LANES) as strips."""
    addresses(scratch, x, xs, rows)
    _pack_strips(_FLOAT, scratch, k, target, packed_bytes(LANES, k) // (LANES // STRIP))


@compiled
def pack_group(marker: Any, w: int, ws: int, columns: int, k: int, target: int, scratch: int) -> None:
    """`columns` rows of w (at most LANES) as a group."""
    addresses(scratch, w, ws, columns)
    _pack_group(marker, scratch, k, target, 0)


@compiled
def pack_cells(marker: Any, places: int, k: int, target: int) -> None:
    """Rows of w, LANES addresses of which stand at `places`, as a group."""
    _pack_group(marker, places, k, target, 0)


@compiled
def multiply(x: int, rows: int, w: int, columns: int, y: int, ys: int, k: int) -> None:
    """y[m, n] of strips at x and groups at w."""
    group = packed_bytes(LANES, k)
    strip = group // (LANES // STRIP)
    m = 0
    while m < rows:
        height = min(STRIP, rows - m)
        n = 0
        while n < columns:
            left, out, weights = columns - n, y + m * ys + n * 4, w + n // LANES * group
            if left > (GROUPS - 1) * LANES:
                _widest(x, weights, group, k, out, ys, height, left)
                n += GROUPS * LANES
            else:
                _single(x, weights, group, k, out, ys, height, left)
                n += LANES
        x += strip
        m += STRIP


AXPY_ROWS: Final = 6 if REGISTERS == 32 else 4
_axpy_high = axpy_band(AXPY_ROWS, 4 if REGISTERS == 32 else 2)


@compiled
def axpy_many(a: int, a_stride: int, rows: int, b: int, bs: int, y: int, ys: int, columns: int, count: int) -> None:
    """`rows.axpy` of fp32 b."""
    m = 0
    while m + AXPY_ROWS <= rows:
        _axpy_high(_FLOAT, a + m * a_stride, a_stride, b, bs, y + m * ys, ys, columns, count)
        m += AXPY_ROWS
    axpy(_FLOAT, a + m * a_stride, a_stride, rows - m, b, bs, y + m * ys, ys, columns, count)
