"""Scatter: a packed adapter, copied to the device as one flat buffer, into the rank rows of all layers' pools at once.

    pool[to + j * stride + i] = staging[source + j * width + i]    j < the module's rank, i < width
                              = 0                                  up to the adapter's rank; all of a module it lacks
    scaling[layer, slot, module] = the module's factor, 0 for one that the adapter lacks
    flag = 1 where a value is not finite in the pool's dtype       (never set back: the caller zeroes it before)

    staging  [n]                            the file's payload, in the file's dtype
    table    [9, jobs] int64                a job is the A or the B of a module of a layer: see `Job`
    a        [layers, slices, rows, in]     per group, the pools' dtype
    b        [layers, rows, out]            per group
    scaling  [layers, slots, modules] fp32

One launch for an adapter of any rank, whatever modules it has: jobs are those of the base (448 for Llama-2-7B), and
each is shared by `PARTS` programs that take its rows in turns, so that grid and arguments never change and a graph may
hold it. The table is built on the host in the few integers of `scatter_table`, and travels with the payload.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.triton_jit import CompileCase, Number, Pointer, constexpr, jit, pointer, runs_kernel, tl

NUM_GROUPS: Final = 4
PARTS: Final = 4
_ALIGNMENT: Final = 16
_BLOCK: Final = 2048


class PoolGroup(NamedTuple):
    """The pools of one projection group over all layers; slices: the widths of its modules, side by side in b."""

    a: torch.Tensor
    b: torch.Tensor
    slices: tuple[int, ...]


class ScatterEntry(NamedTuple):
    """One module that an adapter has. module counts over all groups; offsets are bytes from the payload's start."""

    layer: int
    module: int
    rank: int
    scaling: float
    offset_a: int
    offset_b: int


class Job(NamedTuple):
    """The copy of one matrix; numbers of elements. The order of the fields is the table's.

    pool: 2 * group for an A, 2 * group + 1 for a B. source: where in staging. present: rows there, 0 for a module that
    the adapter lacks. rank: rows to write. factor_to: where in scaling, -1 for nowhere. factor: the bits of an fp32.
    """

    pool: int
    source: int
    present: int
    rank: int
    width: int
    to: int
    stride: int
    factor_to: int
    factor: int


JOB_WORDS: Final = len(Job._fields)
_SOURCE, _PRESENT, _RANK, _TO, _STRIDE, _FACTOR_TO, _FACTOR = (
    Job._fields.index(name) for name in ("source", "present", "rank", "to", "stride", "factor_to", "factor")
)


def num_jobs(groups: Sequence[PoolGroup]) -> int:
    """Columns of a table for these pools."""
    return sum(2 * group.a.shape[0] * group.a.shape[1] for group in groups)


class ScatterPlan:
    """What the tables of all adapters of these pools have in common; made once, as it takes milliseconds."""

    def __init__(self, groups: Sequence[PoolGroup], scaling: torch.Tensor) -> None:
        layers, self._slots, self._modules = scaling.shape
        self._layers, self._num_rows, self._slot_stride = layers, groups[0].b.shape[1], scaling.stride(1)
        jobs = list[Job]()
        for layer in range(layers):
            module = 0
            for index, group in enumerate(groups):
                column = 0
                for part, width in enumerate(group.slices):
                    to_a = layer * group.a.stride(0) + part * group.a.stride(1)
                    to_b, factor_to = layer * group.b.stride(0) + column, layer * scaling.stride(0) + module
                    jobs += [
                        Job(2 * index, 0, 0, 0, group.a.shape[3], to_a, group.a.stride(2), factor_to, 0),
                        Job(2 * index + 1, 0, 0, 0, width, to_b, group.b.stride(1), -1, 0),
                    ]
                    column += width
                    module += 1
        self._table = np.array(jobs, np.int64).T.copy()
        self._has_factor = self._table[_FACTOR_TO] >= 0

    def table(
        self, entries: Sequence[ScatterEntry], itemsize: int, slot: int, row_offset: int, rank: int
    ) -> npt.NDArray[np.int64]:
        """[9, jobs]. itemsize: of an element of the payload. Raises ValueError for what lies outside the pools."""
        if not 0 <= slot < self._slots or row_offset < 0 or rank < 1 or row_offset + rank > self._num_rows:
            raise ValueError(f"adapter_scatter: slot {slot}, rows {row_offset}..{row_offset + rank}: outside the pool")
        table = self._table.copy()
        table[_TO] += row_offset * table[_STRIDE]
        table[_RANK] = rank
        table[_FACTOR_TO] += np.where(self._has_factor, slot * self._slot_stride, 0)
        if not entries:
            return table
        layers, modules, ranks, scalings, offsets_a, offsets_b = (
            np.array(column) for column in zip(*entries, strict=True)
        )
        if min(layers.min(), modules.min()) < 0 or layers.max() >= self._layers or modules.max() >= self._modules:
            raise ValueError(
                f"adapter_scatter: a layer of {layers.max()} or a module of {modules.max()}: not in the pool"
            )
        if ranks.max() > rank:
            raise ValueError(f"adapter_scatter: a module of rank {ranks.max()} in {rank} rows")
        if not (np.abs(scalings) <= np.finfo(np.float32).max).all():
            raise ValueError("adapter_scatter: a factor is not finite in fp32")
        if (offsets_a % itemsize).any() or (offsets_b % itemsize).any():
            raise ValueError(f"adapter_scatter: a matrix begins within one of the {itemsize}-byte elements")
        jobs = 2 * (layers * self._modules + modules)
        table[_PRESENT, jobs] = table[_PRESENT, jobs + 1] = ranks
        table[_SOURCE, jobs], table[_SOURCE, jobs + 1] = offsets_a // itemsize, offsets_b // itemsize
        table[_FACTOR, jobs] = scalings.astype(np.float32).view(np.int32)
        return table


