"""Finds a log's bodies: in the segment file while there is one, else in the Parquet of that segment.

One reader serves one request or one export and keeps the Parquet it last opened, so neighbouring logs are cheap. What
it finds is checked against the log's id and account: a wrong place is an error, never somebody else's text.
"""

import asyncio

from sqlalchemy import select

from gateway.logs.bodies import Bodies, ObjectFile, ParquetReader, object_key
from gateway.logs.disk import Disk
from gateway.logs.rows import decode_record
from gateway.logs.segment import read_frame, read_seed
from storage.database import Database
from storage.errors import ObjectCorrupt, ObjectMissing
from storage.objects.base import ObjectStore
from storage.tables import log_segments


class BodyReader:
    """Used by one task at a time."""

    def __init__(self, database: Database, objects: ObjectStore, disk: Disk) -> None:
        self._database = database
        self._objects = objects
        self._disk = disk
        self._parquet: tuple[str, ParquetReader] | None = None

    async def read(self, log_id: str, account_id: str, segment_id: str, offset: int) -> Bodies:
        """The bodies of one log. Raises ObjectMissing, ObjectCorrupt, StorageUnavailable, DatabaseUnavailable."""
        try:
            bodies = await asyncio.to_thread(self._from_segment, segment_id, offset)
        except ObjectMissing:
            # Archived, perhaps a moment ago: the key is saved before the file goes, so it is there by now.
            reader = await self._open_parquet(segment_id)
            found = await asyncio.to_thread(reader.at, offset)
            if found is None:
                raise
            bodies = found
        if (bodies.log_id, bodies.account_id) != (log_id, account_id):
            raise ObjectCorrupt(f"the bodies of log {log_id} are not where its row says")
        return bodies

    def _from_segment(self, segment_id: str, offset: int) -> Bodies:
        seed = read_seed(self._disk, segment_id)
        try:
            record = decode_record(read_frame(self._disk, segment_id, seed, offset))
        except ValueError as error:
            raise ObjectCorrupt(f"{segment_id}: the record at {offset} cannot be read") from error
        return Bodies(record.id, record.account_id, record.request, record.response)

    async def _open_parquet(self, segment_id: str) -> ParquetReader:
        if self._parquet is not None and self._parquet[0] == segment_id:
            return self._parquet[1]
        async with self._database.read() as connection:
            statement = select(log_segments.c.bodies_key).where(log_segments.c.id == segment_id)
            key: str | None = (await connection.execute(statement)).scalar_one_or_none()
        if key is None:
            raise ObjectMissing(object_key(segment_id))
        source = ObjectFile(asyncio.get_running_loop(), self._objects, key, await self._objects.size(key))
        reader = await asyncio.to_thread(ParquetReader, source)
        self._parquet = segment_id, reader
        return reader
