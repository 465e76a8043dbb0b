"""The hand-off: group commit, back-pressure, refusals. The disk is in memory; the thread is real."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Literal

import pytest

from gateway.joined_writes import JoinedWrites
from gateway.lasting import to_the_end
from gateway.logs.counters import LogCounters
from gateway.logs.recorder import Progress, Recorder
from gateway.logs.writer import SegmentWriter
from storage.errors import StorageFull, StorageUnavailable
from tests.gateway.logs.sim_disk import Faults, SimDisk, SimFile


class SlowFile(SimFile):
    """A file whose syncs wait for the test."""

    def sync(self) -> None:
        gated = self._disk
        assert isinstance(gated, GatedDisk)
        gated.syncs += 1
        gated.syncing.set()
        assert gated.gate.wait(10)
        super().sync()


class GatedDisk(SimDisk):
    """`gate` holds syncs back; `syncing` says that one has begun."""

    def __init__(self) -> None:
        super().__init__(Random(1), Faults())
        self.gate = threading.Event()
        self.gate.set()
        self.syncing = threading.Event()
        self.syncs = 0

    def create(self, name: str) -> SimFile:
        super().create(name)
        return SlowFile(self, self.live[name])


@asynccontextmanager
async def _recorder(
    disk: SimDisk,
    durability: Literal["ack", "group"] = "ack",
    *,
    buffer_bytes: int = 1 << 20,
    room_wait_s: float = 5.0,
    group_s: float = 0.005,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    probe_s: float = 1.0,
) -> AsyncIterator[Recorder]:
    clock = iter(range(1, 1_000_000))
    writer = SegmentWriter(disk, segment_bytes=1 << 20, after="", now_us=lambda: next(clock), nonce=lambda: next(clock))
    writer.begin()
    recorder = Recorder(
        writer,
        durability=durability,
        group_s=group_s,
        group_bytes=1 << 16,
        buffer_bytes=buffer_bytes,
        room_wait_s=room_wait_s,
        counters=LogCounters(),
        on_progress=on_progress,
        probe_s=probe_s,
    )
    try:
        yield recorder
    finally:
        if isinstance(disk, GatedDisk):
            disk.gate.set()
        await recorder.aclose()


def _counters(recorder: Recorder) -> LogCounters:
    return recorder._counters


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_ack_waits_for_the_sync_and_shares_it() -> None:
    disk = GatedDisk()
    async with _recorder(disk) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        before = disk.syncs
        first = asyncio.create_task(recorder.append(b"first"))
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        others = [asyncio.create_task(recorder.append(b"other %d" % i)) for i in range(50)]
        await asyncio.sleep(0)
        assert not first.done()
        disk.gate.set()
        await asyncio.gather(first, *others)
        assert disk.syncs - before == 2
        assert _counters(recorder).groups == 2
        assert _counters(recorder).appended == 51
        assert _counters(recorder).queued_bytes == 0


async def test_group_returns_after_the_write_and_syncs_within_the_window() -> None:
    disk = GatedDisk()
    progress: list[Progress] = []
    async with _recorder(disk, "group", group_s=0.02, on_progress=progress.append) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        await asyncio.wait_for(recorder.append(b"quick"), 5)
        assert recorder.written.offset > 28
        assert progress[-1].synced is not None
        assert progress[-1].synced.offset == 28
        started = time.monotonic()
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        assert time.monotonic() - started < 5
        disk.gate.set()
        await _until(lambda: progress[-1].synced is not None and progress[-1].synced.offset > 28)


async def test_a_full_buffer_makes_callers_wait_in_order() -> None:
    disk = GatedDisk()
    async with _recorder(disk, buffer_bytes=1000) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        done: list[int] = []

        async def append(number: int, size: int) -> None:
            await recorder.append(bytes(size).replace(b"\0", b"x"))
            done.append(number)

        tasks = [asyncio.create_task(append(0, 900))]
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        for number, size in ((1, 800), (2, 50), (3, 900)):
            tasks.append(asyncio.create_task(append(number, size)))
            await asyncio.sleep(0)
        await _until(lambda: _counters(recorder).waited_for_room == 3)
        assert _counters(recorder).queued_bytes == 900  # not even the small one passed the one in front
        disk.gate.set()
        await asyncio.gather(*tasks)
        assert done == [0, 1, 2, 3]
        assert _counters(recorder).queued_bytes == 0


async def test_a_caller_that_finds_no_room_in_time_is_refused() -> None:
    disk = GatedDisk()
    async with _recorder(disk, buffer_bytes=1000, room_wait_s=0.05) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        first = asyncio.create_task(recorder.append(b"x" * 900))
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        with pytest.raises(StorageFull):
            await recorder.append(b"y" * 900)
        assert _counters(recorder).refused_full == 1
        disk.gate.set()
        await first
        await recorder.append(b"z" * 900)


async def test_answers_that_a_sync_lets_go_leave_in_the_turn_behind_its_report() -> None:
    """Each turn of the event loop is a look at every socket: from the report to the write on the wire there is one."""
    loop, turns, written = asyncio.get_running_loop(), 0, list[int]()

    class Wire(asyncio.Transport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            written.append(turns)

        def is_closing(self) -> bool:
            return False

    def count() -> None:
        nonlocal turns
        turns += 1
        if turns < 10:
            loop.call_soon(count)

    async def answer(recorder: Recorder) -> None:
        await to_the_end(recorder.hand_over(b"x"))
        JoinedWrites(Wire(), loop).write(b"the last byte")

    disk = GatedDisk()
    async with _recorder(disk, on_progress=lambda progress: None if turns else count()) as recorder:
        disk.gate.clear()
        answers = [asyncio.create_task(answer(recorder)) for _ in range(3)]
        await asyncio.sleep(0)
        disk.gate.set()
        await asyncio.gather(*answers)
        await _until(lambda: len(written) == 3)
    assert written[0] == 2, "counted once in the report's own turn and once in the next"


async def test_a_record_larger_than_the_buffer_goes_alone() -> None:
    async with _recorder(GatedDisk(), buffer_bytes=100) as recorder:
        await asyncio.gather(*(recorder.append(b"x" * 5000) for _ in range(3)))
        assert _counters(recorder).appended == 3


async def test_cancelled_callers_free_their_room_and_leave_their_record() -> None:
    disk = GatedDisk()
    async with _recorder(disk, buffer_bytes=1000) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        queued = asyncio.create_task(recorder.append(b"x" * 900))
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        waiting = asyncio.create_task(recorder.append(b"y" * 900))
        await _until(lambda: _counters(recorder).waited_for_room == 1)
        for task in (queued, waiting):
            task.cancel()
        await asyncio.gather(queued, waiting, return_exceptions=True)
        disk.gate.set()
        await asyncio.wait_for(recorder.append(b"z" * 900), 5)
        await _until(lambda: _counters(recorder).queued_bytes == 0)
        assert _counters(recorder).appended == 2


async def test_no_room_on_disk_refuses_who_does_not_fit_and_goes_on_later() -> None:
    disk = GatedDisk()

    class Small(SlowFile):
        def write(self, data: memoryview, offset: int) -> int:
            if offset + len(data) > 2000:
                raise StorageFull("no space left on device")
            return super().write(data, offset)

    disk.create = lambda name: Small(disk, SimDisk.create(disk, name)._inode)  # type: ignore[method-assign]
    async with _recorder(disk) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        first = asyncio.create_task(recorder.append(b"first"))
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        large = asyncio.create_task(recorder.append(b"x" * 5000))
        small = asyncio.create_task(recorder.append(b"small"))
        await asyncio.sleep(0)
        disk.gate.set()
        with pytest.raises(StorageFull):
            await large
        await asyncio.gather(first, small)
        await recorder.append(b"later")
        assert _counters(recorder).refused_full == 1
        assert _counters(recorder).appended == 3
    content = b"".join(bytes(inode.data) for inode in disk.live.values())
    assert all(text in content for text in (b"first", b"small", b"later"))
    assert b"xxxx" not in content


async def test_a_failed_sync_moves_the_group_to_a_new_segment() -> None:
    disk = GatedDisk()
    async with _recorder(disk) as recorder:
        await recorder.append(b"before")
        disk.faults = Faults(sync_error=1.0)
        with pytest.raises(StorageUnavailable):
            await recorder.append(b"during")
        assert _counters(recorder).refused_failed == 1
        disk.faults = Faults()
        await recorder.append(b"after")
        assert _counters(recorder).failovers >= 1
    durable = b"".join(bytes(inode.durable) for inode in disk.live.values())
    assert b"before" in durable
    assert b"after" in durable


async def test_a_failed_write_goes_to_a_new_segment() -> None:
    disk = GatedDisk()
    failed: list[str] = []

    class Bad(SlowFile):
        def write(self, data: memoryview, offset: int) -> int:
            if offset > 28 and not failed:
                failed.append("once")
                raise StorageUnavailable("input/output error")
            return super().write(data, offset)

    disk.create = lambda name: Bad(disk, SimDisk.create(disk, name)._inode)  # type: ignore[method-assign]
    async with _recorder(disk) as recorder:
        await recorder.append(b"before")
        await recorder.append(b"during")
        assert _counters(recorder).failovers == 1
        assert _counters(recorder).refused_failed == 0
    assert len(disk.live) == 2
    assert failed


async def test_group_mode_keeps_what_a_failing_disk_owes() -> None:
    disk = GatedDisk()
    async with _recorder(disk, "group", group_s=0.001) as recorder:
        await recorder.append(b"before")
        disk.faults = Faults(sync_error=1.0)
        await recorder.append(b"owed")
        await _until(lambda: recorder._writer.num_failovers > 0)
        disk.faults = Faults()
    durable = b"".join(bytes(inode.durable) for inode in disk.live.values())
    assert b"owed" in durable


async def test_a_dead_thread_refuses_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _recorder(GatedDisk()) as recorder:

        def broken(payloads: Any) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(recorder._writer, "write", broken)
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(recorder.append(b"x"), 5)


async def test_closing_writes_what_is_queued_and_refuses_the_rest() -> None:
    disk = GatedDisk()
    async with _recorder(disk) as recorder:
        disk.gate.clear()
        disk.syncing.clear()
        tasks = [asyncio.create_task(recorder.append(b"number %d" % i)) for i in range(20)]
        assert await asyncio.to_thread(disk.syncing.wait, 10)
        closing = asyncio.create_task(recorder.aclose())
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailable):
            await recorder.append(b"late")
        disk.gate.set()
        await closing
        await asyncio.gather(*tasks)


async def test_a_disk_that_takes_nothing_is_tried_again_by_itself() -> None:
    disk = SimDisk(Random(1), Faults())
    async with _recorder(disk, probe_s=0.005) as recorder:
        await recorder.append(b"before")
        assert recorder.failing is None
        disk.faults.no_room = 1.0
        with pytest.raises(StorageFull):
            await recorder.append(b"refused")
        assert recorder.failing == "no space left on device", "known when the first is refused"
        calls = disk.num_calls
        await _until(lambda: disk.num_calls > calls + 20)
        assert recorder.failing is not None
        disk.faults.no_room = 0.0
        await _until(lambda: recorder.failing is None)
        await recorder.append(b"after")
        assert "probe" not in disk.live
    assert _counters(recorder).appended == 2


async def test_a_record_that_is_too_large_for_what_is_left_is_no_failing_disk() -> None:
    class Tight(SimDisk):
        def create(self, name: str) -> SimFile:
            super().create(name)
            return TightFile(self, self.live[name])

    class TightFile(SimFile):
        def write(self, data: memoryview, offset: int) -> int:
            if len(data) > 100_000:
                raise StorageFull("no space left on device")
            return super().write(data, offset)

    disk = Tight(Random(1), Faults())
    async with _recorder(disk) as recorder:
        with pytest.raises(StorageFull):
            await recorder.append(bytes(200_000))
        assert recorder.failing is None


async def test_without_a_sync_nothing_is_acknowledged_beyond_the_window() -> None:
    """Mode `group` acknowledges before the sync; when that fails, what waits in memory must not grow with the hope."""
    disk = SimDisk(Random(1), Faults())
    async with _recorder(disk, "group", group_s=0.001) as recorder:
        disk.faults.sync_error = 1.0
        acknowledged = 0
        while acknowledged < 1000:
            try:
                await recorder.append(bytes(1000))
            except StorageUnavailable:
                break
            acknowledged += 1
        assert acknowledged * 1000 <= 2 * (1 << 16)
        assert recorder.failing is not None
        assert recorder._writer.unsynced_bytes <= 2 * (1 << 16)
        disk.faults.sync_error = 0.0
        await _until(lambda: recorder.failing is None)
        await recorder.append(b"after")
    assert _counters(recorder).appended == acknowledged + 1
