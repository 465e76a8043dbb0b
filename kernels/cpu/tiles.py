"""The two loops that everything heavy is made of, for a few rows at once, with their sums in registers.

    dot:   y[m, n] = sum_k x[m, k] * w[n, k]              a projection, the scores of attention
    axpy:  y[m, c] = y[m, c] + sum_j a[m, j] * b[j, c]    the expand of an adapter, the values of attention

x, y and a are fp32; w and b have the marker's type (`vectors.py`). Addresses and strides are in bytes; neighbours in k
and in c lie side by side. An element of y is computed in the same order whatever the tile: `dot` adds up each lane over
k and then the lanes, `axpy` goes through j one by one. So a row's numbers do not depend on its neighbours.

`dot` waits for its weights, which come from memory, so it asks for them `ahead` bytes early: the processor's own
prefetching stops at the end of a page, and looks ahead in pages, not far. So the columns of a tile should lie in pages
of their own, far from each other (`rows.py`): its prefetching then runs in each of them, and a line that it has on its
way already holds a place in the first-level cache for a shorter time, of which there are 16.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.compiling import instruction
from kernels.cpu.vectors import (
    ELEMENT_BYTES,
    F32,
    LANES,
    VECTOR,
    constant,
    first_lanes,
    lane_sums,
    load,
    load_first,
    load_pair,
    multiply_add,
    pointer,
    prefetch,
    splat,
    store,
    store_narrow,
)

BLOCK: Final = 2 * LANES
"""Numbers of x that `dot` takes at once. Where the weights' marker is uint16 they are in *woven* order: of each whole
block those at even places, then those at odd ones, as `vectors.load_pair` widens the weights; `weave` brings them
there."""

LINE_BYTES: Final = 64
"""Of the cache: what one `prefetch` asks for."""


def dot_tile(rows: int, columns: int) -> Callable[..., None]:
    """(marker, x, x_stride, w, w_stride, y, y_stride, y_step, k, ahead, skew): writes y[:rows, n * y_step] of each n.

    Asks for the weights `ahead` bytes later, of column n at `ahead + n * skew`.
    """

    @instruction
    def tile(
        _: Any, marker: Any, x: Any, xs: Any, w: Any, ws: Any, y: Any, ys: Any, step: Any, k: Any, ahead: Any, skew: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            _, x, xs, w, ws, y, ys, step, size, ahead, skew = arguments
            aheads = row_addresses(builder, ahead, skew, columns)
            x_rows, w_rows = row_addresses(builder, x, xs, rows), row_addresses(builder, w, ws, columns)
            sums = [vector_place(builder) for _ in range(rows * columns)]

            def multiply(at: Any, weights: Sequence[Any], mask: Any) -> None:
                for m, row in enumerate(x_rows):
                    place = element(builder, row, at, 4)
                    numbers = (
                        load(builder, types.float32, place)
                        if mask is None
                        else load_first(builder, types.float32, place, mask)
                    )
                    for n, weight in enumerate(weights):
                        place = sums[m * columns + n]
                        builder.store(multiply_add(builder, numbers, weight, builder.load(place)), place)

            whole = builder.and_(size, constant(-BLOCK))
            with counting(builder, constant(0), whole, BLOCK) as at:
                places = [element(builder, row, at, ELEMENT_BYTES[marker]) for row in w_rows]
                for place, early in zip(places, aheads, strict=True):
                    for line in range(0, BLOCK * ELEMENT_BYTES[marker], LINE_BYTES):
                        prefetch(builder, builder.add(place, builder.add(early, constant(line))))
                pairs = [load_pair(builder, marker, place) for place in places]
                for part in range(2):
                    multiply(builder.add(at, constant(part * LANES)), [pair[part] for pair in pairs], None)
            with counting(builder, whole, size, LANES) as at:
                mask = first_lanes(builder, builder.sub(size, at))
                places = [element(builder, row, at, ELEMENT_BYTES[marker]) for row in w_rows]
                multiply(at, [load_first(builder, marker, place, mask) for place in places], mask)
            for index, total in enumerate(lane_sums(builder, [builder.load(place) for place in sums])):
                m, n = divmod(index, columns)
                place = builder.add(builder.mul(step, constant(n)), builder.mul(ys, constant(m)))
                store(builder, total, builder.add(y, place))
            return context.get_dummy_value()

        return types.void(marker, *(types.int64,) * 10), generate

    return tile


def axpy_tile(rows: int, vectors: int, *, partial: bool = False) -> Callable[..., None]:
    """(marker, a, a_stride, b, b_stride, y, y_stride, count, columns): adds to y[:rows, :vectors * LANES]; j < count.

    partial: only the first `columns` of them are read and written.
    """

    @instruction
    def tile(
        _: Any, marker: Any, a: Any, a_stride: Any, b: Any, bs: Any, y: Any, ys: Any, count: Any, columns: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            _, a, a_stride, b, bs, y, ys, count, columns = arguments
            masks = [first_lanes(builder, builder.sub(columns, constant(part * LANES))) for part in range(vectors)]

            def read(kind: Any, row: Any) -> list[Any]:
                places = [element(builder, row, constant(part * LANES), ELEMENT_BYTES[kind]) for part in range(vectors)]
                if partial:
                    return [load_first(builder, kind, place, mask) for place, mask in zip(places, masks, strict=True)]
                return [load(builder, kind, place) for place in places]

            a_rows, y_rows = row_addresses(builder, a, a_stride, rows), row_addresses(builder, y, ys, rows)
            sums = [[vector_place(builder, start) for start in read(types.float32, row)] for row in y_rows]
            with counting(builder, constant(0), count, 1) as j:
                numbers = read(marker, builder.add(b, builder.mul(bs, j)))
                for factors, totals in zip(a_rows, sums, strict=True):
                    factor = builder.load(pointer(builder, element(builder, factors, j, 4), F32))
                    for total, number in zip(totals, numbers, strict=True):
                        builder.store(multiply_add(builder, splat(builder, factor), number, builder.load(total)), total)
            for row, totals in zip(y_rows, sums, strict=True):
                for part, (total, mask) in enumerate(zip(totals, masks, strict=True)):
                    place = element(builder, row, constant(part * LANES), 4)
                    store_narrow(builder, types.float32, builder.load(total), place, mask if partial else None)
            return context.get_dummy_value()

        return types.void(marker, *(types.int64,) * 8), generate

    return tile


def reduction(kind: str) -> Callable[..., Any]:
    """(x, count): the "sum", the sum of "squares" or the "greatest" of fp32 numbers; sums in the order of `dot`."""

    @instruction
    def reduce(_: Any, x: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            x, count = arguments
            least = ir.Constant(VECTOR, [float("-inf")] * LANES)
            total = vector_place(builder, least if kind == "greatest" else None)

            def take(numbers: Any) -> None:
                so_far = builder.load(total)
                if kind == "sum":
                    builder.store(builder.fadd(so_far, numbers), total)
                elif kind == "squares":
                    builder.store(multiply_add(builder, numbers, numbers, so_far), total)
                else:
                    builder.store(_greater(builder, numbers, so_far), total)

            whole = builder.and_(count, constant(-LANES))
            with counting(builder, constant(0), whole, LANES) as at:
                take(load(builder, types.float32, element(builder, x, at, 4)))
            with counting(builder, whole, count, LANES) as at:
                mask = first_lanes(builder, builder.sub(count, at))
                other = float("-inf") if kind == "greatest" else 0.0
                take(load_first(builder, types.float32, element(builder, x, at, 4), mask, other))
            end = builder.load(total)
            if kind != "greatest":
                return lane_sums(builder, [end])[0]
            return functools.reduce(
                functools.partial(_greater, builder), (_lane(builder, end, lane) for lane in range(LANES))
            )

        return types.float32(types.int64, types.int64), generate

    return reduce


@instruction
def first_greatest(_: Any, x: Any, count: Any) -> Any:
    """(x, count): the index of the greatest of fp32 numbers, of the first one where several are; -1 when one of them
    is infinite or no number."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        x, count = arguments
        indices = ir.VectorType(ir.IntType(64), LANES)
        greatest = vector_place(builder, ir.Constant(VECTOR, [float("-inf")] * LANES))
        spoilt = vector_place(builder)
        where = cgutils.alloca_once(builder, indices)
        builder.store(ir.Constant(indices, [-1] * LANES), where)
        lanes = ir.Constant(indices, list(range(LANES)))

        def take(at: Any, numbers: Any, seen: Any) -> None:
            larger = builder.fcmp_ordered(">", numbers, builder.load(greatest))
            builder.store(builder.select(larger, numbers, builder.load(greatest)), greatest)
            places = builder.add(splat(builder, at), lanes)
            builder.store(builder.select(larger, places, builder.load(where)), where)
            zero = ir.Constant(VECTOR, None)  # a number less itself, unless it is infinite or none
            nothing = builder.fsub(numbers, numbers)
            builder.store(
                builder.fadd(builder.load(spoilt), nothing if seen is None else builder.select(seen, nothing, zero)),
                spoilt,
            )

        whole = builder.and_(count, constant(-LANES))
        with counting(builder, constant(0), whole, LANES) as at:
            take(at, load(builder, types.float32, element(builder, x, at, 4)), None)
        with counting(builder, whole, count, LANES) as at:
            mask = first_lanes(builder, builder.sub(count, at))
            take(at, load_first(builder, types.float32, element(builder, x, at, 4), mask, float("-inf")), mask)
        best, place = (_lane(builder, builder.load(vector), 0) for vector in (greatest, where))
        for lane in range(1, LANES):
            other, its = (_lane(builder, builder.load(vector), lane) for vector in (greatest, where))
            tied = builder.and_(builder.fcmp_ordered("==", other, best), builder.icmp_unsigned("<", its, place))
            better = builder.or_(builder.fcmp_ordered(">", other, best), tied)
            best, place = builder.select(better, other, best), builder.select(better, its, place)
        total = lane_sums(builder, [builder.load(spoilt)])[0]
        return builder.select(builder.fcmp_ordered("==", total, ir.Constant(F32, 0.0)), place, constant(-1))

    return types.int64(types.int64, types.int64), generate


