"""Products of many rows, from panels: the sums of `tiles.dot_tile`, bit for bit, without its folds and its loads.

    y[m, n] = sum_k x[m, k] * w[n, k]

`dot` keeps k in the lanes of a register, so every element costs a fold over lanes, and a number of x is loaded again
for every few columns. Here the columns are in the lanes and a number of x is spread over them. To add in `dot`'s order
nevertheless, lane after lane is summed (every LANES-th k), and the lanes' sums are added as `vectors.lane_sums` folds
them: lane l with l + LANES / 2, those with their neighbours at LANES / 4, and so on. Taken in FOLD_ORDER, a finished
sum waits for its partner in a short stack, so a lane's sum costs one addition.

Both operands are packed in the order in which they are read, k = LANES * j + lane (woven as x is, for bf16):

    strip   fp32 [LANES (in FOLD_ORDER), ceil(k / LANES), STRIP]   STRIP rows of x
    group   fp32 [LANES (in FOLD_ORDER), ceil(k / LANES), LANES]   LANES columns, which are rows of w

Places beyond k are zero; rows beyond the last are the last one again, and nobody stores their sums.

One core, AVX-512, 188 GFLOP/s at most: tiles run at 172 to 177 (k = 576 to 4864), those of `dot` at 164 to 120, less
the longer its rows are. Packing costs half a cycle a number; 50 to 90 rows save that (`many_rows.MANY`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.compiling import instruction
from kernels.cpu.tiles import BLOCK, counting, element, row_addresses, vector_place
from kernels.cpu.vectors import (
    ELEMENT_BYTES,
    F32,
    I32,
    I64,
    LANES,
    REGISTERS,
    VECTOR,
    constant,
    first_lanes,
    load,
    load_first,
    multiply_add,
    pointer,
    splat,
    store_narrow,
)

STRIP: Final = min(8 if REGISTERS == 32 else 4, LANES)
"""Rows of a tile."""

GROUPS: Final = 3 if REGISTERS == 32 else 2
"""Vectors of columns of the widest tile: STRIP * GROUPS sums, GROUPS vectors and a spread number are in registers."""

_LEVELS: Final = LANES.bit_length() - 1
FOLD_ORDER: Final = tuple(int(f"{place:0{_LEVELS}b}"[::-1], 2) for place in range(LANES))
"""The lane at each place; reversing bits is its own inverse, so also the place of each lane."""


def packing(width: int) -> Callable[..., None]:
    """(marker, rows, k, target, apart): packs LANES rows of the marker's type, whose addresses stand at `rows`.

    width: LANES for a group, STRIP for LANES / STRIP strips, each `apart` bytes after the one before.
    """

    @instruction
    def pack(_: Any, marker: Any, rows: Any, k: Any, target: Any, apart: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            _, rows, k, target, apart = arguments
            places = [builder.load(pointer(builder, builder.add(rows, constant(row * 8)), I64)) for row in range(LANES)]
            lane_bytes = builder.mul(_steps(builder, k), constant(width * 4))

            def write(at: Any, vectors: list[Any]) -> None:
                start = builder.add(target, builder.mul(builder.udiv(at, constant(LANES)), constant(width * 4)))
                for lane, numbers in enumerate(_transposed(builder, vectors)):
                    place = builder.add(start, builder.mul(lane_bytes, constant(FOLD_ORDER[lane])))
                    for part in range(LANES // width):
                        lanes = ir.Constant(ir.VectorType(I32, width), list(range(part * width, (part + 1) * width)))
                        some = builder.shuffle_vector(numbers, numbers, lanes)
                        where = builder.add(place, builder.mul(apart, constant(part)))
                        builder.store(some, pointer(builder, where, some.type)).align = 4

            whole = builder.and_(k, constant(-BLOCK))
            read = [vector_place(builder) for _ in range(LANES)]
            with counting(builder, constant(0), k, LANES) as at:
                # Branches that meet again before the transpose, which is most of the code, and of the compiler's time.
                with builder.if_else(builder.icmp_signed("<", at, whole)) as (inside, behind):
                    with inside:
                        for place, numbers in zip(places, read, strict=True):
                            builder.store(_load_half(builder, marker, place, at), numbers)
                    with behind:
                        mask = first_lanes(builder, builder.sub(k, at))
                        for place, numbers in zip(places, read, strict=True):
                            place = element(builder, place, at, ELEMENT_BYTES[marker])
                            builder.store(load_first(builder, marker, place, mask), numbers)
                write(at, [builder.load(numbers) for numbers in read])
            return context.get_dummy_value()

        return types.void(marker, *(types.int64,) * 4), generate

    return pack


def panel_tile(groups: int) -> Callable[..., None]:
    """(x, w, apart, k, y, y_stride, rows, columns): writes y[:rows, :columns] of a strip and `groups` groups.

    x: the strip; w: the first group, the others `apart` bytes after each other. rows <= STRIP,
    columns <= groups * LANES.
    """
    count = STRIP * groups

    @instruction
    def tile(_: Any, x: Any, w: Any, apart: Any, k: Any, y: Any, ys: Any, rows: Any, columns: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
            x, w, apart, k, y, ys, rows, columns = arguments
            steps, w_groups = _steps(builder, k), row_addresses(builder, w, apart, groups)
            sums = [vector_place(builder) for _ in range(count)]
            stack = cgutils.alloca_once(builder, ir.ArrayType(VECTOR, count * (_LEVELS + 1)))
            stack.align = LANES * 4

            def waiting(level: Any, index: int) -> Any:
                at = builder.add(builder.mul(level, constant(count)), constant(index))
                return builder.gep(stack, [constant(0), at])

            with counting(builder, constant(0), constant(LANES), 1) as place:
                for total in sums:
                    builder.store(ir.Constant(VECTOR, None), total)
                start = builder.mul(place, steps)
                with counting(builder, start, builder.add(start, steps), 1) as at:
                    weights = [
                        load(builder, types.float32, element(builder, group, at, LANES * 4)) for group in w_groups
                    ]
                    strip = element(builder, x, at, STRIP * 4)
                    for m in range(STRIP):
                        number = builder.load(pointer(builder, builder.add(strip, constant(m * 4)), F32))
                        spread = splat(builder, number)
                        for n, weight in enumerate(weights):
                            total = sums[m * groups + n]
                            builder.store(multiply_add(builder, spread, weight, builder.load(total)), total)
                # As many partners wait as this place's number ends in ones: 1 takes 0, 3 takes 2 and then 0 + 1.
                partners = builder.cttz(builder.add(place, constant(1)), ir.Constant(ir.IntType(1), 1))
                with counting(builder, constant(0), partners, 1) as level:
                    for index, total in enumerate(sums):
                        builder.store(builder.fadd(builder.load(waiting(level, index)), builder.load(total)), total)
                for index, total in enumerate(sums):
                    builder.store(builder.load(total), waiting(partners, index))
            masks = [first_lanes(builder, builder.sub(columns, constant(n * LANES))) for n in range(groups)]
            for m, row in enumerate(row_addresses(builder, y, ys, STRIP)):
                with builder.if_then(builder.icmp_signed("<", constant(m), rows)):
                    for n, mask in enumerate(masks):
                        place = builder.add(row, constant(n * LANES * 4))
                        store_narrow(builder, types.float32, builder.load(sums[m * groups + n]), place, mask)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 8), generate

    return tile


@instruction
def integers_at(_: Any, address: Any) -> Any:
    """(address): a pointer to 64-bit integers, for `numba.carray`."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return pointer(builder, arguments[0], I64)

    return types.CPointer(types.int64)(types.int64), generate


