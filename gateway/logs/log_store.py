"""The log as the rest of the gateway sees it: append, list, get, patch, delete, bodies, export.

    append > recorder (bounded hand-off) > writer thread (segments, fdatasync)   durable from here on
                                             └> shipper > rows (SQLite/Postgres) └> archiver > Parquet (object store)

Opened and closed by `app.py`; owns the recorder's thread and the two tasks. Reads first wait, shortly, until every
record appended before has its row, so a log is there as soon as its answer was. Errors of storage come out as the
gateway's StorageUnavailable; what is not in the account as ObjectNotFound.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.errors import ObjectNotFound, StorageUnavailable
from gateway.logs.archiver import Archiver
from gateway.logs.bodies import Bodies
from gateway.logs.counters import LogCounters
from gateway.logs.disk import OsDisk
from gateway.logs.export import ExportFormat, chat_line
from gateway.logs.filters import Filter, LogQuery
from gateway.logs.query import LogPage, LogRows, Row
from gateway.logs.reader import BodyReader
from gateway.logs.record import LogRecord
from gateway.logs.recorder import Recorder
from gateway.logs.rows import Scalar, encode_record
from gateway.logs.segment import Location
from gateway.logs.shipper import Shipper
from gateway.logs.writer import SegmentWriter, recover
from gateway.settings import Logs
from storage.database import Database
from storage.errors import ObjectCorrupt, ObjectMissing, StorageError
from storage.objects.base import ObjectStore
from storage.threads import Threads, finish

logger = logging.getLogger(__name__)

_ROOM_WAIT_S: Final = 5.0
_READ_WAIT_S: Final = 2.0
_DRAIN_S: Final = 10.0
_RETRY_AFTER_S: Final = 5.0
_GROUP_BYTES: Final = 4 * 1024 * 1024
_SCRATCH: Final = "scratch"


class LogPatch(msgspec.Struct, frozen=True):
    """Changes to a log; a field left UNSET stays, None clears it."""

    feedback: int | msgspec.UnsetType | None = msgspec.UNSET
    score: float | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Mapping[str, Scalar] | msgspec.UnsetType | None = msgspec.UNSET


class LogStore:
    """Made by `open`. Everything runs in one event loop; `counters` may be read at any time."""

    def __init__(
        self, database: Database, objects: ObjectStore, disk: OsDisk, writer: SegmentWriter, settings: Logs
    ) -> None:
        """Use `open`; this starts the writer's thread and nothing else."""
        self.counters = LogCounters()
        self._database = database
        self._objects = objects
        self._disk = disk
        self._rows = LogRows(database)
        self._threads = Threads(2, "log-copy")
        scratch = disk.directory / _SCRATCH
        self._archiver = Archiver(database, objects, disk, scratch, self.counters, self._threads)
        self._shipper = Shipper(database, disk, self.counters, self._threads, self._archiver.add)
        self._recorder = Recorder(
            writer,
            durability=settings.durability,
            group_s=settings.group_ms / 1000,
            group_bytes=min(_GROUP_BYTES, settings.segment_bytes),
            buffer_bytes=settings.buffer_bytes,
            room_wait_s=_ROOM_WAIT_S,
            counters=self.counters,
            on_progress=self._shipper.advance,
            refusal=_refused,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, database: Database, objects: ObjectStore, directory: Path, settings: Logs) -> "LogStore":
        """Repairs what a crash left in `directory`, takes up unfinished segments and starts recording.

        Raises StorageUnavailable when the folder cannot be used or another process has it, or the row store is away.
        """
        with _translated():
            disk = await asyncio.to_thread(OsDisk, directory)
            try:
                found, writer = await asyncio.to_thread(_prepare, disk, settings.segment_bytes)
                store = cls(database, objects, disk, writer, settings)
                try:
                    await store._start(found)
                except BaseException:
                    await store._recorder.aclose()
                    await store._threads.aclose()
                    raise
            except BaseException:
                disk.close()
                raise
        return store

    async def _start(self, found: Sequence[Location]) -> None:
        await self._shipper.recover(found)
        self._tasks = [
            asyncio.create_task(self._shipper.run(), name="log-shipper"),
            asyncio.create_task(self._archiver.run(), name="log-archiver"),
        ]

    def append(self, record: LogRecord) -> "asyncio.Future[None]":
        """Records an exchange; done when it is as safe as `settings.durability` says (`recorder.py`).

        Raises StorageUnavailable (with retry_after_s) when there is no room or the disk fails. A caller that is
        cancelled while waiting leaves its record in.
        """
        return self._recorder.hand_over(encode_record(record))

    @property
    def failing(self) -> str | None:
        """Why nothing can be recorded just now, for the operator; None while it can."""
        return self._recorder.failing

    def check_writable(self) -> None:
        """Raises StorageUnavailable while nothing can be recorded: work whose record would be refused is not begun."""
        if self._recorder.failing is not None:
            raise StorageUnavailable(
                "this exchange cannot be logged at the moment; try again later", retry_after_s=_RETRY_AFTER_S
            )

    async def list(self, account_id: str, gateway: str, query: LogQuery) -> LogPage:
        """One page of rows. Raises StorageUnavailable."""
        await self._catch_up()
        with _translated():
            return await self._rows.list(account_id, gateway, query)

    async def get(self, account_id: str, gateway: str, log_id: str) -> Row:
        """One row. Raises ObjectNotFound, StorageUnavailable."""
        await self._catch_up()
        with _translated():
            return _found(await self._rows.get(account_id, gateway, log_id))

    async def patch(self, account_id: str, gateway: str, log_id: str, patch: LogPatch) -> Row:
        """Sets feedback, score or metadata and returns the row. Raises ObjectNotFound, StorageUnavailable."""
        await self._catch_up()
        changes: dict[str, Any] = {
            name: getattr(patch, name) for name in patch.__struct_fields__ if getattr(patch, name) is not msgspec.UNSET
        }
        if "metadata" in changes:
            changes["metadata"] = dict(changes["metadata"] or {})
        with _translated():
            return _found(await self._rows.patch(account_id, gateway, log_id, changes))

    async def delete(self, account_id: str, gateway: str, query: LogQuery, limit: int | None = None) -> int:
        """Deletes the rows that match and returns how many. Bodies can no longer be reached at once; those not yet
        archived are left out of the archive. Raises StorageUnavailable."""
        await self._catch_up()
        with _translated():
            return await self._rows.delete(account_id, gateway, query, limit)

    async def bodies(self, account_id: str, gateway: str, log_id: str) -> tuple[Row, Bodies]:
        """A log's row and its bodies. Raises ObjectNotFound, StorageUnavailable."""
        row = await self.get(account_id, gateway, log_id)
        with _translated():
            return row, await self._reader().read(row["id"], account_id, row["segment_id"], row["segment_offset"])

    async def request_body(self, account_id: str, gateway: str, log_id: str) -> bytes:
        """The request as it came. Raises ObjectNotFound, StorageUnavailable."""
        return (await self.bodies(account_id, gateway, log_id))[1].request

    async def response_body(self, account_id: str, gateway: str, log_id: str) -> bytes:
        """The answer as it went. Raises ObjectNotFound, StorageUnavailable."""
        return (await self.bodies(account_id, gateway, log_id))[1].response

    async def export(
        self, account_id: str, gateway: str, query: LogQuery, export_format: ExportFormat = "openai_chat"
    ) -> AsyncIterator[bytes]:
        """JSONL lines of the finished exchanges that match now, oldest first, in constant memory.

        Logs that give no line (failed, aborted, unreadable, empty) are skipped and counted. Raises StorageUnavailable,
        also between lines.
        """
        assert export_format == "openai_chat"
        await self._catch_up()
        finished = Filter("success", "eq", (True,))
        chosen = msgspec.structs.replace(query, filters=(*query.filters, finished))
        reader = self._reader()
        with _translated():
            async for row in self._rows.walk(account_id, gateway, chosen):
                line = await self._line(reader, row)
                if line is None:
                    self.counters.export_skipped += 1
                else:
                    self.counters.exported += 1
                    yield line

    async def aclose(self) -> None:
        """Refuses new records, makes the queued ones durable, gives them their rows if that works, and stops."""
        try:
            await finish(self._recorder.aclose())
            if not await self._shipper.passed(self._recorder.written, _DRAIN_S):
                logger.warning("log rows are behind; the next start makes them from the segments")
        finally:
            await finish(self._stop())

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._threads.aclose()
        self._disk.close()

    async def _catch_up(self) -> None:
        if not await self._shipper.passed(self._recorder.written, _READ_WAIT_S):
            self.counters.reads_behind += 1

    def _reader(self) -> BodyReader:
        return BodyReader(self._database, self._objects, self._disk)

    async def _line(self, reader: BodyReader, row: Row) -> bytes | None:
        try:
            bodies = await reader.read(row["id"], row["account_id"], row["segment_id"], row["segment_offset"])
        except (ObjectMissing, ObjectCorrupt) as error:
            logger.error("log %s: its bodies cannot be exported: %s", row["id"], error)
            return None
        told = {"streamed": row["streamed"], "path": row["path"]}
        return await asyncio.to_thread(chat_line, bodies.request, bodies.response, **told)


