"""Expand: rank -> out, the second half of y += scaling * (x A^T) B, for every segment and slice of a group.

    y[t, columns of slice s] += sum_j (scaling[slot, s] * sum_p h[t, s, p, j]) * b[row_offset + j, columns of slice s]

    h        [tokens, slices, planes, max_rank]  fp32, from `lora_shrink`; planes are added in order
    b        [rows, out]                         the pool, transposed; columns of the slices side by side (q | k | v)
    scaling  [slots, slices]                     fp32, applied in fp32
    y        [tokens, out]                       changed in place, summed in fp32 and rounded once; rows without
                                                 adapter, and slices that an adapter lacks, are not touched

Or y becomes the sum alone (`adds=False`), in zeros of the caller's: a decode step computes it beside the base product,
and the kernel that reads the product adds the two.

Rank-exact like the shrink, and like it two kernels, both over tiles x blocks of columns, so that every b is read once
per tile and every y once. *Tiles of one token* multiply in fp32. *Tiles of 16* use tensor cores, for which the scaled h
is rounded to the weights' dtype; a tile has 16 rows and no more, because on Hopper a larger one would become
instructions that have been miscompiled with an operand in registers, as h is.

The chain of waits decides at small steps, not the bytes: a program asks for b before it needs it. With `early` (sm_90)
it is even launched while the kernel before it still runs, and waits for that only before it reads h and y, so that the
weights are on their way by then.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from kernels.segments import TILE_ROWS, DeviceSegments, Segments, tiles_of
from kernels.triton_jit import (
    CompileCase,
    Number,
    Pointer,
    cdiv,
    constexpr,
    jit,
    launches_early,
    pointer,
    runs_kernel,
    tl,
)
from kernels.tuning import device_of, tuned

MAX_SLICES: Final = 3
# Fewer leave processors of a large card idle.
_PROGRAMS: Final = 96


class ExpandPlan(NamedTuple):
    """How one launch is cut. early: 1 launches it while the kernel before it runs."""

    column_block: int
    rank_block: int
    num_warps: int
    num_stages: int
    early: int = 0


def lora_expand_reference(
    h: torch.Tensor,
    b: torch.Tensor,
    scaling: torch.Tensor,
    slices: Sequence[int],
    segments: Segments | DeviceSegments,
    y: torch.Tensor,
    first_slice: int = 0,
    *,
    adds: bool = True,
) -> None:
    """Adds to y; one matrix product per segment and slice."""
    for tile in tiles_of(segments):
        column = 0
        for index, width in enumerate(slices):
            columns = slice(column, column + width)
            if tile.has(first_slice + index):
                scaled = h[tile.places, index, :, : tile.rank].sum(1).mul_(scaling[tile.slot, index]).to(b.dtype)
                y[tile.places, columns].addmm_(scaled, b[tile.rows, columns], beta=int(adds))
            column += width


@jit
def _columns(block: Number, WIDTH_0: constexpr, WIDTH_1: constexpr, WIDTH_2: constexpr, COLUMN_BLOCK: constexpr) -> Any:
    """Slice, first column and end of the slice's columns, for a block of columns: none lies in two slices."""
    blocks_0 = tl.cdiv(WIDTH_0, COLUMN_BLOCK)
    blocks_1 = tl.cdiv(WIDTH_1, COLUMN_BLOCK)
    first = block * COLUMN_BLOCK
    slice_ = tl.where(block >= blocks_0, 1, 0) + tl.where(block >= blocks_0 + blocks_1, 1, 0)
    first = tl.where(slice_ == 1, WIDTH_0 + (block - blocks_0) * COLUMN_BLOCK, first)
    first = tl.where(slice_ == 2, WIDTH_0 + WIDTH_1 + (block - blocks_0 - blocks_1) * COLUMN_BLOCK, first)
    end = tl.where(slice_ == 0, WIDTH_0, tl.where(slice_ == 1, WIDTH_0 + WIDTH_1, WIDTH_0 + WIDTH_1 + WIDTH_2))
    return slice_, first, end


@jit
def _added_planes(h: Pointer, known: Number, PLANES: constexpr, max_rank: Number) -> Any:
    """The sum of a place's planes, in order."""
    total = tl.load(h, mask=known, other=0.0)
    for plane in tl.static_range(1, PLANES):
        total += tl.load(h + plane * max_rank, mask=known, other=0.0)
    return total