def _load_half(builder: Any, marker: Any, row: Any, at: Any) -> Any:
    """The numbers of a row from its `at`-th on, a multiple of LANES: a half of what `vectors.load_pair` gives."""
    if marker != types.uint16:
        return load(builder, marker, element(builder, row, at, ELEMENT_BYTES[marker]))
    wide = ir.VectorType(I32, LANES)
    block = element(builder, row, builder.and_(at, constant(-BLOCK)), ELEMENT_BYTES[marker])
    words = builder.load(pointer(builder, block, wide))
    words.align = 2
    first = builder.icmp_unsigned("==", builder.and_(at, constant(LANES)), constant(0))
    shift = builder.select(first, ir.Constant(I32, 16), ir.Constant(I32, 0))
    high = builder.and_(builder.shl(words, splat(builder, shift)), ir.Constant(wide, [0xFFFF0000] * LANES))
    return builder.bitcast(high, VECTOR)


def _steps(builder: Any, k: Any) -> Any:
    """ceil(k / LANES)."""
    return builder.udiv(builder.add(k, constant(LANES - 1)), constant(LANES))


def _transposed(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """LANES vectors as LANES others: lane i of the j-th is lane j of the i-th. Halves change places, then
    quarters, and so on."""
    rows, distance = list(vectors), LANES // 2
    while distance:
        lanes = range(LANES)
        low = [LANES + lane - distance if lane & distance else lane for lane in lanes]
        high = [LANES + lane if lane & distance else lane + distance for lane in lanes]
        for i in (row for row in lanes if not row & distance):
            pair = rows[i], rows[i + distance]
            rows[i], rows[i + distance] = (
                builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, LANES), order)) for order in (low, high)
            )
        distance //= 2
    return rows
