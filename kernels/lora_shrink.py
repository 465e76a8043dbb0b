"""Shrink: hidden -> rank, the first half of y += scaling * (x A^T) B, for every segment and slice of a group.

    h[t, s, p, j] = sum_i x[t, i] * a[s, row_offset + j, i]     for every token t of a segment, j < its rank,
                                                                i in part p of the input
    x  [tokens, in]                       tokens of one slot are consecutive
    a  [slices, rows, in]                 the pool; slices share x (q, k, v or gate, up), rows are those of all slots
    h  [tokens, slices, planes, max_rank] fp32; the expand adds the planes, in order

What is past a segment's rank, of a slice that its adapter lacks or of a token without adapter is neither read nor
written. Rank-exact: a segment of rank 4 beside one of rank 64 costs 4 rows. Sums accumulate in fp32.

Two kernels, by the size of the tiles (`segments.py`); the weights' bytes are what both are made for.

*Tiles of one token*: a matrix-vector product. Every program takes `RANK_BLOCK` rank rows of one token and slice over
the whole input, so nothing is split and h has one plane. Programs are tokens x slices x `workers`; the workers share
the rank rows in turns, because a graph is captured before anybody knows the ranks.

*Tiles of 16 tokens*: a product on tensor cores, whose least height is 16, which reads A once for the whole tile. Here
too little would run side by side for a few tiles, so the input is split into `planes`, each summed by itself and kept:
no atomics, and the same bits at every run.
"""

from typing import Final, NamedTuple

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

# Programs that fill a large card about four times over.
_PROGRAMS: Final = 512
_WORKERS: Final = 64


class ShrinkPlan(NamedTuple):
    """How one launch is cut; `workers` programs share the rank rows of a tile and slice. early: 1 lets an expand that
    is launched early (see there) begin while this one runs; for sm_90 and later."""

    rank_block: int
    in_block: int
    planes: int
    workers: int
    num_warps: int
    num_stages: int
    early: int = 0


def lora_shrink_reference(
    x: torch.Tensor, a: torch.Tensor, segments: Segments | DeviceSegments, h: torch.Tensor, first_slice: int = 0
) -> None:
    """Writes h, which has one plane; one matrix product per segment and slice."""
    for tile in tiles_of(segments):
        for index in range(a.shape[0]):
            if tile.has(first_slice + index):
                h[tile.places, index, 0, : tile.rank] = x[tile.places] @ a[index, tile.rows].T


@jit
def _shrink_rows_kernel(
    x: Pointer, a: Pointer, h: Pointer, tiles: Pointer,
    x_stride: Number, a_slice_stride: Number, a_row_stride: Number, capacity: Number, max_rank: Number,
    IN: constexpr, SLICES: constexpr, FIRST_SLICE: constexpr,
    RANK_BLOCK: constexpr, IN_BLOCK: constexpr, EARLY: constexpr,
) -> None:  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tile, worker, slice_ = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(tiles + tile)
    offset = tl.load(tiles + 3 * capacity + tile)
    rank = tl.load(tiles + 4 * capacity + tile)
    owned = tl.load(tiles + 5 * capacity + tile)
    # All fields are asked, so that they are loaded together and not one after the branch that another decides.
    if (rank <= worker * RANK_BLOCK) | (offset < 0) | (token < 0) | ((owned >> (FIRST_SLICE + slice_)) & 1 == 0):
        return
    x += token.to(tl.int64) * x_stride
    a += slice_.to(tl.int64) * a_slice_stride + offset.to(tl.int64) * a_row_stride
    h += (token.to(tl.int64) * SLICES + slice_) * max_rank
    columns = tl.arange(0, IN_BLOCK)
    for first in range(worker * RANK_BLOCK, rank, tl.num_programs(1) * RANK_BLOCK):
        rows = first + tl.arange(0, RANK_BLOCK)
        a_rows = a + rows.to(tl.int64)[:, None] * a_row_stride
        inside = (rows < rank)[:, None]
        sums = tl.zeros((RANK_BLOCK, IN_BLOCK), tl.float32)
        for start in tl.range(0, IN, IN_BLOCK, loop_unroll_factor=4):
            at = start + columns
            if IN % IN_BLOCK == 0:
                x_part = tl.load(x + at)
                a_part = tl.load(a_rows + at[None, :], mask=inside, other=0.0)
            else:
                x_part = tl.load(x + at, mask=at < IN, other=0.0)
                a_part = tl.load(a_rows + at[None, :], mask=inside & (at < IN)[None, :], other=0.0)
            sums += a_part.to(tl.float32) * x_part.to(tl.float32)[None, :]
        tl.store(h + rows, tl.sum(sums, 1), mask=rows < rank)


