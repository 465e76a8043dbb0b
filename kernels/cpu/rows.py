"""Tiles (`tiles.py`) put together for any number of rows and columns; addresses and strides in bytes.

The first argument of each is the marker that names the type of the weights (`vectors.py`).
"""

from collections.abc import Callable
from typing import Any, Final

from kernels.cpu.compiling import compiled, compiled_as
from kernels.cpu.tiles import LINE_BYTES, ask_for_line, axpy_tile, converting, dot_tile, element_bytes
from kernels.cpu.vectors import LANES, REGISTERS

TALL: Final = 8 if REGISTERS == 32 else 4
"""Rows of the largest tile of `dot`: what it saves is widening the weights, what bounds it is registers."""

WIDE: Final = 3 if REGISTERS == 32 else 2
"""And its columns. Those of one tile lie far apart: the columns of a call are cut in as many streams as a tile is wide,
and a tile takes one of each."""

AHEAD: Final = 8192
"""How many bytes early 16-bit weights are asked for that come from memory, in each of a tile's streams. fp32 half of
it: with as much as this, one row at a time of half a billion was 4 % slower."""


def _dot_band(height: int, width: int) -> Callable[..., None]:
    """`dot` for exactly `height` rows."""
    tile, column = dot_tile(height, width), dot_tile(height, 1)

    @compiled_as(f"dot_{height}_{width}")
    def band(
        marker: Any, x: int, xs: int, w: int, ws: int, columns: int, y: int, ys: int, k: int, ahead: int,
        then: int, then_apart: int,
    ) -> None:  # fmt: skip
        streams = columns // width
        apart = streams * ws
        near, jump, skew = streams, 0, 0
        if ahead:
            ahead = min(ahead, apart)
            near = streams - (ahead + ws - 1) // ws  # from this column on, what comes next is elsewhere
            if then:
                jump, skew = ahead - apart + then - w, then_apart - apart
        n = 0
        while n < near:
            tile(marker, x, xs, w + n * ws, apart, y + n * 4, ys, streams * 4, k, ahead, 0)
            n += 1
        while n < streams:
            tile(marker, x, xs, w + n * ws, apart, y + n * 4, ys, streams * 4, k, jump, skew)
            n += 1
        n = streams * width
        while n < columns:
            column(marker, x, xs, w + n * ws, ws, y + n * 4, ys, 4, k, 0, 0)
            n += 1

    return band


_dot_tall = _dot_band(TALL, WIDE)
_dot_4 = _dot_band(4, 4 if REGISTERS == 32 else 2)
_dot_2 = _dot_band(2, 4)
_dot_1 = _dot_band(1, 4)


@compiled
def ahead_of(marker: Any) -> int:
    """How many bytes early weights of this type are asked for."""
    ahead: int = AHEAD * 2 // element_bytes(marker)
    return ahead


@compiled
def stream_columns(rows: int, columns: int) -> int:
    """How many of these columns each of the streams has in which `dot` reads their weights."""
    if rows >= TALL:
        return columns // WIDE
    if rows >= 4:
        return columns // (4 if REGISTERS == 32 else 2)
    return columns // 4


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
    then_apart: int,
) -> None:
    """y[m, n] = sum_k x[m, k] * w[n, k].

    The first rows ask for the weights `ahead` bytes early (0: they are in the cache), and towards the end for what
    is at `then`, which will be read next (0: nothing), in streams that lie `then_apart` bytes from each other; the
    other rows find them in the cache.
    """
    m = 0
    while m < rows:
        left, at, out = rows - m, x + m * xs, y + m * ys
        if left >= TALL:
            _dot_tall(marker, at, xs, w, ws, columns, out, ys, k, ahead, then, then_apart)
            m += TALL
        elif left >= 4:
            _dot_4(marker, at, xs, w, ws, columns, out, ys, k, ahead, then, then_apart)
            m += 4
        elif left >= 2:
            _dot_2(marker, at, xs, w, ws, columns, out, ys, k, ahead, then, then_apart)
            m += 2
        else:
            _dot_1(marker, at, xs, w, ws, columns, out, ys, k, ahead, then, then_apart)
            m += 1
        ahead, then = 0, 0


@compiled
def ask_for(w: int, size: int) -> None:
    """Asks for `size` bytes from memory, and does not wait for them."""
    for place in range(w, w + size, LINE_BYTES):
        ask_for_line(place)


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
