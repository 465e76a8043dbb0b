"""Exactly one row and one body per record, wherever the copying out of the segments stops.

A failpoint raises `Crash` at one place of the shipper or archiver, as a kill there would leave things; then the log is
closed without a chance to finish and opened again, several times in a row.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.logs import archiver as archiver_module
from gateway.logs import shipper as shipper_module
from gateway.logs.filters import LogQuery
from gateway.logs.log_store import LogPatch, LogStore
from gateway.logs.record import LogRecord
from gateway.settings import Logs
from storage.database import Database
from storage.errors import DatabaseUnavailable, StorageUnavailable
from storage.tables import log_segments, logs
from tests.gateway.logs.support import ACME, House, record

SMALL = Logs(segment_bytes=4096)


class Crash(BaseException):
    """The process is gone."""


class Dying:
    """A database whose write transactions end at a chosen place: before the commit, or right after it."""

    def __init__(self, database: Database, when: str, nth: int) -> None:
        self._database = database
        self._when = when
        self._left = nth

    def read(self) -> Any:
        return self._database.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self._left -= 1
        async with self._database.write() as connection:
            yield connection
            if self._left == 0 and self._when == "before commit":
                raise Crash
        if self._left == 0 and self._when == "after commit":
            raise Crash


class DyingObjects:
    """An object store that dies after a put is stored, before anybody hears of it."""

    def __init__(self, house: House) -> None:
        self._objects = house.objects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    async def put(self, key: str, data: Any, *, max_bytes: int) -> int:
        await self._objects.put(key, data, max_bytes=max_bytes)
        raise Crash


async def _until_dead(store: LogStore) -> None:
    """Until a task of the store died of its Crash, or has nothing left to do."""
    done, _ = await asyncio.wait(store._tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        assert isinstance(task.exception(), Crash)


async def _abandon(store: LogStore) -> None:
    """What a kill leaves: no draining, no sealing; only the folder's lock goes."""
    for task in store._tasks:
        task.cancel()
    await asyncio.gather(*store._tasks, return_exceptions=True)
    store._recorder._writer.close = lambda: None  # type: ignore[method-assign]
    await store._recorder.aclose()
    await store._threads.aclose()
    store._disk.close()


async def _check(house: House, sent: list[LogRecord]) -> None:
    store = await house.store(SMALL)
    for _ in range(2):
        page = await store.list(ACME, "default", LogQuery(per_page=100))
        assert sorted(row["id"] for row in page.rows) == sorted(one.id for one in sent)
        for one in sent:
            _, bodies = await store.bodies(ACME, "default", one.id)
            assert (bodies.request, bodies.response) == (one.request, one.response)
        async with asyncio.timeout(20):
            while len(house.segments()) > 1:
                await asyncio.sleep(0.01)
    assert len([line async for line in store.export(ACME, "default", LogQuery())]) == len(sent)
    await store.aclose()
    async with house.database.read() as connection:
        keyed = select(func.count()).select_from(log_segments).where(log_segments.c.bodies_key.is_not(None))
        num_keys = (await connection.execute(keyed)).scalar_one()
    assert len(list((house.folder / "objects").rglob("*.parquet"))) == num_keys


@pytest.mark.parametrize("when", ["before commit", "after commit"])
@pytest.mark.parametrize("nth", [1, 2, 3, 5])
async def test_dying_around_a_commit(house: House, when: str, nth: int) -> None:
    sent: list[LogRecord] = []
    for _ in range(3):
        store = await house.store(SMALL, database=Dying(house.database, when, nth))
        for number in range(12):
            sent.append(record(f"question {len(sent)}", "x" * (300 * (number % 4) + 1)))
            await store.append(sent[-1])
        await _until_dead(store)
        await _abandon(store)
    await _check(house, sent)


async def test_dying_between_the_parquet_and_its_key(house: House) -> None:
    sent: list[LogRecord] = []
    for _ in range(2):
        store = await house.store(SMALL, objects=DyingObjects(house))
        for _ in range(20):
            sent.append(record(f"question {len(sent)}", "x" * 400))
            await store.append(sent[-1])
        await _until_dead(store)
        await _abandon(store)
    await _check(house, sent)


