"""Rows and objects of batches. What was accepted is on disk before its caller hears so; nothing else knows the keys.

batches/{id}/requests.json   as accepted, with the headers that each exchange will be logged with
batches/{id}/part-{n}.json   answers as they come, numbered without a gap: they are deleted from the last one down
batches/{id}/responses.json  written once, before the row says `done`; then the parts go
"""

import contextlib
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Final, Literal

import msgspec
from sqlalchemy import delete, func, insert, select, update

from gateway.batches.answered import Answered
from gateway.errors import ObjectNotFound, OverCapacity
from storage import tables
from storage.database import Database
from storage.errors import ObjectMissing
from storage.objects.base import ObjectStore, single

Status = Literal["queued", "running", "done"]
KEPT_S: Final = 24 * 3600.0
MAX_OPEN: Final = 100  # batches of one account that are not done
MAX_RESPONSES_BYTES: Final = 1024**3
_GONE: Final = "there is no batch of this request_id; results are kept for 24 hours"


class Batch(msgspec.Struct, frozen=True):
    """One row."""

    id: str
    account_id: str
    token_id: str
    model: str
    status: Status
    num_requests: int
    created_at: float
    finished_at: float | None = None


class Accepted(msgspec.Struct):
    """The object of the requests: each body as it came, and what their log records need."""

    requests: list[msgspec.Raw]
    references: list[str | None]
    headers: list[tuple[str, str]]


class BatchRecords:
    """`now` is the wall clock."""

    def __init__(self, database: Database, objects: ObjectStore, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._objects = objects
        self._now = now

    async def add(self, batch_id: str, account_id: str, token_id: str, model: str, accepted: Accepted) -> Batch:
        """Raises OverCapacity when the account has too many that are not done; what storage raises."""
        batch = Batch(batch_id, account_id, token_id, model, "queued", len(accepted.requests), self._now())
        data = msgspec.json.encode(accepted)
        await self._objects.put(_requests(batch_id), single(data), max_bytes=len(data))
        try:
            async with self._database.write() as connection:
                unfinished = (tables.batches.c.account_id == account_id) & (tables.batches.c.status != "done")
                open_ones = select(func.count()).select_from(tables.batches).where(unfinished)
                if (await connection.scalar(open_ones) or 0) >= MAX_OPEN:
                    raise OverCapacity(f"the account has {MAX_OPEN} batches waiting, the most it can", retry_after_s=30)
                await connection.execute(insert(tables.batches).values(**msgspec.structs.asdict(batch)))
        except BaseException:
            await self._objects.delete(_requests(batch_id))
            raise
        return batch

    async def get(self, account_id: str, batch_id: str) -> Batch:
        """Raises ObjectNotFound, also for another account's, and for one whose results are too old."""
        query = select(tables.batches).where(tables.batches.c.id == batch_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None or row["account_id"] != account_id or self._is_old(batch := Batch(**row)):
            raise ObjectNotFound(_GONE, param="request_id")
        return batch

    async def waiting(self) -> list[Batch]:
        """Those that are not done, oldest first."""
        query = select(tables.batches).where(tables.batches.c.status != "done")
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(tables.batches.c.created_at, tables.batches.c.id))
            return [Batch(**row) for row in rows.mappings()]

    async def start(self, batch: Batch) -> None:
        """The row says `running`."""
        async with self._database.write() as connection:
            change = update(tables.batches).where(tables.batches.c.id == batch.id)
            await connection.execute(change.values(status="running"))

    async def finish(self, batch: Batch, responses: bytes) -> None:
        """The answers, then the row."""
        await self._objects.put(_responses(batch.id), single(responses), max_bytes=MAX_RESPONSES_BYTES)
        async with self._database.write() as connection:
            change = update(tables.batches).where(tables.batches.c.id == batch.id)
            done = await connection.execute(change.values(status="done", finished_at=self._now()))
        if done.rowcount == 0:  # its account was deleted meanwhile
            await self._delete_objects(batch.id)
        else:
            await self._delete_parts(batch.id)

    async def keep(self, batch: Batch, number: int, answers: list[Answered]) -> None:
        """A part of the answers, durable. Raises StorageError."""
        data = msgspec.json.encode(answers)
        await self._objects.put(_part(batch.id, number), single(data), max_bytes=len(data))

    async def parts(self, batch: Batch) -> list[list[Answered]]:
        """What `keep` was given before a restart. Raises StorageUnavailable."""
        found: list[list[Answered]] = []
        with contextlib.suppress(ObjectMissing):
            while True:
                found.append(msgspec.json.decode(await self._read(_part(batch.id, len(found))), type=list[Answered]))
        return found

    async def accepted(self, batch: Batch) -> Accepted:
        """Raises ObjectMissing, StorageUnavailable."""
        return msgspec.json.decode(await self._read(_requests(batch.id)), type=Accepted)

    async def responses(self, batch: Batch) -> bytes:
        """Raises ObjectNotFound, StorageUnavailable."""
        try:
            return await self._read(_responses(batch.id))
        except ObjectMissing:
            raise ObjectNotFound(_GONE, param="request_id") from None

    async def sweep(self) -> int:
        """Deletes what is too old, objects before rows; how many batches."""
        query = select(tables.batches.c.id).where(tables.batches.c.finished_at < self._now() - KEPT_S)
        async with self._database.read() as connection:
            old = list(await connection.scalars(query))
        for batch_id in old:
            await self._delete_objects(batch_id)
            async with self._database.write() as connection:
                await connection.execute(delete(tables.batches).where(tables.batches.c.id == batch_id))
        return len(old)

    async def _delete_objects(self, batch_id: str) -> None:
        await self._objects.delete(_requests(batch_id))
        await self._objects.delete(_responses(batch_id))
        await self._delete_parts(batch_id)

    async def _delete_parts(self, batch_id: str) -> None:
        """From the last one down, so that those left by a crash are found the next time."""
        number = 0
        with contextlib.suppress(ObjectMissing):
            while True:
                await self._objects.size(_part(batch_id, number))
                number += 1
        while number:
            number -= 1
            await self._objects.delete(_part(batch_id, number))

    async def _read(self, key: str) -> bytes:
        async with aclosing(self._objects.get(key)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    def _is_old(self, batch: Batch) -> bool:
        return batch.finished_at is not None and batch.finished_at < self._now() - KEPT_S


def _requests(batch_id: str) -> str:
    return f"batches/{batch_id}/requests.json"


def _part(batch_id: str, number: int) -> str:
    return f"batches/{batch_id}/part-{number}.json"


def _responses(batch_id: str) -> str:
    return f"batches/{batch_id}/responses.json"