@jit
def _b_part(
    b: Pointer, rows: Number, rank: Number, columns: Number, inside: Number, b_stride: Number, WHOLE: constexpr
) -> Any:
    """Some rows of b, in a block of columns; those past the rank are not read."""
    places = b + rows.to(tl.int64)[:, None] * b_stride + columns[None, :]
    if WHOLE:
        return tl.load(places, mask=(rows < rank)[:, None], other=0.0)
    return tl.load(places, mask=(rows < rank)[:, None] & inside[None, :], other=0.0)


@jit
def _expand_rows_kernel(
    h: Pointer, b: Pointer, scaling: Pointer, y: Pointer, tiles: Pointer,
    b_stride: Number, scaling_stride: Number, y_stride: Number, capacity: Number, max_rank: Number,
    WIDTH_0: constexpr, WIDTH_1: constexpr, WIDTH_2: constexpr, SLICES: constexpr, PLANES: constexpr,
    FIRST_SLICE: constexpr, COLUMN_BLOCK: constexpr, RANK_BLOCK: constexpr, WHOLE: constexpr, EARLY: constexpr,
    ADDS: constexpr,
) -> None:  # fmt: skip
    tile = tl.program_id(0)
    token = tl.load(tiles + tile).to(tl.int64)
    slot = tl.load(tiles + 2 * capacity + tile).to(tl.int64)
    offset = tl.load(tiles + 3 * capacity + tile).to(tl.int64)
    rank = tl.load(tiles + 4 * capacity + tile)
    owned = tl.load(tiles + 5 * capacity + tile)
    slice_, column, end = _columns(tl.program_id(1), WIDTH_0, WIDTH_1, WIDTH_2, COLUMN_BLOCK)
    # All fields are asked, so that they are loaded together and not one after the branch that another decides.
    if (rank <= 0) | (offset < 0) | (slot < 0) | (token < 0) | ((owned >> (FIRST_SLICE + slice_)) & 1 == 0):
        return
    columns = column + tl.arange(0, COLUMN_BLOCK)
    inside = columns < end
    factor = tl.load(scaling + slot * scaling_stride + slice_)
    y += token * y_stride + columns
    h += (token * SLICES + slice_) * (PLANES * max_rank)
    b += offset * b_stride
    rows = tl.arange(0, RANK_BLOCK)
    b_part = _b_part(b, rows, rank, columns, inside, b_stride, WHOLE)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    scaled = _added_planes(h + rows, rows < rank, PLANES, max_rank)
    if ADDS:
        before = tl.load(y) if WHOLE else tl.load(y, mask=inside, other=0.0)
    sums = (scaled * factor)[:, None] * b_part.to(tl.float32)
    # Unrolled: the weights of four turns are on their way at once.
    for first in tl.range(RANK_BLOCK, rank, RANK_BLOCK, loop_unroll_factor=4):
        rows = first + tl.arange(0, RANK_BLOCK)
        b_part = _b_part(b, rows, rank, columns, inside, b_stride, WHOLE)
        scaled = _added_planes(h + rows, rows < rank, PLANES, max_rank)
        sums += (scaled * factor)[:, None] * b_part.to(tl.float32)
    total = tl.sum(sums, 0)
    if ADDS:
        total += before.to(tl.float32)
    if WHOLE:
        tl.store(y, total.to(y.dtype.element_ty))
    else:
        tl.store(y, total.to(y.dtype.element_ty), mask=inside)


