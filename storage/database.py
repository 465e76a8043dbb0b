"""The row store: SQLite through SQLAlchemy, with one writing connection and a few that only read.

    opening > open > closed

The writing connection is behind a lock and is the only one that checkpoints: the SQLite that Python ships (3.40)
can corrupt a database whose write-ahead log two connections reset at once (fixed in 3.51.3). For the same reason a
lock file keeps a second process out. Every commit is on disk before `write` ends (WAL, synchronous = FULL).
A cancelled caller changes nothing, except when its commit is already under way: that runs to its end.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from storage.errors import AlreadyExists, DatabaseUnavailable, StorageFull
from storage.files import disk_errors
from storage.lock_file import LockFile
from storage.schema import migrate
from storage.threads import finish

BUSY_TIMEOUT_S: Final = 5.0
WAIT_S: Final = 30.0  # for the writing connection, or for a reading one
READERS: Final = 4

# What an operator can do about it.
_ADVICE = {
    sqlite3.SQLITE_CORRUPT: "the file is damaged: put a backup in its place, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "the file is damaged: put a backup in its place, or move it away to begin anew",
    sqlite3.SQLITE_BUSY: "another program holds it: end that one, and copy the file rather than open it in use",
}
_PRIMARY_CODE = 0xFF  # of an extended result code
_UNIQUE = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


class Database:
    """Made by `open`. `write` and `read` give SQLAlchemy connections; plain Core statements run on them."""

    def __init__(self, path: Path, lock: LockFile) -> None:
        self.path = path
        self._lock = lock
        self._writing = asyncio.Lock()
        self._writing_task: asyncio.Task[object] | None = None
        self._reading = asyncio.Semaphore(READERS)
        self._closed = False
        self._writer = _engine(path, "rwc", 1, _prepare_writer, _begin_write)
        self._readers = _engine(path, "ro", READERS, _prepare_reader, _begin_read)

    @classmethod
    async def open(cls, url_or_path: str | Path) -> "Database":
        """Opens or makes the file and brings its schema up to date.

        Raises DatabaseUnavailable when another process has it open, when a newer program wrote it, or when it cannot
        be used; StorageFull, StorageUnavailable when the folder refuses.
        """
        path = _path(url_or_path)
        lock = LockFile(path.with_name(path.name + ".lock"))
        try:
            with _errors(f"database {path}"), disk_errors(f"database {path}"):
                await finish(asyncio.to_thread(_take, path, lock))
                await finish(asyncio.to_thread(migrate, path))
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, alone among writers: committed at the end, rolled back on any exception or cancellation.

        Hold it for statements only, never while waiting for a network. Raises AlreadyExists when a unique value is
        taken, StorageFull, DatabaseUnavailable; a RuntimeError when nested, which would wait for itself.
        """
        task = asyncio.current_task()
        if self._writing_task is task:
            raise RuntimeError("Database.write inside Database.write")
        async with _turn(self._writing):
            self._check_open()
            self._writing_task = task
            try:
                with _errors("the write did not commit"):
                    async with _opened(self._writer) as connection:
                        yield connection
                        await finish(connection.commit())
            finally:
                self._writing_task = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A snapshot of what is committed; it cannot write. Raises DatabaseUnavailable."""
        async with _turn(self._reading):
            self._check_open()
            with _errors("the row store cannot be read"):
                async with _opened(self._readers) as connection:
                    yield connection

    async def aclose(self) -> None:
        """Waits for transactions under way, closes the file, lets the next process in. May be called again."""
        async with self._writing:
            if self._closed:
                return
            self._closed = True
            try:
                async with AsyncExitStack() as readers:
                    for _ in range(READERS):
                        await readers.enter_async_context(self._reading)
                await finish(self._readers.dispose())
            finally:
                await finish(self._writer.dispose())  # last: it empties the write-ahead log into the database
                self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseUnavailable("the row store is closed")


@asynccontextmanager
async def _turn(gate: asyncio.Lock | asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WAIT_S):
            await gate.acquire()
    except TimeoutError as error:
        raise DatabaseUnavailable(f"no database connection became free in {WAIT_S:.0f} s") from error
    try:
        yield
    finally:
        gate.release()


@asynccontextmanager
async def _opened(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction. Its end rolls back what is not committed, whatever happens meanwhile."""
    connection = engine.connect()
    try:
        await finish(connection.start())
        await finish(connection.begin().start())
        yield connection
    finally:
        if connection.sync_connection is not None:
            await finish(connection.close())


def _path(url_or_path: str | Path) -> Path:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return Path(url_or_path).absolute()
    try:
        url = make_url(url_or_path)
    except ArgumentError as error:
        raise DatabaseUnavailable("the database address is not a URL") from error  # not shown: it may hold a password
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise DatabaseUnavailable(f"{url.get_backend_name()}: only SQLite files work, for example a path")
    return Path(url.database).absolute()


def _take(path: Path, lock: LockFile) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    holder = lock.acquire()
    if holder is not None:
        raise DatabaseUnavailable(
            f"database {path} is in use by process {holder or 'unknown'}; only one process may write to it. "
            "Stop that process, or give this one another data directory"
        )
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # rows are nobody else's business


def _engine(
    path: Path,
    mode: str,
    connections: int,
    prepare: Callable[[DBAPIConnection, object], None],
    begin: Callable[[Connection], None],
) -> AsyncEngine:
    url = URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": mode, "uri": "true"})
    engine = create_async_engine(url, pool_size=connections, max_overflow=0)
    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", begin)
    return engine


def _prepare_writer(connection: DBAPIConnection, record: object) -> None:
    _prepare(connection, "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


def _prepare_reader(connection: DBAPIConnection, record: object) -> None:
    _prepare(connection, "query_only = ON", "wal_autocheckpoint = 0")


def _prepare(connection: DBAPIConnection, *pragmas: str) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself
    cursor = connection.cursor()
    for pragma in (f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}", *pragmas):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_write(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_read(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        code, reason = getattr(error.orig, "sqlite_errorcode", None), f"{what}: {error.orig}"
        if code in _UNIQUE:
            raise AlreadyExists(reason) from error
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(reason) from error
        advice = None if code is None else _ADVICE.get(code & _PRIMARY_CODE)
        raise DatabaseUnavailable(reason if advice is None else f"{reason}; {advice}") from error
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"{what}: {error}") from error