def scatter_table(
    groups: Sequence[PoolGroup],
    scaling: torch.Tensor,
    entries: Sequence[ScatterEntry],
    itemsize: int,
    slot: int,
    row_offset: int,
    rank: int,
) -> npt.NDArray[np.int64]:
    """`ScatterPlan.table` for one adapter."""
    return ScatterPlan(groups, scaling).table(entries, itemsize, slot, row_offset, rank)


def adapter_scatter_reference(
    staging: torch.Tensor, table: torch.Tensor, groups: Sequence[PoolGroup], scaling: torch.Tensor, flag: torch.Tensor
) -> None:
    """Job by job; reads the table, for which a device is waited for."""
    for words in table.T.tolist():
        job = Job(*words)
        pool = groups[job.pool // 2][job.pool % 2]
        assert isinstance(pool, torch.Tensor)
        target = pool.as_strided((job.rank, job.width), (job.stride, 1), pool.storage_offset() + job.to)
        target.zero_()
        if job.present:
            part = staging[job.source : job.source + job.present * job.width]
            target[: job.present] = part.view(job.present, job.width)
            flag.masked_fill_(~target.isfinite().all(), 1)
        if job.factor_to >= 0:
            factor = struct.unpack("<f", struct.pack("<i", job.factor))[0]
            scaling.as_strided((1,), (1,), scaling.storage_offset() + job.factor_to).fill_(factor)


@jit
def _adapter_scatter_kernel(
    staging: Pointer, table: Pointer, scaling: Pointer, flag: Pointer,
    a_0: Pointer, b_0: Pointer, a_1: Pointer, b_1: Pointer, a_2: Pointer, b_2: Pointer, a_3: Pointer, b_3: Pointer,
    jobs: Number, ALIGNMENT: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    job = tl.program_id(0)
    pool = tl.load(table + job)
    source = tl.load(table + jobs + job)
    present = tl.load(table + 2 * jobs + job)
    rank = tl.load(table + 3 * jobs + job)
    width = tl.load(table + 4 * jobs + job)
    to = tl.load(table + 5 * jobs + job)
    stride = tl.load(table + 6 * jobs + job)
    factor_to = tl.load(table + 7 * jobs + job)
    source = tl.multiple_of(source, ALIGNMENT)
    width = tl.multiple_of(width, ALIGNMENT)
    to = tl.multiple_of(to, ALIGNMENT)
    stride = tl.multiple_of(stride, ALIGNMENT)
    if (tl.program_id(1) == 0) & (factor_to >= 0):
        bits = tl.load(table + 8 * jobs + job).to(tl.int32)
        tl.store(scaling + factor_to, bits.to(tl.float32, bitcast=True))
    target = tl.where(pool == 1, b_0, a_0)
    target = tl.where(pool == 2, a_1, target)
    target = tl.where(pool == 3, b_1, target)
    target = tl.where(pool == 4, a_2, target)
    target = tl.where(pool == 5, b_2, target)
    target = tl.where(pool == 6, a_3, target)
    target = tl.where(pool == 7, b_3, target) + to
    wrong = tl.zeros((BLOCK,), tl.int32)
    for row in range(tl.program_id(1), rank, tl.num_programs(1)):
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < width
            values = tl.load(staging + source + row * width + at, mask=inside & (row < present), other=0.0)
            values = values.to(target.dtype.element_ty)
            wrong |= tl.where(tl.abs(values.to(tl.float32)) < float("inf"), 0, 1)
            tl.store(target + row * stride + at, values, mask=inside)
    if tl.max(wrong, 0) != 0:
        tl.atomic_max(flag, 1)


def adapter_scatter(
    staging: torch.Tensor, table: torch.Tensor, groups: Sequence[PoolGroup], scaling: torch.Tensor, flag: torch.Tensor
) -> None:
    """Writes the adapter's rows, its factors and the flag [1] int32. table: `scatter_table`'s, on the pools' device.

    Raises ValueError when shapes, dtypes, devices or strides do not fit together.
    """
    _check(staging, table, groups, scaling, flag)
    if not runs_kernel(staging):
        adapter_scatter_reference(staging, table, groups, scaling, flag)
        return
    pools = [pool for group in groups for pool in (group.a, group.b)]
    _adapter_scatter_kernel[(table.shape[1], PARTS)](
        staging, table, scaling, flag, *pools, table.shape[1], ALIGNMENT=_alignment(groups), BLOCK=_BLOCK, num_warps=4
    )  # fmt: skip


def _alignment(groups: Sequence[PoolGroup]) -> int:
    """What all widths and places are multiples of, as the compiler must know to copy 16 bytes at a time.

    Sources are too: a payload holds whole matrices of these widths, one after the other.
    """
    widths = [width for group in groups for width in (group.a.shape[3], *group.slices)]
    strides = [stride for group in groups for pool in (group.a, group.b) for stride in pool.stride()[:-1]]
    return _ALIGNMENT if all(number % _ALIGNMENT == 0 for number in (*widths, *strides)) else 1


def _check(
    staging: torch.Tensor, table: torch.Tensor, groups: Sequence[PoolGroup], scaling: torch.Tensor, flag: torch.Tensor
) -> None:
    if len(groups) != NUM_GROUPS:
        raise ValueError(f"adapter_scatter: {len(groups)} groups, {NUM_GROUPS} wanted")
    if table.shape != (JOB_WORDS, num_jobs(groups)) or table.dtype != torch.int64 or not table.is_contiguous():
        raise ValueError(f"adapter_scatter: table {tuple(table.shape)} {table.dtype}, {num_jobs(groups)} jobs")
    modules = sum(len(group.slices) for group in groups)
    if staging.dim() != 1 or not staging.is_contiguous() or scaling.dim() != 3 or scaling.shape[2] != modules:
        raise ValueError(f"adapter_scatter: staging {tuple(staging.shape)}, scaling {tuple(scaling.shape)}")
    if scaling.dtype != torch.float32 or flag.dtype != torch.int32 or flag.shape != (1,) or scaling.stride(2) != 1:
        raise ValueError(f"adapter_scatter: scaling {scaling.dtype} {scaling.stride()}, flag {flag.dtype}")
    for index, (a, b, slices) in enumerate(groups):
        if a.dim() != 4 or b.dim() != 3 or a.shape[1] != len(slices) or b.shape[2] != sum(slices):
            raise ValueError(f"adapter_scatter: group {index}: a {tuple(a.shape)}, b {tuple(b.shape)}, {slices}")
        if a.dtype != groups[0].a.dtype or b.dtype != a.dtype or a.stride(3) != 1 or b.stride(2) != 1:
            raise ValueError(f"adapter_scatter: group {index}: a {a.dtype} {a.stride()}, b {b.dtype} {b.stride()}")
    if len({tensor.device for tensor in (staging, table, scaling, flag, *(group.a for group in groups))}) > 1:
        raise ValueError("adapter_scatter: staging, table, scaling, flag and pools must be on one device")


def compile_cases() -> tuple[CompileCase, ...]:
    """From each dtype of a file to bf16, where widths allow wide copies and where they do not."""
    pools = [f"{name}_{group}" for group in range(NUM_GROUPS) for name in "ab"]
    return tuple(
        CompileCase(
            f"{dtype} by {alignment}",
            _adapter_scatter_kernel,
            {
                "staging": pointer(dtype),
                "table": pointer(torch.int64),
                "scaling": pointer(torch.float32),
                "flag": pointer(torch.int32),
                **dict.fromkeys(pools, pointer(torch.bfloat16)),
                "jobs": "i32",
            },
            {"ALIGNMENT": alignment, "BLOCK": _BLOCK},
        )
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for alignment in (1, _ALIGNMENT)
    )
