"""From the event loop to the disk: `append` hands a payload to the writer's thread, which commits whole groups.

While one group is being synced the next one gathers, so a sync is shared by everybody who waits. States of a payload:
waiting for room > queued > in a group > acknowledged or refused. What is queued or in a group is bounded in bytes;
who finds no room waits in order (back-pressure) and is refused with StorageFull after `room_wait_s`. A caller that
goes away does not take its payload back.

A disk that takes nothing at all is a state of its own, `failing`: callers ask for it before they begin work whose
record would be refused. The thread tries the disk again by itself, with a file and not with somebody's record, so the
state ends although nobody appends any more.

`ack`: append returns after its group's sync. `group`: append returns after its group's write (a kill of the process
loses nothing) and the sync follows within `group_s`: a power cut loses at most that window plus one sync.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from gateway.joined_writes import Turn
from gateway.lasting import LastingFuture
from gateway.logs.counters import LogCounters
from gateway.logs.segment import Location
from gateway.logs.writer import SegmentWriter
from storage.errors import StorageError, StorageFull, StorageUnavailable

logger = logging.getLogger(__name__)

_RETRY_SYNC_S: Final = 0.5
_PROBE_S: Final = 1.0
_PROBE_BYTES: Final = 64 * 1024  # a disk that has room for less will refuse the next records again


class Progress(NamedTuple):
    """How far the log is durable: segments finished since the last report, and the end of the open one, if any."""

    sealed: list[Location]
    synced: Location | None


class _Item(NamedTuple):
    payload: bytes
    acknowledged: LastingFuture


class _Refused(NamedTuple):
    item: _Item
    error: StorageError


class Recorder:
    """Owns the writer and its thread. All methods belong to the event loop that made it."""

    def __init__(
        self,
        writer: SegmentWriter,
        *,
        durability: Literal["ack", "group"],
        group_s: float,
        group_bytes: int,
        buffer_bytes: int,
        room_wait_s: float,
        counters: LogCounters,
        on_progress: Callable[[Progress], None],
        refusal: Callable[[StorageError], Exception] = lambda error: error,
        probe_s: float = _PROBE_S,
    ) -> None:
        """Starts the thread. `on_progress` is called in the event loop before the appends it covers return, `refusal`
        makes what an append raises.

        `group_bytes` bounds one write, and what may wait for a sync in mode `group`.
        """
        self._writer = writer
        self._ack = durability == "ack"
        self._group_s = group_s
        self._group_bytes = group_bytes
        self._buffer_bytes = buffer_bytes
        self._room_wait_s = room_wait_s
        self._counters = counters
        self._on_progress = on_progress
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._turn = Turn.of(self._loop)
        self._room: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._queue: deque[_Item] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._broken: str | None = None
        self._probe_s = probe_s
        self._probe_at: float | None = None
        self._sync_failed = False
        self._failing: str | None = None
        self.written = writer.written
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> str | None:
        """Why the disk took nothing at the last try, None while it does; written by the thread."""
        return self._broken or self._failing

    async def append(self, payload: bytes) -> None:
        """Returns when the payload is as safe as the durability mode says.

        Raises StorageFull when neither buffer nor disk has room, StorageUnavailable when the disk fails; or what
        `refusal` makes of them.
        """
        begun = self.hand_over(payload)
        await (asyncio.shield(begun) if isinstance(begun, LastingFuture) else begun)

    def hand_over(self, payload: bytes) -> "asyncio.Future[None]":
        """`append`, begun: where there is room the payload is in the queue when this returns, without a task.

        The future that it gives then is a lasting one: who is cancelled while he awaits it hears of that at its end.
        """
        if self._closing or self._broken or self._room or not self._fits(len(payload)):
            return asyncio.ensure_future(self._append_later(payload))
        self._counters.queued_bytes += len(payload)
        return self._queued(payload)

    async def _append_later(self, payload: bytes) -> None:
        try:
            if self._closing or self._broken:
                raise StorageUnavailable(self._broken or "the log is closed")
            await self._take_room(len(payload))
        except StorageError as error:
            raise self._refusal(error) from error
        await asyncio.shield(self._queued(payload))

    def _queued(self, payload: bytes) -> LastingFuture:
        """Room was taken."""
        acknowledged = LastingFuture(loop=self._loop)
        with self._wake:
            if not self._closing and not self._broken:
                self._queue.append(_Item(payload, acknowledged))
                self._wake.notify()
                return acknowledged
        self._give_room(len(payload))
        acknowledged.set_exception(self._refusal(StorageUnavailable(self._broken or "the log is closed")))
        return acknowledged

    async def aclose(self) -> None:
        """Commits what is queued, seals the segment and ends the thread; later appends are refused."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        while self._room:
            granted = self._room.popleft()[1]
            if not granted.done():
                granted.set_exception(StorageUnavailable("the log is closed"))

    # the event loop's side

    async def _take_room(self, size: int) -> None:
        if not self._room and self._fits(size):
            self._counters.queued_bytes += size
            return
        self._counters.waited_for_room += 1
        granted: asyncio.Future[None] = self._loop.create_future()
        self._room.append((size, granted))
        try:
            async with asyncio.timeout(self._room_wait_s):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._give_room(size)  # granted and given up in the same turn of the loop
            granted.cancel()
            if isinstance(error, TimeoutError):
                self._counters.refused_full += 1
                raise StorageFull(f"the log buffer of {self._buffer_bytes} bytes stayed full") from error
            raise

    def _fits(self, size: int) -> bool:
        """A payload larger than the whole buffer is let in when it is empty, else it never would be."""
        queued = self._counters.queued_bytes
        return queued == 0 or queued + size <= self._buffer_bytes

    def _give_room(self, size: int) -> None:
        self._counters.queued_bytes -= size
        while self._room:
            wanted, granted = self._room[0]
            if granted.done():
                self._room.popleft()
            elif self._fits(wanted):
                self._room.popleft()
                self._counters.queued_bytes += wanted
                granted.set_result(None)
            else:
                return

    def _report(self, items: list[_Item], refused: list[_Refused], written: Location, progress: Progress) -> None:
        """What the thread got done; runs in the event loop."""
        self.written = written
        self._counters.failovers = self._writer.num_failovers
        self._counters.groups += 1 if items else 0
        self._on_progress(progress)
        for item in items:
            self._counters.appended += 1
            self._counters.appended_bytes += len(item.payload)
            if not item.acknowledged.done():
                item.acknowledged.set_result(None)
        for item, error in refused:
            full = isinstance(error, StorageFull)
            self._counters.refused_full += full
            self._counters.refused_failed += not full
            if not item.acknowledged.done():
                item.acknowledged.set_exception(self._refusal(type(error)(str(error))))
        if items or refused:
            self._turn.ends_behind_the_woken()
        released = sum(len(item.payload) for item in items) + sum(len(item.payload) for item, _ in refused)
        if released:
            self._give_room(released)

    # the thread's side

    def _run(self) -> None:
        items: list[_Item] = []
        try:
            sync_at: float | None = None
            while True:
                items, closing = self._next_group(min(filter(None, (sync_at, self._probe_at)), default=None))
                sync_at = self._commit(items, sync_at, force_sync=closing)
                items = []
                if closing:
                    self._writer.close()
                    self._post([], [])
                    return
        except BaseException as error:
            # A bug or a disk that cannot even be closed: nobody may wait for a thread that is gone.
            logger.exception("the log writer stopped")
            with self._wake:
                self._broken = f"the log writer stopped: {error}"
                items += self._queue
                self._queue.clear()
            self._post([], [_Refused(item, StorageUnavailable(self._broken)) for item in items])

    def _next_group(self, wake_at: float | None) -> tuple[list[_Item], bool]:
        """Waits for payloads, for the time of the next sync or probe, or for the end."""
        with self._wake:
            while not self._queue and not self._closing:
                left = None if wake_at is None else wake_at - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._wake.wait(left)
            items: list[_Item] = []
            size = 0
            while self._queue and (not items or size + len(self._queue[0].payload) <= self._group_bytes):
                items.append(self._queue.popleft())
                size += len(items[-1].payload)
            return items, self._closing and not self._queue

    def _commit(self, items: list[_Item], sync_at: float | None, *, force_sync: bool) -> float | None:
        """Writes a group, syncs when due, reports. Returns when the next sync is due, None when nothing waits."""
        done, refused = self._write(items)
        now = time.monotonic()
        # Only a probe ends the state: in the last page of a full disk there is room for a small record now and then.
        if (refused and self._failing is None) or (self._probe_at is not None and now >= self._probe_at):
            self._probe()
        if done or refused:  # who is refused finds the state that says so
            self._post(done, refused)
        if not self._writer.unsynced_bytes:
            sync_at = None
        elif sync_at is None:
            sync_at = now + self._group_s
        if sync_at is not None and (force_sync or now >= sync_at or self._writer.unsynced_bytes > self._group_bytes):
            try:
                self._writer.sync()
                sync_at = None
                if self._sync_failed:
                    self._works()
            except StorageError as error:
                logger.error("log records wait in memory for a disk that can be synced: %s", error)
                self._sync_failed = True
                self._fails(error)
                sync_at = now + _RETRY_SYNC_S
            self._post([], [])
        return sync_at

    def _fails(self, error: StorageError) -> None:
        if self._failing is None:
            logger.error("the log takes no records (%s); the disk is tried again by and by", error)
        self._failing = str(error)
        # What waits in memory is tried by itself: a file that can be synced would say too early that all is well.
        self._probe_at = None if self._sync_failed else time.monotonic() + self._probe_s

    def _works(self) -> None:
        if self._failing is not None:
            logger.warning("the log takes records again")
        self._failing = self._probe_at = None
        self._sync_failed = False

    def _probe(self) -> None:
        """Whether the disk takes nothing, or only did not take so much: one large record stops nobody else."""
        try:
            self._writer.probe(_PROBE_BYTES)
        except StorageError as error:
            self._fails(error)
        else:
            self._works()

    def _write(self, items: list[_Item]) -> tuple[list[_Item], list[_Refused]]:
        """Commits a group. When the disk has no room for all of it, each payload gets its own try."""
        if not items:
            return [], []
        if self._writer.unsynced_bytes > self._group_bytes:
            # A sync was due and failed: no more is acknowledged, and memory is not filled, on the hope of a later one.
            error = StorageUnavailable("what was logged before cannot be synced")
            return [], [_Refused(item, error) for item in items]
        try:
            self._writer.write([item.payload for item in items])
            if self._ack:
                self._writer.sync()
        except StorageError as error:
            if self._ack:
                self._writer.forget_unsynced()
            if isinstance(error, StorageFull) and len(items) > 1:
                results = [self._write([item]) for item in items]
                return [i for done, _ in results for i in done], [r for _, refused in results for r in refused]
            logger.error("%d log records refused: %s", len(items), error)
            return [], [_Refused(item, error) for item in items]
        return items, []

    def _post(self, items: list[_Item], refused: list[_Refused]) -> None:
        progress = Progress(self._writer.take_sealed(), self._writer.synced)
        try:
            self._loop.call_soon_threadsafe(self._report, items, refused, self._writer.written, progress)
        except RuntimeError:
            logger.warning("the event loop ended before %d log records were acknowledged", len(items))
