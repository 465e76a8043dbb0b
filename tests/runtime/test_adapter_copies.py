"""Adapters that come beside the steps: what waits for what, and that the pool holds in the end what the file says.

The queues here are scripts: work is done when it is called, and marks are reached when the test says so.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from runtime.errors import AdapterInvalid, RunnerMisused
from runtime.layers.adapter_copies import AdapterCopies
from runtime.layers.adapter_pool import AdapterPool
from runtime.queues import HostQueue, Mark, Queues
from storage.geometry import MODULES, Geometry
from storage.packed import AdapterDtype, LoraMatrices, Packed, PackedHeader, read_packed, write_packed

GEOMETRY = Geometry("llama", 3, 8, 12, 2, 1, 4)
CPU = torch.device("cpu")


class ScriptedMark:
    def __init__(self, *, reached: bool) -> None:
        self.reached = reached
        self.waited = False

    def done(self) -> bool:
        return self.reached

    def wait(self) -> None:
        self.waited = self.reached = True


class ScriptedQueue:
    """`instant`: marks are reached at once."""

    def __init__(self, *, instant: bool) -> None:
        self.instant = instant
        self.marks: list[ScriptedMark] = []
        self.waits: list[Mark] = []

    @contextmanager
    def use(self) -> Iterator[None]:
        yield

    def mark(self) -> Mark:
        self.marks.append(ScriptedMark(reached=self.instant))
        return self.marks[-1]

    def after(self, mark: Mark) -> None:
        self.waits.append(mark)

    def reach(self) -> None:
        for mark in self.marks:
            mark.reached = True


def at_once(work: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    work()
    future.set_result(None)
    return future


class Bench:
    def __init__(
        self, *, instant: bool = False, rows: int = 32, slab_bytes: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        self.pool = AdapterPool(GEOMETRY, rows, 8, dtype, CPU)
        self.compute, self.copies = ScriptedQueue(instant=True), ScriptedQueue(instant=instant)
        queues = Queues(self.compute, self.copies, HostQueue())
        self.way = AdapterCopies(self.pool, queues, slab_bytes=slab_bytes, start=at_once)


def packed(rank: int, seed: int = 0, dtype: AdapterDtype = "float32", modules: tuple[str, ...] = MODULES) -> Packed:
    rng, matrices = np.random.default_rng(seed), []
    for layer in range(GEOMETRY.num_layers):
        for module in modules:
            outs, ins = GEOMETRY.shape(module)
            a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, ins), (outs, rank)))
            if dtype == "float16":
                a, b = a.astype(np.float16), b.astype(np.float16)
            matrices.append(LoraMatrices(layer, module, 0.5 + layer, a, b))
    out = io.BytesIO()
    write_packed(out, GEOMETRY, dtype, matrices)
    return read_packed(out.getvalue())


def content(pool: AdapterPool) -> list[torch.Tensor]:
    return [*(part.clone() for group in pool.stacked for part in (group.a, group.b)), pool.scaling.clone()]


@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "down_proj"), ("v_proj",)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("slab_bytes", [1, 1 << 20])
def test_the_pool_holds_what_the_slice_by_slice_way_writes(
    modules: tuple[str, ...], dtype: AdapterDtype, slab_bytes: int
) -> None:
    """slab_bytes 1: the least that works, one module at a time for the largest adapter."""
    bench, other = Bench(instant=True, slab_bytes=slab_bytes), AdapterPool(GEOMETRY, 32, 8, torch.float32, CPU)
    for slot, offset, rank in ((3, 0, 7), (1, 7, 25), (3, 2, 4)):
        file = packed(rank, slot + rank, dtype, modules)
        bench.way.release(slot)
        other.release(slot)
        bench.way.begin(slot, offset, file)
        assert bench.way.poll(slot)
        other.write(slot, offset, file, 0, GEOMETRY.num_layers)
        assert bench.pool.ready(slot) == other.ready(slot)
        assert bench.pool.modules(slot) == other.modules(slot)
    assert all(torch.equal(one, two) for one, two in zip(content(bench.pool), content(other), strict=True))
    pieces = len(bench.way._pieces(packed(25)))
    assert (pieces > 5) == (slab_bytes == 1)


def test_no_copy_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's own copy goes in between."""
    lengths: list[int] = []
    copy = torch.Tensor.copy_

    def noted(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        lengths.append(source.nbytes)
        return copy(self, source, non_blocking)

    monkeypatch.setattr("runtime.layers.adapter_copies._COPY_BYTES", 1000)
    bench, file = Bench(instant=True, slab_bytes=1 << 20), packed(8)
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    bench.way.begin(0, 0, file)
    monkeypatch.undo()
    table = bench.way._table.nbytes
    assert sum(lengths) == file.header.payload_bytes + table + 4
    assert max(length for length in lengths if length != table) == 1000


def test_a_slot_is_ready_when_the_queue_has_come_to_its_mark_and_steps_wait_for_it_once() -> None:
    bench = Bench(slab_bytes=1 << 20)
    bench.way.begin(2, 4, packed(5))
    assert not bench.way.poll(2)
    with pytest.raises(RunnerMisused):
        bench.pool.ready(2)
    assert bench.compute.waits == []
    bench.copies.reach()
    assert bench.way.poll(2)
    assert bench.pool.ready(2) == (4, 5)
    assert bench.compute.waits == [bench.copies.marks[-1]]
    assert bench.way.under_way == 0


def test_rows_and_slots_are_written_again_after_their_last_reader() -> None:
    bench = Bench(instant=True)
    for slot, offset in ((0, 0), (1, 8), (2, 16)):
        bench.way.begin(slot, offset, packed(8))
        assert bench.way.poll(slot)
    last, later = ScriptedMark(reached=False), ScriptedMark(reached=False)
    bench.way.read_by_step(frozenset({0, 1, -1}), ScriptedMark(reached=True))
    bench.way.read_by_step(frozenset({0}), last)
    bench.way.read_by_step(frozenset({1}), later)
    bench.way.release(0)
    bench.way.release(1)
    bench.way.begin(5, 24, packed(8))
    assert bench.copies.waits == []
    bench.way.release(5)
    bench.way.begin(0, 24, packed(8))  # other rows, but the slot's factors may still be read
    assert bench.copies.waits == [last]
    bench.way.begin(6, 4, packed(8))  # another slot, in rows of both
    assert bench.copies.waits == [last, last, later]
    last.reached = later.reached = True
    bench.way.release(6)
    bench.way.begin(6, 4, packed(8))
    assert bench.copies.waits == [last, last, later]


def test_what_is_not_finite_is_refused_and_leaves_the_slot_empty() -> None:
    for value in (np.nan, -np.inf):
        bench, file = Bench(instant=True), packed(4)
        data = np.frombuffer(file.payload, np.float32).copy()
        data[-1] = value
        bench.way.begin(1, 0, file._replace(payload=memoryview(data.tobytes())))
        with pytest.raises(AdapterInvalid, match="not finite"):
            bench.way.poll(1)
        with pytest.raises(RunnerMisused):
            bench.pool.ready(1)
        bench.way.begin(1, 0, packed(4))
        assert bench.way.poll(1)
    too_wide = Bench(instant=True, dtype=torch.float16)
    data = np.frombuffer(packed(4).payload, np.float32).copy()
    data[0] = 1e6
    too_wide.way.begin(1, 0, packed(4)._replace(payload=memoryview(data.tobytes())))
    with pytest.raises(AdapterInvalid, match="float16"):
        too_wide.way.poll(1)


def test_an_adapter_for_another_base_or_other_rows_is_refused() -> None:
    bench = Bench(instant=True)
    file = packed(4)
    deeper = Geometry("llama", 4, 8, 12, 2, 1, 4)
    header = PackedHeader(deeper, "float32", 4, file.header.payload_bytes, file.header.entries)
    strange = file._replace(header=header)
    with pytest.raises(AdapterInvalid):
        bench.way.begin(1, 0, strange)
    for slot, offset in ((8, 0), (0, 29), (-1, 0)):
        with pytest.raises(RunnerMisused):
            bench.way.begin(slot, offset, packed(4))


def test_a_slab_that_is_still_being_filled_holds_up_nobody() -> None:
    """And a piece is sent when its bytes are there, in order."""
    work: list[tuple[Callable[[], None], Future[None]]] = []

    def later(job: Callable[[], None]) -> Future[None]:
        work.append((job, Future()))
        return work[-1][1]

    bench = Bench(instant=True)
    bench.way._start = later
    expected = packed(32)
    bench.way.begin(0, 0, expected)
    pieces = len(bench.way._pieces(expected))
    for piece in range(pieces):
        assert not bench.way.poll(0)
        assert len(work) == piece + 1
        job, future = work[piece]
        job()
        future.set_result(None)
    assert bench.way.poll(0)
    reference = AdapterPool(GEOMETRY, 32, 8, torch.float32, CPU)
    reference.write(0, 0, expected, 0, GEOMETRY.num_layers)
    assert all(torch.equal(one, two) for one, two in zip(content(bench.pool), content(reference), strict=True))


def test_buffers_of_the_host_are_not_written_while_a_copy_may_read_them() -> None:
    bench = Bench()
    bench.way.begin(0, 0, packed(32))
    started = len(bench.copies.marks)
    assert started == 2, "two slabs"
    assert not bench.way.poll(0)
    assert len(bench.copies.marks) == started
    bench.copies.marks[0].reached = True
    assert not bench.way.poll(0)
    assert len(bench.copies.marks) == started + 1


def test_the_file_of_an_abandoned_copy_is_not_read_any_more() -> None:
    bench = Bench(slab_bytes=1 << 20)
    bench.way.begin(0, 0, packed(8))
    bench.way.begin(1, 8, packed(8))
    bench.way.release(0)
    assert bench.copies.marks[-1].waited
    assert bench.way.under_way == 1
    bench.copies.reach()
    assert bench.way.poll(1)
    bench.way.begin(0, 0, packed(4))
    bench.copies.reach()
    assert bench.way.poll(0)


def test_an_adapter_whose_weights_change_nothing_is_ready_at_once() -> None:
    bench = Bench()
    bench.way.begin(0, 0, packed(4, modules=()))
    assert bench.way.poll(0)
    assert bench.pool.ready(0).rank == 0