@jit
def _expand_tiles_kernel(
    h: Pointer, b: Pointer, scaling: Pointer, y: Pointer, tiles: Pointer,
    b_stride: Number, scaling_stride: Number, y_stride: Number, capacity: Number, max_rank: Number,
    WIDTH_0: constexpr, WIDTH_1: constexpr, WIDTH_2: constexpr, SLICES: constexpr, PLANES: constexpr,
    FIRST_SLICE: constexpr, COLUMN_BLOCK: constexpr, RANK_BLOCK: constexpr, WHOLE: constexpr, EARLY: constexpr,
    ADDS: constexpr, ROWS: constexpr,
) -> None:  # fmt: skip
    tile = tl.program_id(0)
    first_token = tl.load(tiles + tile)
    count = tl.load(tiles + capacity + tile)
    slot = tl.load(tiles + 2 * capacity + tile).to(tl.int64)
    offset = tl.load(tiles + 3 * capacity + tile).to(tl.int64)
    rank = tl.load(tiles + 4 * capacity + tile)
    owned = tl.load(tiles + 5 * capacity + tile)
    slice_, column, end = _columns(tl.program_id(1), WIDTH_0, WIDTH_1, WIDTH_2, COLUMN_BLOCK)
    if (rank <= 0) | (offset < 0) | (slot < 0) | (first_token < 0) | ((owned >> (FIRST_SLICE + slice_)) & 1 == 0):
        return
    lines = tl.arange(0, ROWS)
    tokens = (first_token + lines).to(tl.int64)
    columns = column + tl.arange(0, COLUMN_BLOCK)
    inside = columns < end
    factor = tl.load(scaling + slot * scaling_stride + slice_)
    y_rows = y + tokens[:, None] * y_stride + columns[None, :]
    touched = (lines < count)[:, None] & inside[None, :]
    h_rows = h + ((tokens * SLICES + slice_) * (PLANES * max_rank))[:, None]
    b += offset * b_stride
    rows = tl.arange(0, RANK_BLOCK)
    b_part = _b_part(b, rows, rank, columns, inside, b_stride, WHOLE)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if ADDS:
        before = tl.load(y_rows, mask=touched, other=0.0)
    known = (lines < count)[:, None] & (rows < rank)[None, :]
    scaled = _added_planes(h_rows + rows[None, :], known, PLANES, max_rank)
    sums = tl.dot((scaled * factor).to(b_part.dtype), b_part, input_precision="ieee")
    for first in tl.range(RANK_BLOCK, rank, RANK_BLOCK, loop_unroll_factor=2):
        rows = first + tl.arange(0, RANK_BLOCK)
        known = (lines < count)[:, None] & (rows < rank)[None, :]
        scaled = _added_planes(h_rows + rows[None, :], known, PLANES, max_rank)
        b_part = _b_part(b, rows, rank, columns, inside, b_stride, WHOLE)
        sums = tl.dot((scaled * factor).to(b_part.dtype), b_part, sums, input_precision="ieee")
    if ADDS:
        sums += before.to(tl.float32)
    tl.store(y_rows, sums.to(y.dtype.element_ty), mask=touched)


def expand_place(segments: DeviceSegments, slices: Sequence[int]) -> dict[str, int]:
    """What a tuned plan depends on."""
    widths = {"slices": len(slices), "out": sum(slices)}
    return {"tile_rows": segments.tile_rows, "tiles": segments.num_tiles, **widths}


def expand_plan(segments: DeviceSegments, slices: Sequence[int]) -> ExpandPlan:
    """The plan of a launch: the tuned one, or the one that arithmetic suggests."""
    place = expand_place(segments, slices)
    return tuned(device_of(segments.words), "lora_expand", place, default_plan(segments, slices))