def _lane(builder: Any, vector: Any, lane: int) -> Any:
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))


def _greater(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@instruction
def element_bytes(_: Any, marker: Any) -> Any:
    """(marker): the size of its type, as a number that compiled code knows beforehand."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return constant(ELEMENT_BYTES[marker])

    return types.int64(marker), generate


@instruction
def floats_at(_: Any, address: Any) -> Any:
    """(address): a pointer to fp32 numbers, for `numba.carray`."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return pointer(builder, arguments[0], F32)

    return types.CPointer(types.float32)(types.int64), generate


@instruction
def weave(_: Any, marker: Any, x: Any, columns: Any) -> Any:
    """(marker, x, columns): fp32 numbers in place into the order in which `dot` takes them for weights of this type."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        _, x, columns = arguments
        if marker == types.uint16:
            with counting(builder, constant(0), builder.and_(columns, constant(-BLOCK)), BLOCK) as at:
                places = [element(builder, builder.add(x, constant(part * LANES * 4)), at, 4) for part in range(2)]
                first, second = (load(builder, types.float32, place) for place in places)
                for part, place in enumerate(places):
                    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(part, BLOCK, 2)))
                    woven = builder.shuffle_vector(first, second, lanes)
                    store_narrow(builder, types.float32, woven, place)
        return context.get_dummy_value()

    return types.void(marker, types.int64, types.int64), generate


@instruction
def ask_for_line(_: Any, address: Any) -> Any:
    """(address): asks for the line there to come from memory; it need not be readable."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@instruction
def byte_at(_: Any, address: Any) -> Any:
    """(address): the byte there."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return builder.load(pointer(builder, arguments[0], ir.IntType(8)))

    return types.uint8(types.int64), generate


def converting(*, narrow: bool, partial: bool) -> Callable[..., None]:
    """(marker, source, target, columns): LANES numbers from fp32 to the marker's type (`narrow`) or back.

    partial: only the first `columns` of them.
    """

    @instruction
    def convert(_: Any, marker: Any, source: Any, target: Any, columns: Any) -> Any:
        kinds = (types.float32, marker) if narrow else (marker, types.float32)

        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            _, source, target, columns = arguments
            if partial:
                mask = first_lanes(builder, columns)
                store_narrow(builder, kinds[1], load_first(builder, kinds[0], source, mask), target, mask)
            else:
                store_narrow(builder, kinds[1], load(builder, kinds[0], source), target)
            return context.get_dummy_value()

        return types.void(marker, *(types.int64,) * 3), generate

    return convert


def row_addresses(builder: Any, address: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(address, builder.mul(stride, constant(row))) for row in range(count)]


def element(builder: Any, address: Any, index: Any, width: int) -> Any:
    return builder.add(address, builder.mul(index, constant(width)))


def vector_place(builder: Any, start: Any = None) -> Any:
    """A place for a vector, which LLVM makes a register."""
    place = cgutils.alloca_once(builder, VECTOR)
    builder.store(ir.Constant(VECTOR, None) if start is None else start, place)
    return place


@contextmanager
def counting(builder: Any, start: Any, stop: Any, step: int) -> Iterator[Any]:
    """The body of a loop over start, start + step ... below stop."""
    with cgutils.for_range_slice(builder, start, stop, constant(step), inc=True) as (index, _):
        yield index
