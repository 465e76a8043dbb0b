"""LLVM values that the CPU kernels are made of: fp32 vectors as wide as this processor's registers.

Weights may be bf16, fp16 or fp32 and are widened when they are loaded; everything is computed in fp32. A weight's type
travels through compiled code as the type of a `marker` argument, because that is what Numba specialises by:

    uint16 = bf16 (its bits)      int16 = fp16 (its bits)      float32 = fp32
    uint32 = bf16 again, whose pairs are not taken apart (`load_pair`): its sums have the order of fp32

This file writes LLVM's intermediate language by hand where Numba's own would not become the wanted instructions: a
widening load, a tile of accumulators that stays in registers, a sum over lanes in a stated order.
"""

from collections.abc import Sequence
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

F32: Final = ir.FloatType()
I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
MARKERS: Final = {"bfloat16": np.uint16(0), "float16": np.int16(0), "float32": np.float32(0)}
"""The marker of each dtype of weights."""

KINDS: Final = {
    **{dtype: (marker, marker) for dtype, marker in MARKERS.items()},
    "float32-of-bfloat16": (np.uint32(0), MARKERS["float32"]),
    "float32-of-float16": (MARKERS["float16"], MARKERS["float32"]),
}
"""What is compiled together, by name (`compiling.kind_of`): the marker of the base's weights, and that of the cache
and the adapters. Where the two differ, every number that is computed has the bits of "float32" with widened weights."""

ELEMENT_BYTES: Final = {types.uint16: 2, types.uint32: 2, types.int16: 2, types.float32: 4}


def _lanes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx") else 4


LANES: Final = _lanes()
"""How many fp32 numbers a register holds: 16 with AVX-512, 8 with AVX, 4 otherwise (NEON)."""

REGISTERS: Final = 16 if LANES == 8 else 32

VECTOR: Final = ir.VectorType(F32, LANES)


def constant(value: int) -> Any:
    """A 64-bit integer."""
    return ir.Constant(I64, value)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """An address (64-bit integer) as a pointer to `kind`."""
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Any, marker: Any, address: Any) -> Any:
    """LANES elements of the marker's type at an address of any alignment, as an fp32 vector."""
    stored = builder.load(pointer(builder, address, _stored(marker)))
    stored.align = ELEMENT_BYTES[marker]
    return _widen(builder, marker, stored)


def load_pair(builder: Any, marker: Any, address: Any) -> tuple[Any, Any]:
    """Two vectors of the 2 * LANES elements at an address: in order, but for uint16 those at even places, then those at
    odd ones. Two bf16 numbers are one 32-bit word, of which either half becomes fp32 in one instruction."""
    if marker != types.uint16:
        width = ELEMENT_BYTES[marker] * LANES
        return load(builder, marker, address), load(builder, marker, builder.add(address, constant(width)))
    wide = ir.VectorType(I32, LANES)
    words = builder.load(pointer(builder, address, wide))
    words.align = 2
    even = builder.shl(words, ir.Constant(wide, [16] * LANES))
    odd = builder.and_(words, ir.Constant(wide, [0xFFFF0000] * LANES))
    return builder.bitcast(even, VECTOR), builder.bitcast(odd, VECTOR)


def load_first(builder: Any, marker: Any, address: Any, mask: Any, other: float = 0.0) -> Any:
    """As `load`, but `other` where the mask [LANES x i1] is off; nothing is read there."""
    kind = _stored(marker)
    masked = _intrinsic(
        builder,
        f"llvm.masked.load.{_suffix(kind)}.p0",
        kind,
        (kind.as_pointer(), I32, mask.type, kind),
    )
    align = ir.Constant(I32, ELEMENT_BYTES[marker])
    stored = builder.call(masked, [pointer(builder, address, kind), align, mask, ir.Constant(kind, None)])
    widened = _widen(builder, marker, stored)
    return widened if not other else builder.select(mask, widened, ir.Constant(VECTOR, [other] * LANES))


def first_lanes(builder: Any, count: Any) -> Any:
    """The mask of the lanes below `count` (64-bit, may be above LANES or below 0)."""
    lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lanes, splat(builder, count))


def store_narrow(builder: Any, marker: Any, value: Any, address: Any, mask: Any = None) -> None:
    """An fp32 vector as LANES elements of the marker's type, rounded to nearest even; only where the mask is on."""
    stored = _narrow(builder, marker, value)
    place = pointer(builder, address, stored.type)
    if mask is None:
        builder.store(stored, place).align = ELEMENT_BYTES[marker]
        return
    kind = stored.type
    masked = _intrinsic(
        builder,
        f"llvm.masked.store.{_suffix(kind)}.p0",
        ir.VoidType(),
        (kind, kind.as_pointer(), I32, mask.type),
    )
    builder.call(masked, [stored, place, ir.Constant(I32, ELEMENT_BYTES[marker]), mask])


