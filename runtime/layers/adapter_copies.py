"""Adapters on their way to a device while steps run: no step waits for one, and none sees half of one.

    file in host memory ─(slab)─> staging on the device ──scatter──> rank rows of the pool        all in the copy queue
                                                          ^ after the last step that read these rows, or this slot
    slot:  LOADING ─────────────────────────────────────────────> READY     when the queue has come to the copy's mark

A file whose memory is registered with the driver (`runtime/pinned.py`) is copied from where it lies. Any other goes
through slabs, registered at the start, that a thread fills: plain copying, without the interpreter's lock.
Everything else is started by the engine thread, in a few calls that return at once. Staging and slabs have one size; a
larger file goes in several pieces, each of whole modules. Whether all numbers are finite comes back as one flag.
"""

import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.adapter_scatter import JOB_WORDS, Job, ScatterEntry, ScatterPlan, adapter_scatter, num_jobs
from runtime.errors import AdapterInvalid, RunnerMisused
from runtime.layers.adapter_pool import TORCH_DTYPES, AdapterPool
from runtime.memory_plan import STAGING_BYTES, staging_bytes
from runtime.queues import Mark, Queues, Turn, host_tensor
from storage.geometry import MODULES
from storage.packed import Packed

NUM_SLABS: Final = 2
MAX_UNDER_WAY: Final = 64
_NUM_TABLES: Final = 4
# One engine of the device moves all that comes from the host. A step's few numbers wait for the copy that it is at, so
# no copy is longer than some tenths of a millisecond.
_COPY_BYTES: Final = 4 * 1024**2
_SOURCE, _PRESENT, _RANK, _FACTOR_TO = (Job._fields.index(name) for name in ("source", "present", "rank", "factor_to"))

Start = Callable[[Callable[[], None]], Future[None]]


class _Piece(NamedTuple):
    """Bytes begin .. end - 1 of a payload: whole modules."""

    begin: int
    end: int


class _Held(NamedTuple):
    """Rows and a slot that steps up to `mark` may still read."""

    slot: int
    first: int
    end: int
    mark: Mark


@dataclass
class _Copy:
    """pieces are started in order; `filling` is the slab that the next one goes into. touched: something was started
    that may read the payload. mark: behind its last piece. wrong: 1 where something was not finite, readable once the
    mark is reached."""

    slot: int
    payload: torch.Tensor
    dtype: torch.dtype
    table: npt.NDArray[np.int64]
    pieces: list[_Piece]
    held: list[Mark]
    wrong: torch.Tensor
    started: int = 0
    touched: bool = False
    filling: tuple[Turn, "Future[None]"] | None = None
    mark: Mark | None = None
    abandoned: bool = False
    direct: bool = field(init=False)

    def __post_init__(self) -> None:
        self.direct = self.payload.is_pinned()