def _found(row: Row | None) -> Row:
    if row is None:
        raise ObjectNotFound("There is no log with this id")
    return row


def _prepare(disk: OsDisk, segment_bytes: int) -> tuple[Sequence[Location], SegmentWriter]:
    """Runs in a thread: what the last process left, repaired, and a writer with its first segment begun."""
    _empty_scratch(disk.directory / _SCRATCH)
    found = recover(disk)
    writer = SegmentWriter(
        disk,
        segment_bytes=segment_bytes,
        after=found[-1].segment_id if found else "",
        now_us=lambda: time.time_ns() // 1000,
        nonce=lambda: secrets.randbits(64),
    )
    writer.begin()
    return found, writer


def _empty_scratch(scratch: Path) -> None:
    try:
        scratch.mkdir(mode=0o700, exist_ok=True)
        for left in scratch.iterdir():
            left.unlink()
    except OSError as error:
        raise StorageUnavailable(f"{scratch}: {error.strerror}", retry_after_s=_RETRY_AFTER_S) from error


@contextmanager
def _translated() -> Iterator[None]:
    """Storage's errors as the gateway's. Missing or corrupt bodies are the store's fault, so they are logged."""
    try:
        yield
    except (ObjectMissing, ObjectCorrupt) as error:
        logger.error("the bodies of a log cannot be read: %s", error)
        raise ObjectNotFound("The bodies of this log are no longer available") from error
    except StorageError as error:
        raise _refused(error) from error


def _refused(error: StorageError) -> StorageUnavailable:
    logger.error("log storage failed: %s", error)
    return StorageUnavailable("The log cannot be used just now; try again", retry_after_s=_RETRY_AFTER_S)
