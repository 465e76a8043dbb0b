"""Moves the bodies of finished segments from the write-ahead log to the object store: one owned task.

Order, each step safe to repeat after a crash: write the Parquet to a scratch file > put it into the object store >
save its key in `log_segments` > remove the segment file. Until the last step readers use the segment. Logs that were
deleted meanwhile are left out. A segment with bytes that are no frames is archived as far as it goes and its file kept
beside, as `.damaged`, for a person to look at. While the object store is away segments stay on disk, in order.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import select, update

from gateway.logs.bodies import ROW_GROUP_BYTES, ParquetBodies, object_key
from gateway.logs.counters import LogCounters
from gateway.logs.disk import Disk
from gateway.logs.record import LogRecord
from gateway.logs.rows import decode_record
from gateway.logs.segment import DAMAGED_SUFFIX, HEADER_BYTES, file_name, read_frames, read_seed, valid_end
from storage.database import Database
from storage.errors import ObjectCorrupt, ObjectMissing
from storage.objects.base import ObjectStore
from storage.tables import log_segments, logs
from storage.threads import Threads

logger = logging.getLogger(__name__)

_MIN_BACKOFF_S: Final = 0.5
_MAX_BACKOFF_S: Final = 30.0
_CHUNK_BYTES: Final = 1024 * 1024
_MAX_IDS: Final = 500


class _Finished(NamedTuple):
    segment_id: str
    damaged: bool


class Archiver:
    """`add` takes finished segments, `run` works on them one at a time."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        disk: Disk,
        scratch: Path,
        counters: LogCounters,
        threads: Threads,
    ) -> None:
        """`scratch` is a folder for the file being built; what an earlier process left there is removed."""
        self._database = database
        self._objects = objects
        self._disk = disk
        self._scratch = scratch
        self._counters = counters
        self._threads = threads
        # Unbounded on purpose: an entry stands for a whole segment file, so the disk is full long before.
        self._finished: asyncio.Queue[_Finished] = asyncio.Queue()

    def add(self, segment_id: str, damaged: bool) -> None:
        """Every record of this segment has its row."""
        self._finished.put_nowait(_Finished(segment_id, damaged))

    async def run(self) -> None:
        """Archives until cancelled. Failures are counted and tried again with a growing pause."""
        while True:
            finished = await self._finished.get()
            backoff_s = _MIN_BACKOFF_S
            while True:
                try:
                    await self.archive(*finished)
                    break
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    # Of whatever kind, the bodies are safe in their segment file, and the next try may succeed.
                    self._counters.archive_failures += 1
                    logger.error("log bodies of %s not archived: %r", finished.segment_id, error)
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def archive(self, segment_id: str, damaged: bool) -> None:
        """All steps for one segment, those already done before a crash included."""
        if await self._key_of(segment_id) is None:
            await self._store(segment_id)
        if damaged or not await self._threads.run(self._is_whole, segment_id):
            with suppress(ObjectMissing):
                await self._threads.run(self._disk.rename, file_name(segment_id), segment_id + DAMAGED_SUFFIX)
        else:
            await self._threads.run(self._disk.remove, file_name(segment_id))
        self._counters.bodies_archived += 1

    def _is_whole(self, segment_id: str) -> bool:
        """Asked of the file itself before it goes: it may have gone bad after its rows were shipped, and then it holds
        bodies that are nowhere else."""
        try:
            seed = read_seed(self._disk, segment_id)
            return valid_end(self._disk, segment_id, seed) == self._disk.size(file_name(segment_id))
        except ObjectCorrupt:
            logger.error("log segment %s has a damaged header", segment_id)
            return False
        except ObjectMissing:  # an earlier try has removed it
            return True

    async def _key_of(self, segment_id: str) -> str | None:
        async with self._database.read() as connection:
            statement = select(log_segments.c.bodies_key).where(log_segments.c.id == segment_id)
            key: str | None = (await connection.execute(statement)).scalar_one_or_none()
            return key

    async def _store(self, segment_id: str) -> None:
        path = self._scratch / f"{segment_id}.parquet"
        try:
            num_rows = await self._build(segment_id, path)
            if not num_rows:
                return
            size = (await self._threads.run(path.stat)).st_size
            key = object_key(segment_id)
            await self._objects.put(key, self._chunks(path), max_bytes=size)
        finally:
            await self._threads.run(path.unlink, missing_ok=True)
        async with self._database.write() as connection:
            await connection.execute(update(log_segments).where(log_segments.c.id == segment_id).values(bodies_key=key))

    async def _build(self, segment_id: str, path: Path) -> int:
        """Writes the Parquet of the logs that still have a row; returns their number."""
        num_rows = 0
        parquet = ParquetBodies(path)
        try:
            async for records in self._records(segment_id):
                kept = await self._with_rows(segment_id, records)
                if kept:
                    await self._threads.run(parquet.add, kept)
                    num_rows += len(kept)
        finally:
            await self._threads.run(parquet.close)
        return num_rows

    async def _records(self, segment_id: str) -> AsyncIterator[list[tuple[int, LogRecord]]]:
        """The readable records of a segment in runs of about a row group."""
        try:
            seed = await self._threads.run(read_seed, self._disk, segment_id)
            end = await self._threads.run(self._disk.size, file_name(segment_id))
        except (ObjectMissing, ObjectCorrupt):
            return
        position = HEADER_BYTES
        while position < end:
            found = await self._threads.run(
                read_frames, self._disk, segment_id, seed, position, end, max_bytes=ROW_GROUP_BYTES
            )
            if not found.frames:
                return
            position = found.next_offset
            yield await self._threads.run(_decode, found.frames)

    async def _with_rows(self, segment_id: str, records: list[tuple[int, LogRecord]]) -> list[tuple[int, LogRecord]]:
        """Those whose row still points here: deleted logs and second copies of a record are left out."""
        places: set[int] = set()
        async with self._database.read() as connection:
            for start in range(0, len(records), _MAX_IDS):
                offsets = [offset for offset, _ in records[start : start + _MAX_IDS]]
                statement = select(logs.c.segment_offset).where(
                    logs.c.id.in_([record.id for _, record in records[start : start + _MAX_IDS]]),
                    logs.c.segment_id == segment_id,
                    logs.c.segment_offset.in_(offsets),
                )
                places.update((await connection.execute(statement)).scalars())
        return [(offset, record) for offset, record in records if offset in places]

    async def _chunks(self, path: Path) -> AsyncIterator[bytes]:
        position = 0
        while chunk := await self._threads.run(_read_at, path, position):
            position += len(chunk)
            yield chunk


def _read_at(path: Path, position: int) -> bytes:
    # Opened anew for each piece: a file held between them would be nobody's when the reader is cancelled or given up.
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        return file.read(_CHUNK_BYTES)


def _decode(frames: Sequence[tuple[int, bytes]]) -> list[tuple[int, LogRecord]]:
    records = []
    for offset, payload in frames:
        # What the shipper could not read has no row and, counted there, keeps the segment file.
        with suppress(ValueError):
            records.append((offset, decode_record(payload)))
    return records