class AdapterCopies:
    """The way into one pool. The engine thread owns it.

    slab_bytes: of each slab and of the staging; raised to what the largest module of any rank takes. start: runs a
    plain copy beside the caller; by default on a thread of its own.
    """

    def __init__(
        self,
        pool: AdapterPool,
        queues: Queues,
        *,
        slab_bytes: int = STAGING_BYTES,
        start: Start | None = None,
    ) -> None:
        self._pool, self._queues = pool, queues
        self._groups, device = pool.stacked, pool.device
        self._slab_bytes = staging_bytes(pool.geometry, pool.num_rows, slab_bytes)
        self._staging = torch.empty(self._slab_bytes, dtype=torch.uint8, device=device)
        self._slabs = [Turn(host_tensor((self._slab_bytes,), torch.uint8, device)) for _ in range(NUM_SLABS)]
        self._plan = ScatterPlan(self._groups, pool.scaling)
        table = (JOB_WORDS, num_jobs(self._groups))
        self._table = torch.zeros(table, dtype=torch.int64, device=device)
        self._tables = deque(Turn(host_tensor(table, torch.int64, device)) for _ in range(_NUM_TABLES))
        self._flag = torch.zeros(1, dtype=torch.int32, device=device)
        words = host_tensor((MAX_UNDER_WAY,), torch.int32, device)
        self._words = deque(words[place : place + 1] for place in range(MAX_UNDER_WAY))
        self._start: Start = start or ThreadPoolExecutor(1, "adapter slabs").submit
        self._waiting: deque[_Copy] = deque()
        self._copies: dict[int, _Copy] = {}
        self._read_until: dict[int, Mark] = {}
        self._held: list[_Held] = []

    @property
    def under_way(self) -> int:
        """Copies that have not been found to have ended."""
        return len(self._copies)

    def begin(self, slot: int, row_offset: int, packed: Packed) -> None:
        """See `runtime.batch.CopiesBeside`."""
        if not self._words:
            raise RunnerMisused(f"{MAX_UNDER_WAY} copies are under way already")
        rows = self._pool.reserve(slot, row_offset, packed)
        if not packed.header.entries:  # its weights change nothing, so there are none
            self._pool.complete(slot)
            return
        entries = [
            ScatterEntry(
                entry.layer, MODULES.index(entry.module), entry.rank, entry.scaling, entry.offset_a, entry.offset_b
            )
            for entry in packed.header.entries
        ]
        dtype = TORCH_DTYPES[packed.header.dtype]
        try:
            table = self._plan.table(entries, dtype.itemsize, slot, rows.offset, rows.rank)
        except ValueError as error:  # a factor that is none, or places that do not fit
            self._pool.release(slot)
            raise AdapterInvalid(str(error)) from error
        end = rows.offset + rows.rank
        self._held = [held for held in self._held if not held.mark.done()]
        held = [one.mark for one in self._held if one.slot == slot or (one.first < end and rows.offset < one.end)]
        payload, word = _as_tensor(packed.payload), self._words.popleft()
        copy = _Copy(slot, payload, dtype, table, self._pieces(packed), held, word)
        self._copies[slot] = copy
        self._waiting.append(copy)
        self._advance()

    def poll(self, slot: int) -> bool:
        """See `runtime.batch.CopiesBeside`."""
        copy = self._copies.get(slot)
        if copy is None:
            self._pool.ready(slot)
            return True
        self._advance()
        if copy.mark is None or not copy.mark.done():
            return False
        del self._copies[slot]
        self._words.append(copy.wrong)
        if int(copy.wrong):
            self._pool.release(slot)
            raise AdapterInvalid(f"the adapter has values that are not finite in {self._pool.dtype}")
        self._pool.complete(slot)
        self._queues.compute.after(copy.mark)
        return True

    def finish(self, slot: int) -> None:
        """Waits until the copy has ended, then is as `poll`: for tests and benches."""
        while not self.poll(slot):
            copy = self._copies[slot]
            if copy.mark is not None:
                copy.mark.wait()
            elif copy.filling is not None:
                copy.filling[1].result()
            else:
                for turn in (*self._slabs, *self._tables):
                    if turn.mark is not None:
                        turn.mark.wait()

    def read_by_step(self, slots: frozenset[int], mark: Mark) -> None:
        """A step that reads these slots was started; it has ended at the mark."""
        for slot in slots:
            self._read_until[slot] = mark

    def release(self, slot: int) -> None:
        """The slot's rows and its number may be given to others, who wait for its last step. Blocks only for a copy
        into it that is still under way, whose file would otherwise be read after it was given back."""
        copy = self._copies.pop(slot, None)
        if copy is not None:
            self._abandon(copy)
            self._words.append(copy.wrong)
        mark = self._read_until.pop(slot, None)
        if mark is not None:
            offset, rank = self._pool.ready(slot)
            self._held.append(_Held(slot, offset, offset + rank, mark))
        self._pool.release(slot)

    # One piece after the other.

    def _advance(self) -> None:
        """Starts all that can be started without waiting; the queue keeps pieces in order."""
        while self._waiting:
            copy = self._waiting[0]
            if copy.started == len(copy.pieces) or copy.abandoned:
                self._waiting.popleft()
                continue
            if not self._tables[0].free():
                return
            source = self._source(copy, copy.pieces[copy.started])
            if source is None:
                return
            self._enqueue(copy, source)

    def _source(self, copy: _Copy, piece: _Piece) -> torch.Tensor | None:
        """Where the piece can be copied from, None while it is not there yet."""
        part = copy.payload[piece.begin : piece.end]
        if copy.direct:
            return part
        if copy.filling is None:
            slab = next((slab for slab in self._slabs if slab.free()), None)
            if slab is None:
                return None
            target = slab.tensor.numpy()[: len(part)]
            copy.filling = slab, self._start(lambda: np.copyto(target, part.numpy()))
        slab, filled = copy.filling
        if not filled.done():
            return None
        filled.result()
        return slab.tensor[: len(part)]

    def _enqueue(self, copy: _Copy, source: torch.Tensor) -> None:
        index, piece = copy.started, copy.pieces[copy.started]
        table = self._tables[0]
        self._tables.rotate(-1)
        table.tensor.numpy()[:] = _part_of(copy.table, piece, copy.dtype.itemsize, first=index == 0)
        copies, copy.touched = self._queues.copies, True
        with copies.use():
            staging = self._staging[: len(source)]
            if index == 0:
                self._flag.zero_()
            for first in range(0, len(source), _COPY_BYTES):
                part = slice(first, first + _COPY_BYTES)
                staging[part].copy_(source[part], non_blocking=True)
            self._table.copy_(table.tensor, non_blocking=True)
            if index == 0:
                for mark in copy.held:
                    copies.after(mark)
            adapter_scatter(staging.view(copy.dtype), self._table, self._groups, self._pool.scaling, self._flag)
            copy.started += 1
            if copy.started == len(copy.pieces):
                copy.wrong.copy_(self._flag, non_blocking=True)
            mark = copies.mark()
        table.mark = mark
        if copy.filling is not None:
            copy.filling[0].mark = mark
            copy.filling = None
        if copy.started == len(copy.pieces):
            copy.mark = mark

    def _abandon(self, copy: _Copy) -> None:
        copy.abandoned = True
        if copy.filling is not None:
            copy.filling[1].result()
        if copy.touched:  # a piece that could be started by half, too
            self._queues.copies.mark().wait()

    def _pieces(self, packed: Packed) -> list[_Piece]:
        """Cut before each module that would not fit any more."""
        pieces, begin = list[_Piece](), 0
        starts = [entry.offset_a for entry in packed.header.entries]
        for start, end in zip(starts, [*starts[1:], packed.header.payload_bytes], strict=True):
            if end - begin > self._slab_bytes:
                pieces.append(_Piece(begin, start))
                begin = start
        return [*pieces, _Piece(begin, packed.header.payload_bytes)]


def _part_of(table: npt.NDArray[np.int64], piece: _Piece, itemsize: int, *, first: bool) -> npt.NDArray[np.int64]:
    """The table for one piece: the jobs whose bytes it holds; the first also has those that only write zeros."""
    begin, end = piece.begin // itemsize, piece.end // itemsize
    part = table.copy()
    present = part[_PRESENT] > 0
    inside = present & (part[_SOURCE] >= begin) & (part[_SOURCE] < end)
    part[_SOURCE, inside] -= begin
    mine = inside | (~present & first)
    part[_RANK, ~mine] = part[_PRESENT, ~mine] = 0
    part[_FACTOR_TO, ~mine] = -1
    return part


def _as_tensor(payload: Any) -> torch.Tensor:
    """[bytes] uint8, a view."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch cannot mark a view as read-only, and says so
        return torch.from_numpy(np.frombuffer(payload, np.uint8))