async def test_dying_between_the_key_and_the_removal(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await house.store(SMALL)

    def crash(name: str) -> None:
        raise Crash

    sent: list[LogRecord] = []
    monkeypatch.setattr(store._disk, "remove", crash)
    for _ in range(20):
        sent.append(record(f"question {len(sent)}", "x" * 400))
        await store.append(sent[-1])
    await _until_dead(store)
    await _abandon(store)
    await _check(house, sent)


async def test_feedback_outlives_a_second_shipping(house: House) -> None:
    """The offset is lost with its transaction; the row that is there already is left as it is."""
    store = await house.store()
    sent = record()
    await store.append(sent)
    await store.patch(ACME, "default", sent.id, LogPatch(feedback=1))
    await _abandon(store)
    async with house.database.write() as connection:
        await connection.execute(log_segments.delete())
    store = await house.store()
    page = await store.list(ACME, "default", LogQuery())
    assert [(row["id"], row["feedback"]) for row in page.rows] == [(sent.id, 1)]
    await store.aclose()


async def test_control_without_the_conflict_clause(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with a plain INSERT, must not get through."""
    store = await house.store()
    await store.append(record())
    await store.list(ACME, "default", LogQuery())
    await _abandon(store)
    async with house.database.write() as connection:
        await connection.execute(log_segments.delete())

    async def insert(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
        await connection.execute(logs.insert(), rows)

    monkeypatch.setattr(shipper_module, "_insert", insert)
    store = await house.store()
    async with asyncio.timeout(10):
        while not store.counters.ship_failures:
            await asyncio.sleep(0.01)
    await _abandon(store)


async def test_control_offset_saved_before_the_rows(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset in a transaction of its own, ahead of the rows: a crash in between loses them."""
    sent = record()

    async def insert(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
        await shipper_module._save_offset(connection, rows[0]["segment_id"], 1 << 20)
        await connection.commit()
        raise Crash

    with monkeypatch.context() as planted:
        planted.setattr(shipper_module, "_insert", insert)
        store = await house.store()
        await store.append(sent)
        await _until_dead(store)
        await _abandon(store)
    store = await house.store()
    assert (await store.list(ACME, "default", LogQuery())).total == 0
    await store.aclose()


async def test_a_row_store_that_is_away_comes_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_MAX_BACKOFF_S", 0.05)
    away = True

    class Away(Dying):
        def write(self) -> Any:
            if away:
                raise DatabaseUnavailable("gone")
            return self._database.write()

    store = await house.store(SMALL, database=Away(house.database, "", 0))
    sent = [record(f"question {n}", "x" * 400) for n in range(20)]
    for one in sent:
        await store.append(one)  # recording does not need the row store
    async with asyncio.timeout(10):
        while store.counters.ship_failures < 2:
            await asyncio.sleep(0.01)
    away = False
    async with asyncio.timeout(10):
        while store.counters.rows_shipped < 20:
            await asyncio.sleep(0.01)
    await store.aclose()
    await _check(house, sent)


async def test_an_object_store_that_is_away_comes_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    away = True

    class Away(DyingObjects):
        async def put(self, key: str, data: Any, *, max_bytes: int) -> int:
            if away:
                raise StorageUnavailable("gone")
            return await self._objects.put(key, data, max_bytes=max_bytes)

    monkeypatch.setattr(archiver_module, "_MIN_BACKOFF_S", 0.01)
    store = await house.store(SMALL, objects=Away(house))
    sent = [record(f"question {n}", "x" * 400) for n in range(30)]
    for one in sent:
        await store.append(one)
    async with asyncio.timeout(10):
        while store.counters.archive_failures < 2:
            await asyncio.sleep(0.01)
    assert await store.request_body(ACME, "default", sent[0].id) == sent[0].request
    away = False
    async with asyncio.timeout(10):
        while len(house.segments()) > 1:
            await asyncio.sleep(0.01)
    await store.aclose()
    assert not list((house.folder / "logs" / "scratch").iterdir())
    await _check(house, sent)
