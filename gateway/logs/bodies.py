"""Bodies at rest: the Parquet of a sealed segment, and reading a log's bodies from wherever they are now.

One Parquet per segment under `logs/bodies/{segment_id}.parquet`: zstd, row groups of about 4 MB in segment order, so
that `segment_offset` of a row names exactly one row group and one body costs one range read. Only this file knows
pyarrow. Everything here runs in threads; `ObjectFile` lets pyarrow's thread read ranges of an object that only the
event loop can fetch.
"""

import asyncio
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.logs.record import LogRecord
from storage.errors import ObjectCorrupt, StorageUnavailable
from storage.objects.base import ObjectStore

ROW_GROUP_BYTES: Final = 4 * 1024 * 1024
_READ_TIMEOUT_S: Final = 60.0
_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("account_id", pa.string(), nullable=False),
        pa.field("gateway", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("segment_offset", pa.int64(), nullable=False),
        pa.field("request", pa.binary(), nullable=False),
        pa.field("response", pa.binary(), nullable=False),
    ]
)


class Bodies(NamedTuple):
    """What was said, byte for byte, and whose it is."""

    log_id: str
    account_id: str
    request: bytes
    response: bytes


def object_key(segment_id: str) -> str:
    """Where the bodies of a sealed segment are kept."""
    return f"logs/bodies/{segment_id}.parquet"


class ParquetBodies:
    """Writes one segment's Parquet to a local file, a row group per call of `add`. No file before the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def add(self, records: Iterable[tuple[int, LogRecord]]) -> None:
        """Records with their offsets, in segment order, as one row group."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, _SCHEMA, compression="zstd", write_statistics=True)
        rows = list(records)
        values = [
            [record.id for _, record in rows],
            [record.account_id for _, record in rows],
            [record.gateway for _, record in rows],
            [int(record.created_at * 1_000_000) for _, record in rows],
            [offset for offset, _ in rows],
            [record.request for _, record in rows],
            [record.response for _, record in rows],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(values, _SCHEMA, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=max(1, len(rows)))

    def close(self) -> None:
        """Writes the footer, if anything was added."""
        if self._writer is not None:
            self._writer.close()


class ObjectFile(io.RawIOBase):
    """An object as a seekable file, for a thread; each read is one ranged get in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, objects: ObjectStore, key: str, size: int) -> None:
        super().__init__()
        self._loop = loop
        self._objects = objects
        self._key = key
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Exactly the bytes asked for, as far as the object goes. Raises StorageError."""
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        if not length:
            return b""
        fetching = asyncio.run_coroutine_threadsafe(self._fetch(self._position, length), self._loop)
        try:
            data = fetching.result(_READ_TIMEOUT_S)
        except TimeoutError as error:
            fetching.cancel()
            raise StorageUnavailable(f"{self._key}: no answer for {_READ_TIMEOUT_S:.0f} s") from error
        self._position += len(data)
        return data

    async def _fetch(self, start: int, length: int) -> bytes:
        return b"".join([part async for part in self._objects.get(self._key, start=start, length=length)])


class ParquetReader:
    """Bodies out of one Parquet; keeps the last row group, so that neighbours cost no second read."""

    def __init__(self, source: io.RawIOBase) -> None:
        """Reads the footer. Raises ObjectCorrupt, StorageError."""
        try:
            self._file: Any = pq.ParquetFile(pa.PythonFile(source, mode="r"))
        except pa.ArrowInvalid as error:
            raise ObjectCorrupt(f"not a Parquet of log bodies: {error}") from error
        self._group = -1
        self._bodies: dict[int, Bodies] = {}

    def at(self, offset: int) -> Bodies | None:
        """The bodies of the record that lay at `offset` of the segment. Raises ObjectCorrupt, StorageError."""
        group = self._group_of(offset)
        if group is None:
            return None
        if group != self._group:
            self._load(group)
        return self._bodies.get(offset)

    def _group_of(self, offset: int) -> int | None:
        metadata = self._file.metadata
        column = _SCHEMA.get_field_index("segment_offset")
        for index in range(metadata.num_row_groups):
            statistics = metadata.row_group(index).column(column).statistics
            if statistics.min <= offset <= statistics.max:
                return index
        return None

    def _load(self, group: int) -> None:
        names = ["id", "account_id", "segment_offset", "request", "response"]
        try:
            table = self._file.read_row_group(group, columns=names, use_threads=False)
        except pa.ArrowInvalid as error:
            raise ObjectCorrupt(f"row group {group} cannot be read: {error}") from error
        ids, accounts, offsets, requests, responses = (table.column(name).to_pylist() for name in names)
        self._group = group
        self._bodies = {
            offset: Bodies(log_id, account_id, request, response)
            for log_id, account_id, offset, request, response in zip(
                ids, accounts, offsets, requests, responses, strict=True
            )
        }