def default_plan(segments: DeviceSegments, slices: Sequence[int]) -> ExpandPlan:
    """Blocks as wide as leave a program for every processor of a large card: wide ones read longer runs of memory."""
    early = int(launches_early(segments.words))
    if segments.tile_rows == 1:
        wide = (1024, 512, 256)
        blocks = (block for block in wide if segments.num_tiles * sum(slices) // block >= _PROGRAMS)
        column_block = next(blocks, 128)
        return ExpandPlan(column_block, 16 if column_block < 512 else 8, 4, 1, early)
    return ExpandPlan(128, 32, 4, 1, early)


def lora_expand(
    h: torch.Tensor,
    b: torch.Tensor,
    scaling: torch.Tensor,
    slices: Sequence[int],
    segments: Segments | DeviceSegments,
    y: torch.Tensor,
    first_slice: int = 0,
    plan: ExpandPlan | None = None,
    *,
    adds: bool = True,
) -> None:
    """Adds to y as above, or, with adds=False, writes over what is there. slices: the slices' widths. first_slice,
    plan: as for `lora_shrink`.

    Raises ValueError when shapes, dtypes, devices or strides do not fit together.
    """
    _check(h, b, scaling, slices, segments, y)
    if not runs_kernel(y):
        lora_expand_reference(h, b, scaling, slices, segments, y, first_slice, adds=adds)
        return
    if not isinstance(segments, DeviceSegments):
        raise ValueError("lora_expand: on a device segments must be DeviceSegments")  # noqa: TRY004 (as the others)
    if segments.num_tiles:
        plan = plan or expand_plan(segments, slices)
        if not adds:
            plan = plan._replace(early=0)  # as `lora_shrink.beside_plan`
        kernel = _expand_rows_kernel if segments.tile_rows == 1 else _expand_tiles_kernel
        kernel[(segments.num_tiles, sum(cdiv(width, plan.column_block) for width in slices))](
            h, b, scaling, y, segments.words, b.stride(0), scaling.stride(0), y.stride(0), segments.words.stride(0),
            h.shape[3], **_constants(plan, slices, h.shape[2], segments.tile_rows, first_slice), ADDS=adds,
            num_warps=plan.num_warps, num_stages=plan.num_stages, launch_pdl=bool(plan.early),
        )  # fmt: skip


def _constants(
    plan: ExpandPlan, slices: Sequence[int], planes: int, tile_rows: int, first_slice: int
) -> dict[str, int | bool]:
    widths = [*slices, 0, 0][:MAX_SLICES]
    constants: dict[str, int | bool] = {f"WIDTH_{index}": width for index, width in enumerate(widths)}
    constants |= {"SLICES": len(slices), "PLANES": planes, "FIRST_SLICE": first_slice}
    constants |= {"COLUMN_BLOCK": plan.column_block, "RANK_BLOCK": plan.rank_block, "EARLY": plan.early}
    constants["WHOLE"] = all(width % plan.column_block == 0 for width in slices)
    return constants if tile_rows == 1 else {**constants, "ROWS": tile_rows}


def _check(
    h: torch.Tensor,
    b: torch.Tensor,
    scaling: torch.Tensor,
    slices: Sequence[int],
    segments: Segments | DeviceSegments,
    y: torch.Tensor,
) -> None:
    if h.dim() != 4 or h.shape[1] != len(slices) or scaling.shape[1] != len(slices) or sum(slices) != b.shape[1]:
        raise ValueError(f"lora_expand: slices {tuple(slices)}, h {tuple(h.shape)}, b {tuple(b.shape)}")
    if not 1 <= len(slices) <= MAX_SLICES:
        raise ValueError(f"lora_expand: {len(slices)} slices, {MAX_SLICES} at most")
    if y.shape != (segments.num_tokens, b.shape[1]) or h.shape[0] != y.shape[0] or h.shape[3] != segments.max_rank:
        raise ValueError(f"lora_expand: y {tuple(y.shape)}, h {tuple(h.shape)}, tokens {segments.num_tokens}")
    if b.dtype != y.dtype or h.dtype != torch.float32 or scaling.dtype != torch.float32:
        raise ValueError(f"lora_expand: h {h.dtype}, b {b.dtype}, y {y.dtype}, scaling {scaling.dtype}")
    if not h.is_contiguous() or b.stride(1) != 1 or y.stride(1) != 1 or scaling.stride(1) != 1:
        raise ValueError(
            f"lora_expand: h and rows must be contiguous, strides are h {h.stride()}, b {b.stride()}, y {y.stride()}, "
            f"scaling {scaling.stride()}"
        )
    if len({tensor.device for tensor in (h, b, scaling, y)}) > 1:
        raise ValueError(f"lora_expand: h on {h.device}, b on {b.device}, scaling on {scaling.device}, y on {y.device}")


def compile_cases() -> tuple[CompileCase, ...]:
    """Llama-2-7B's groups in bf16 at small and large steps, grouped-query widths, and widths that fit nothing."""
    cases = []
    for slices, planes, tiles, early, adds in (
        ((4096,) * 3, 8, 1, 0, False),
        ((11008,) * 2, 4, 32, 1, False),
        ((4096, 1024, 1024), 1, 64, 0, True),
        ((4096,), 1, 4, 1, True),
        ((130, 31, 7), 1, 16, 0, True),
    ):
        for tile_rows in (1, TILE_ROWS):
            segments = DeviceSegments(torch.empty((6, tiles), dtype=torch.int32), tiles, tile_rows, tiles, 64)
            plan = default_plan(segments, slices)._replace(early=early)
            strides = {"b_stride", "y_stride", "max_rank"} if sum(slices) % 16 == 0 else {"max_rank"}
            cases.append(
                CompileCase(
                    f"{'+'.join(map(str, slices))}, {tiles} tiles of {tile_rows}",
                    _expand_rows_kernel if tile_rows == 1 else _expand_tiles_kernel,
                    {
                        **dict.fromkeys(("b", "y"), pointer(torch.bfloat16)),
                        **dict.fromkeys(("h", "scaling"), pointer(torch.float32)),
                        "tiles": pointer(torch.int32),
                        **dict.fromkeys(("b_stride", "scaling_stride", "y_stride", "capacity", "max_rank"), "i32"),
                    },
                    {**_constants(plan, slices, 1 if tile_rows == 1 else planes, tile_rows, 0), "ADDS": adds},
                    plan.num_warps,
                    plan.num_stages,
                    frozenset(strides),
                    "none" if tile_rows == 1 else "mma",
                    (90,) if early else (80, 90),
                )
            )
    return tuple(cases)