def splat(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, LANES), None))


def store(builder: Any, value: Any, address: Any) -> None:
    """One fp32 number."""
    builder.store(value, pointer(builder, address, value.type))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one rounding where the processor can."""
    kind = a.type
    fmuladd = _intrinsic(builder, f"llvm.fmuladd.{_suffix(kind)}", kind, (kind, kind, kind))
    return builder.call(fmuladd, [a, b, c])


def prefetch(builder: Any, address: Any) -> None:
    """Asks for the line at an address, which need not be readable, to come into the second-level cache.

    The first level has room for few lines that are on their way (16 on today's processors), and that bounds what it can
    ask for; from the second level lines come in time by themselves.
    """
    kind = ir.IntType(8).as_pointer()
    fetch = _intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), (kind, I32, I32, I32))
    arguments = [ir.Constant(I32, value) for value in (0, 2, 1)]  # to read, second level, data
    builder.call(fetch, [builder.inttoptr(address, kind), *arguments])


def lane_sums(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """The sum over the lanes of each vector, as fp32 numbers.

    A vector's halves are added, then the halves of that, and so on: the same order whatever else is summed beside it,
    so that a product does not depend on the tile that it was computed in.
    """
    sums = []
    for start in range(0, len(vectors), LANES):
        group = list(vectors[start : start + LANES])
        wanted, half = len(group), LANES // 2
        while half:
            group = [
                _fold(builder, group[i], group[i + 1] if i + 1 < len(group) else group[i], half)
                for i in range(0, len(group), 2)
            ]
            half //= 2
        # One vector is left. With fewer than LANES of them to sum, each one's sum stands in several lanes.
        places = _places(wanted)
        sums += [builder.extract_element(group[0], ir.Constant(I32, lane)) for lane in places]
    return sums


def _fold(builder: Any, first: Any, second: Any, half: int) -> Any:
    """Adds neighbouring runs of `half` lanes; the results of `first` come before those of `second`."""
    both = range(0, 2 * LANES, 2 * half)
    low = [start + lane for start in both for lane in range(half)]
    kind = ir.VectorType(I32, LANES)
    lower = builder.shuffle_vector(first, second, ir.Constant(kind, low))
    upper = builder.shuffle_vector(first, second, ir.Constant(kind, [lane + half for lane in low]))
    return builder.fadd(lower, upper)


def _places(count: int) -> list[int]:
    """Where `lane_sums` finds the sums of `count` vectors: the same folds, on numbers instead of vectors."""
    group, half = [[index] * LANES for index in range(count)], LANES // 2
    while half:
        folded = []
        for index in range(0, len(group), 2):
            pair = group[index] + (group[index + 1] if index + 1 < len(group) else group[index])
            folded.append([pair[start + lane] for start in range(0, 2 * LANES, 2 * half) for lane in range(half)])
        group, half = folded, half // 2
    return [group[0].index(index) for index in range(count)]


def _stored(marker: Any) -> Any:
    return ir.VectorType(
        {types.uint16: I16, types.uint32: I16, types.int16: ir.HalfType(), types.float32: F32}[marker], LANES
    )


def _widen(builder: Any, marker: Any, stored: Any) -> Any:
    if marker == types.float32:
        return stored
    if marker == types.int16:
        return builder.fpext(stored, VECTOR)
    wide = builder.zext(stored, ir.VectorType(I32, LANES))
    shifted = builder.shl(wide, ir.Constant(wide.type, [16] * LANES))
    return builder.bitcast(shifted, VECTOR)


def _narrow(builder: Any, marker: Any, value: Any) -> Any:
    if marker == types.float32:
        return value
    if marker == types.int16:
        return builder.fptrunc(value, _stored(marker))
    wide = ir.VectorType(I32, LANES)

    def every(number: int) -> Any:
        return ir.Constant(wide, [number] * LANES)

    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, every(16)), every(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, every(0x7FFF))), every(16))
    quiet_nan = builder.or_(builder.lshr(bits, every(16)), every(0x40))  # rounding could carry a NaN to infinity
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded)
    return builder.trunc(chosen, ir.VectorType(I16, LANES))


def _suffix(kind: Any) -> str:
    """How LLVM names a type in an intrinsic's name."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_suffix(kind.element)}"
    return {ir.FloatType: "f32", ir.HalfType: "f16"}.get(type(kind)) or f"i{kind.width}"


def _intrinsic(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(arguments)), name)
