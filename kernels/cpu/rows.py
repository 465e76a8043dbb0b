"""Tiles (`tiles.py`) put together for any number of rows and columns; addresses and strides in bytes.

The first argument of each is the marker that names the type of the weights (`vectors.py`).
"""

from collections.abc import Callable
from typing import Any, Final

from kernels.cpu.compiling import compiled, compiled_as
from kernels.cpu.tiles import axpy_tile, converting, dot_tile, element_bytes
from kernels.cpu.vectors import LANES, REGISTERS

TALL: Final = 8 if REGISTERS == 32 else 4
"""Rows of the largest tile of `dot`: what it saves is widening the weights, what bounds it is registers."""

AHEAD: Final = 8192
"""How many bytes early weights are asked for that come from memory, at least."""

COLUMNS_AHEAD: Final = 4
"""And how many columns early, or the later columns of a tile would be asked for by the tile itself, too late: rows of
9.7 KB read at 12.2 GB/s a core instead of 9.5."""


def _dot_band(height: int, width: int) -> Callable[..., None]:
    """`dot` for exactly `height` rows."""
    tile, column = dot_tile(height, width), dot_tile(height, 1)

    @compiled_as(f"dot_{height}_{width}")
    def band(
        marker: Any, x: int, xs: int, w: int, ws: int, columns: int, y: int, ys: int, k: int, ahead: int, jump: int
    ) -> None:
        near = (
            columns - (ahead + ws - 1) // ws if ahead else columns
        )  # from this column on, what comes next is elsewhere
        n = 0
        while n + width <= columns:
            tile(marker, x, xs, w + n * ws, ws, y + n * 4, ys, k, ahead if n + width <= near else jump)
            n += width
        while n < columns:
            column(marker, x, xs, w + n * ws, ws, y + n * 4, ys, k, ahead if n < near else jump)
            n += 1

    return band


_dot_tall = _dot_band(TALL, 3 if REGISTERS == 32 else 2)
_dot_4 = _dot_band(4, 4 if REGISTERS == 32 else 2)
_dot_2 = _dot_band(2, 4)
_dot_1 = _dot_band(1, 4)


@compiled
def dot(
    marker: Any,
    x: int,
    xs: int,
    rows: int,
    w: int,
    ws: int,
    columns: int,
    y: int,
    ys: int,
    k: int,
    ahead: int,
    then: int,
) -> None:
    """y[m, n] = sum_k x[m, k] * w[n, k].

    The first rows ask for the weights `ahead` bytes early (0: they are in the cache), and towards the end for what
    is at `then`, which will be read next (0: nothing); the other rows find them in the cache.
    """
    if ahead:
        ahead = max(ahead, COLUMNS_AHEAD * ws)
    jump = ahead + then - (w + columns * ws) if then else 0
    m = 0
    while m < rows:
        left = rows - m
        if left >= TALL:
            _dot_tall(marker, x + m * xs, xs, w, ws, columns, y + m * ys, ys, k, ahead, jump)
            m += TALL
        elif left >= 4:
            _dot_4(marker, x + m * xs, xs, w, ws, columns, y + m * ys, ys, k, ahead, jump)
            m += 4
        elif left >= 2:
            _dot_2(marker, x + m * xs, xs, w, ws, columns, y + m * ys, ys, k, ahead, jump)
            m += 2
        else:
            _dot_1(marker, x + m * xs, xs, w, ws, columns, y + m * ys, ys, k, ahead, jump)
            m += 1
        ahead, jump = 0, 0


def axpy_band(height: int, vectors: int) -> Callable[..., None]:
    """`axpy` for exactly `height` rows."""
    tile, single = axpy_tile(height, vectors), axpy_tile(height, 1)
    rest = axpy_tile(height, 1, partial=True)

    @compiled_as(f"axpy_{height}_{vectors}")
    def band(marker: Any, a: int, a_stride: int, b: int, bs: int, y: int, ys: int, columns: int, count: int) -> None:
        size = element_bytes(marker)
        c = 0
        while c + vectors * LANES <= columns:
            tile(marker, a, a_stride, b + c * size, bs, y + c * 4, ys, count, 0)
            c += vectors * LANES
        while c + LANES <= columns:
            single(marker, a, a_stride, b + c * size, bs, y + c * 4, ys, count, 0)
            c += LANES
        if c < columns:
            rest(marker, a, a_stride, b + c * size, bs, y + c * 4, ys, count, columns - c)

    return band


_axpy_4 = axpy_band(4, 2)
_axpy_1 = axpy_band(1, 4)


@compiled
def axpy(
    marker: Any, a: int, a_stride: int, rows: int, b: int, bs: int, y: int, ys: int, columns: int, count: int
) -> None:
    """y[m, c] += sum_j a[m, j] * b[j, c] for j < count."""
    m = 0
    while m + 4 <= rows:
        _axpy_4(marker, a + m * a_stride, a_stride, b, bs, y + m * ys, ys, columns, count)
        m += 4
    while m < rows:
        _axpy_1(marker, a + m * a_stride, a_stride, b, bs, y + m * ys, ys, columns, count)
        m += 1


_narrow, _narrow_rest = (converting(narrow=True, partial=partial) for partial in (False, True))
_widen, _widen_rest = (converting(narrow=False, partial=partial) for partial in (False, True))


@compiled
def narrow(marker: Any, x: int, y: int, columns: int) -> None:
    """Writes fp32 numbers as the marker's type, rounded to nearest even."""
    size = element_bytes(marker)
    c = 0
    while c + LANES <= columns:
        _narrow(marker, x + c * 4, y + c * size, 0)
        c += LANES
    if c < columns:
        _narrow_rest(marker, x + c * 4, y + c * size, columns - c)


@compiled
def widen(marker: Any, x: int, y: int, columns: int) -> None:
    """Writes elements of the marker's type as fp32 numbers."""
    size = element_bytes(marker)
    c = 0
    while c + LANES <= columns:
        _widen(marker, x + c * size, y + c * 4, 0)
        c += LANES
    if c < columns:
        _widen_rest(marker, x + c * size, y + c * 4, columns - c)