@jit
def _shrink_tiles_kernel(
    x: Pointer, a: Pointer, h: Pointer, tiles: Pointer,
    x_stride: Number, a_slice_stride: Number, a_row_stride: Number, capacity: Number, max_rank: Number,
    IN: constexpr, SLICES: constexpr, FIRST_SLICE: constexpr,
    RANK_BLOCK: constexpr, IN_BLOCK: constexpr, EARLY: constexpr, PLANES: constexpr, STEPS: constexpr, ROWS: constexpr,
) -> None:  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tile, worker, slice_ = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(tiles + tile)
    count = tl.load(tiles + capacity + tile)
    offset = tl.load(tiles + 3 * capacity + tile)
    rank = tl.load(tiles + 4 * capacity + tile)
    owned = tl.load(tiles + 5 * capacity + tile)
    if (rank <= 0) | (offset < 0) | (first < 0) | (count < 0) | ((owned >> (FIRST_SLICE + slice_)) & 1 == 0):
        return
    lines = tl.arange(0, ROWS)
    tokens = (first + lines).to(tl.int64)
    x_rows = x + tokens[:, None] * x_stride
    a += slice_.to(tl.int64) * a_slice_stride + offset.to(tl.int64) * a_row_stride
    columns = tl.arange(0, IN_BLOCK)
    for work in range(worker, tl.cdiv(rank, RANK_BLOCK) * PLANES, tl.num_programs(1)):
        plane = work % PLANES
        rows = work // PLANES * RANK_BLOCK + tl.arange(0, RANK_BLOCK)
        a_rows = a + rows.to(tl.int64)[None, :] * a_row_stride
        sums = tl.zeros((ROWS, RANK_BLOCK), tl.float32)
        for step in range(STEPS):
            at = (plane * STEPS + step) * IN_BLOCK + columns
            x_inside, a_inside = (lines < count)[:, None], (rows < rank)[None, :]
            if IN % (PLANES * STEPS * IN_BLOCK) != 0:
                x_inside = x_inside & (at < IN)[None, :]
                a_inside = a_inside & (at < IN)[:, None]
            x_part = tl.load(x_rows + at[None, :], mask=x_inside, other=0.0)
            a_part = tl.load(a_rows + at[:, None], mask=a_inside, other=0.0)
            sums = tl.dot(x_part, a_part, sums, input_precision="ieee")
        h_rows = h + ((tokens * SLICES + slice_) * PLANES + plane)[:, None] * max_rank
        tl.store(h_rows + rows[None, :], sums, mask=(lines < count)[:, None] & (rows < rank)[None, :])


def shrink_place(segments: DeviceSegments, slices: int, in_features: int) -> dict[str, int]:
    """What a tuned plan depends on."""
    return {"tile_rows": segments.tile_rows, "tiles": segments.num_tiles, "slices": slices, "in": in_features}


