"""Copies records from segments to rows: one owned task, one transaction per batch that also saves the offset.

At least once by re-reading from the saved offset, exactly once in effect by `ON CONFLICT (id) DO NOTHING`. State: the
segments that are not yet done, oldest first; a segment is done when it is sealed and every record has its row, and
then goes to `done` for its bodies to be archived. The row store being away stops the copying, never the recording.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import JSON, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.logs.counters import LogCounters
from gateway.logs.disk import Disk
from gateway.logs.recorder import Progress
from gateway.logs.rows import columns, decode_record
from gateway.logs.segment import HEADER_BYTES, Location, read_frames, read_seed
from storage.database import Database
from storage.errors import ObjectCorrupt, ObjectMissing
from storage.tables import log_segments, logs
from storage.threads import Threads

logger = logging.getLogger(__name__)

_BATCH_BYTES: Final = 1024 * 1024
# The rows of a statement are prepared in the event loop: few at a time, so that streams do not stutter.
_STATEMENT_ROWS: Final = 160
_JSON_COLUMNS: Final = frozenset(column.name for column in logs.columns if isinstance(column.type, JSON))
# Rows are gathered this long so that one commit serves many; a reader who waits for them cuts it short.
_GATHER_S: Final = 0.05
_MAX_BACKOFF_S: Final = 5.0


@dataclass
class _Segment:
    """A segment on its way: records before `shipped` have rows, those before `end` can be read."""

    segment_id: str
    end: int = HEADER_BYTES
    shipped: int = HEADER_BYTES
    sealed: bool = False
    damaged: bool = False
    seed: int | None = None


class Shipper:
    """`advance` is told by the recorder, `run` does the work, `passed` waits for it. One event loop."""

    def __init__(
        self,
        database: Database,
        disk: Disk,
        counters: LogCounters,
        threads: Threads,
        done: Callable[[str, bool], None],
    ) -> None:
        """`done(segment_id, damaged)` is called once per segment, when its bodies may be archived."""
        self._database = database
        self._disk = disk
        self._counters = counters
        self._threads = threads
        self._done = done
        self._segments: dict[str, _Segment] = {}
        self._moved = asyncio.Condition()
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._num_waiting = 0

    async def recover(self, ends: Sequence[Location]) -> None:
        """Takes up the segments of an earlier process where their saved offsets say. Raises DatabaseUnavailable."""
        async with self._database.read() as connection:
            for segment_id, end in ends:
                statement = select(log_segments.c.shipped_bytes).where(log_segments.c.id == segment_id)
                shipped = (await connection.execute(statement)).scalar_one_or_none() or HEADER_BYTES
                self._segments[segment_id] = _Segment(segment_id, max(end, shipped), shipped, sealed=True)
        self._work.set()

    def advance(self, progress: Progress) -> None:
        """Records up to these places are durable."""
        for segment_id, end in progress.sealed:
            segment = self._segments.setdefault(segment_id, _Segment(segment_id))
            segment.end, segment.sealed = end, True
        if progress.synced is not None:
            open_id, end = progress.synced
            self._segments.setdefault(open_id, _Segment(open_id)).end = end
            # The writer removes a segment that it gave up before anything was in it, without a word.
            for stale in [s for s in self._segments.values() if not s.sealed and s.segment_id < open_id]:
                del self._segments[stale.segment_id]
        self._work.set()

    async def passed(self, target: Location, timeout_s: float) -> bool:
        """Waits until every record before `target` has its row; False when that took too long."""
        if self._is_past(target):
            return True
        self._num_waiting += 1
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._is_past(target))
                return True
        except TimeoutError:
            return False
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self._hurry.clear()

    async def run(self) -> None:
        """Ships until cancelled. Failures are counted and tried again with a growing pause."""
        backoff_s = 0.05
        while True:
            try:
                if await self._ship_next():
                    backoff_s = 0.05
                    if self._backlog() < _BATCH_BYTES:
                        await self._gather()
                    continue
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # Whatever it was, the records are safe in their segment; ending this task would hide them for good.
                self._counters.ship_failures += 1
                logger.error("log rows not shipped, trying again in %.2f s: %r", backoff_s, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                continue
            await self._work.wait()
            await self._gather()

    def _backlog(self) -> int:
        return sum(segment.end - segment.shipped for segment in self._segments.values())

    async def _gather(self) -> None:
        try:
            async with asyncio.timeout(_GATHER_S):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _ship_next(self) -> bool:
        """One batch of the oldest segment that has something to ship; False when there was nothing."""
        self._work.clear()
        for segment in list(self._segments.values()):
            if segment.shipped < segment.end:
                await self._ship(segment)
                return True
            if segment.sealed:
                del self._segments[segment.segment_id]
                self._done(segment.segment_id, segment.damaged)
        return False

    async def _ship(self, segment: _Segment) -> None:
        try:
            rows, next_offset, damaged = await self._threads.run(self._read, segment)
        except (ObjectMissing, ObjectCorrupt) as error:
            logger.error("log segment %s cannot be read: %s", segment.segment_id, error)
            rows, next_offset, damaged = [], segment.end, True
        if damaged and not segment.sealed:
            raise ObjectCorrupt(f"log segment {segment.segment_id}: no frame at {next_offset} of the open segment")
        if damaged:
            self._counters.damaged_segments += 1
            logger.error("log segment %s is damaged behind byte %d", segment.segment_id, next_offset)
            segment.damaged = True
            segment.end = next_offset = segment.shipped
        if rows:
            async with self._database.write() as connection:
                await _insert(connection, rows)
                await _save_offset(connection, segment.segment_id, next_offset)
        self._counters.rows_shipped += len(rows)
        segment.shipped = next_offset
        async with self._moved:
            self._moved.notify_all()

    def _read(self, segment: _Segment) -> tuple[list[dict[str, Any]], int, bool]:
        """Runs in a thread: the next records as rows, where to go on, and whether the bytes there are no frame."""
        if segment.seed is None:
            segment.seed = read_seed(self._disk, segment.segment_id)
        found = read_frames(
            self._disk, segment.segment_id, segment.seed, segment.shipped, segment.end, max_bytes=_BATCH_BYTES
        )
        rows = []
        for offset, payload in found.frames:
            try:
                rows.append(columns(decode_record(payload), segment.segment_id, offset))
            except ValueError as error:
                # Whole by its checksum, yet not ours to read (another version wrote it): kept with the file.
                logger.error("log segment %s: record at %d is not readable: %s", segment.segment_id, offset, error)
                self._counters.undecodable += 1
                segment.damaged = True
        return rows, found.next_offset, found.damaged

    def _is_past(self, target: Location) -> bool:
        return all(
            segment.shipped >= (target.offset if segment.segment_id == target.segment_id else segment.end)
            for segment in self._segments.values()
            if segment.segment_id <= target.segment_id
        )


async def _insert(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), _STATEMENT_ROWS):
        some = rows[start : start + _STATEMENT_ROWS]
        if connection.dialect.name == "postgresql":
            await connection.execute(postgresql.insert(logs).on_conflict_do_nothing(index_elements=["id"]), some)
        else:
            text, names = _sqlite_insert()
            values = [tuple([_json(row[n]) if n in _JSON_COLUMNS else row[n] for n in names]) for row in some]
            await connection.exec_driver_sql(text, values)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()  # what SQLAlchemy does with the standard library takes ten times as long


@functools.cache
def _sqlite_insert() -> tuple[str, list[str]]:
    """The statement as SQLite's driver takes it, and the order of its values: SQLAlchemy's own way from a row to them
    takes longer than the row's whole insertion."""
    statement = sqlite.insert(logs).on_conflict_do_nothing(index_elements=["id"])
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"))
    assert compiled.positiontup is not None, "qmark is by position"
    return str(compiled), compiled.positiontup


async def _save_offset(connection: AsyncConnection, segment_id: str, shipped: int) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(log_segments).values(id=segment_id, shipped_bytes=shipped)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"shipped_bytes": shipped}))