def beside_plan(segments: DeviceSegments, slices: int) -> ShrinkPlan:
    """The plan of a launch beside a product of the base, from which every program that only waits takes a place: fewer
    programs, and nobody is launched early. Measured on an H100: with the other plan a step of 8 rows takes 2 % more."""
    plan = default_plan(segments, slices)
    if segments.tile_rows > 1:
        return plan._replace(early=0)
    rank_block = 1 if segments.num_tiles <= 2 else 2 if segments.num_tiles <= 8 else 4
    most = max(1, _PROGRAMS // (max(1, segments.num_tiles) * slices))
    workers = min(most, cdiv(segments.max_rank, rank_block))
    return plan._replace(rank_block=rank_block, workers=workers, early=0)


def shrink_plan(segments: DeviceSegments, slices: int, in_features: int) -> ShrinkPlan:
    """The plan of a launch: the tuned one, or the one that arithmetic suggests."""
    place = shrink_place(segments, slices, in_features)
    return tuned(device_of(segments.words), "lora_shrink", place, default_plan(segments, slices))


def default_plan(segments: DeviceSegments, slices: int) -> ShrinkPlan:
    """Enough programs for a large card, of as much work each as that allows. Measured on an H100: a rank row a program,
    whatever their number, where tiles have one token; and launches that overlap wherever they can."""
    early = int(launches_early(segments.words))
    if segments.tile_rows == 1:
        return ShrinkPlan(1, 1024, 1, min(segments.max_rank, _WORKERS), 4, 1, early)
    most = max(1, _PROGRAMS // (max(1, segments.num_tiles) * slices))
    planes = 8 if segments.num_tiles <= 64 else 4 if segments.num_tiles <= 128 else 1
    workers = min(most, planes * cdiv(segments.max_rank, 16))
    return ShrinkPlan(16, 256, planes, workers, 4, 3, early)


def lora_shrink(
    x: torch.Tensor,
    a: torch.Tensor,
    segments: Segments | DeviceSegments,
    first_slice: int = 0,
    plan: ShrinkPlan | None = None,
    h: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns h as above. first_slice: the group's first slice, counted over all groups (see `Tile.slices`).
    plan: instead of `shrink_plan`'s. h: what `empty_h` made for this plan, where the launch is in another stream than
    the one that the result is used in.

    Raises ValueError when shapes, dtypes, devices or strides do not fit together.
    """
    _check(x, a, segments)
    slices = a.shape[0]
    if not runs_kernel(x):
        if h is None:
            h = torch.empty((x.shape[0], slices, 1, segments.max_rank), dtype=torch.float32, device=x.device)
        lora_shrink_reference(x, a, segments, h, first_slice)
        return h
    if not isinstance(segments, DeviceSegments):
        raise ValueError("lora_shrink: on a device segments must be DeviceSegments")  # noqa: TRY004 (as the others)
    plan = plan or shrink_plan(segments, slices, x.shape[1])
    h = _empty(x, slices, plan, segments) if h is None else h
    if segments.num_tiles:
        _launch(x, a, h, segments, plan, first_slice)
    return h


def empty_h(x: torch.Tensor, a: torch.Tensor, segments: DeviceSegments, plan: ShrinkPlan) -> torch.Tensor:
    """What `lora_shrink` would return, before anything is written."""
    return _empty(x, a.shape[0], plan if runs_kernel(x) else plan._replace(planes=1), segments)


def _empty(x: torch.Tensor, slices: int, plan: ShrinkPlan, segments: DeviceSegments) -> torch.Tensor:
    shape = (x.shape[0], slices, plan.planes, segments.max_rank)
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _launch(
    x: torch.Tensor, a: torch.Tensor, h: torch.Tensor, segments: DeviceSegments, plan: ShrinkPlan, first_slice: int
) -> None:
    kernel = _shrink_rows_kernel if segments.tile_rows == 1 else _shrink_tiles_kernel
    kernel[(segments.num_tiles, plan.workers, a.shape[0])](
        x, a, h, segments.words, x.stride(0), a.stride(0), a.stride(1), segments.words.stride(0),
        h.shape[3], **_constants(plan, x.shape[1], a.shape[0], segments.tile_rows, first_slice),
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip


def _constants(plan: ShrinkPlan, in_features: int, slices: int, tile_rows: int, first_slice: int) -> dict[str, int]:
    constants = {"IN": in_features, "SLICES": slices, "FIRST_SLICE": first_slice}
    constants |= {"RANK_BLOCK": plan.rank_block, "IN_BLOCK": plan.in_block, "EARLY": plan.early}
    if tile_rows > 1:
        steps = cdiv(in_features, plan.planes * plan.in_block)
        constants |= {"PLANES": plan.planes, "STEPS": steps, "ROWS": tile_rows}
    return constants


def _check(x: torch.Tensor, a: torch.Tensor, segments: Segments | DeviceSegments) -> None:
    if x.dim() != 2 or a.dim() != 3 or x.shape[1] != a.shape[2] or x.dtype != a.dtype:
        raise ValueError(f"lora_shrink: x {tuple(x.shape)} {x.dtype}, a {tuple(a.shape)} {a.dtype}")
    if x.shape[0] != segments.num_tokens:
        raise ValueError(f"lora_shrink: {x.shape[0]} tokens, segments of {segments.num_tokens}")
    if x.stride(1) != 1 or a.stride(2) != 1:
        raise ValueError(f"lora_shrink: rows must be contiguous, x has strides {x.stride()}, a {a.stride()}")
    if x.device != a.device or (isinstance(segments, DeviceSegments) and segments.words.device != x.device):
        raise ValueError(f"lora_shrink: x on {x.device}, a on {a.device}, and segments, must be on one device")


def compile_cases() -> tuple[CompileCase, ...]:
    """Llama-2-7B's groups in bf16 at small and large steps, pools beyond 2^31 elements, a width that fits nothing."""
    cases = []
    for in_features, slices, tiles, slice_stride, early in (
        (4096, 3, 1, "i32", 0),
        (4096, 2, 32, "i64", 0),
        (11008, 1, 4, "i32", 1),
        (2049, 2, 16, "i32", 0),
    ):
        for tile_rows in (1, TILE_ROWS):
            segments = DeviceSegments(torch.empty((6, tiles), dtype=torch.int32), tiles, tile_rows, tiles, 64)
            plan = default_plan(segments, slices)._replace(early=early)
            strides = {"max_rank"}
            strides |= {"x_stride", "a_slice_stride", "a_row_stride"} if in_features % 16 == 0 else set()
            cases.append(
                CompileCase(
                    f"{slices}x{in_features}, {tiles} tiles of {tile_rows}",
                    _shrink_rows_kernel if tile_rows == 1 else _shrink_tiles_kernel,
                    {
                        **dict.fromkeys(("x", "a"), pointer(torch.bfloat16)),
                        "h": pointer(torch.float32),
                        "tiles": pointer(torch.int32),
                        **dict.fromkeys(("x_stride", "a_row_stride", "capacity", "max_rank"), "i32"),
                        "a_slice_stride": slice_stride,
                    },
                    _constants(plan, in_features, slices, tile_rows, 0),
                    plan.num_warps,
                    plan.num_stages,
                    frozenset(strides),
                    "none" if tile_rows == 1 else "mma",
                    (90,) if early else (80, 90),
                )
            )
    return tuple(cases)
