"""The row store over real files: transactions, cancellations, processes, schemas and settings that make it durable."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, func, insert, select, text

from storage import schema
from storage.database import READERS, Database
from storage.errors import AlreadyExists, DatabaseUnavailable, StorageFull
from storage.tables import accounts, metadata, tokens
from tests.turns import growing_turns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "rows of 100%?.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = await Database.open(path)
    yield database
    await database.aclose()


def account(name: str) -> Any:
    return insert(accounts).values(id=name, name=name, created_at=1.0)


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return list(await connection.scalars(select(accounts.c.name).order_by(accounts.c.name)))


async def test_migrations_make_exactly_the_tables(database: Database, path: Path) -> None:
    engine = create_engine(URL.create("sqlite", database=str(path)))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        engine_indexes = {
            (row.tbl_name, row.name)
            for row in connection.execute(text("SELECT * FROM sqlite_master WHERE type='index'"))
        }
    engine.dispose()
    fresh = create_engine("sqlite://")
    metadata.create_all(fresh)
    with fresh.connect() as connection:
        expected = {
            (row.tbl_name, row.name)
            for row in connection.execute(text("SELECT * FROM sqlite_master WHERE type='index'"))
        }
    fresh.dispose()
    assert engine_indexes - {("alembic_version", "sqlite_autoindex_alembic_version_1")} == expected


async def test_committed_rows_are_read_back_after_a_restart(path: Path) -> None:
    for number in range(3):
        database = await Database.open(path)
        async with database.write() as connection:
            await connection.execute(account(f"n{number}"))
        assert await names(database) == [f"n{each}" for each in range(number + 1)]
        await database.aclose()
        await database.aclose()
    assert sorted(os.listdir(path.parent)) == [path.name, path.name + ".lock"]  # the log was emptied into the file
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite+aiosqlite:///{}", "{}"])
async def test_addresses(tmp_path: Path, form: str) -> None:
    database = await Database.open(form.format(tmp_path / "rows.db"))
    assert database.path == tmp_path / "rows.db"
    await database.aclose()


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "nonsense://x", "://"])
async def test_addresses_that_do_not_work(url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await Database.open(url)
    assert "secret" not in str(caught.value)


async def test_a_write_that_fails_changes_nothing(database: Database) -> None:
    class Oops(Exception):
        pass

    async def failing() -> None:
        async with database.write() as connection:
            await connection.execute(account("a"))
            raise Oops

    with pytest.raises(Oops):
        await failing()
    assert await names(database) == []
    async with database.write() as connection:
        await connection.execute(account("b"))
    assert await names(database) == ["b"]


async def test_taken_names_are_told_apart_from_other_failures(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(account("a"))
    with pytest.raises(AlreadyExists, match=r"accounts\.name"):
        async with database.write() as connection:
            await connection.execute(insert(accounts).values(id="other", name="a", created_at=1.0))
    with pytest.raises(AlreadyExists, match=r"accounts\.id"):
        async with database.write() as connection:
            await connection.execute(insert(accounts).values(id="a", name="other", created_at=1.0))
    row = {
        "id": "t",
        "account_id": "nobody",
        "name": "n",
        "digest": b"",
        "permissions": [],
        "status": "active",
        "created_at": 1.0,
    }
    with pytest.raises(DatabaseUnavailable, match="FOREIGN KEY"):
        async with database.write() as connection:
            await connection.execute(insert(tokens).values(**row))
    assert await names(database) == ["a"]


async def test_readers_see_committed_rows_only(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(account("a"))
        assert await names(database) == []
    async with database.read() as reader:
        count = select(func.count()).select_from(accounts)
        assert await reader.scalar(count) == 1
        async with database.write() as connection:
            await connection.execute(account("b"))
        assert await reader.scalar(count) == 1  # a snapshot
    assert await names(database) == ["a", "b"]


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        async with database.read() as connection:
            await connection.execute(account("a"))
    assert await names(database) == []


async def test_more_readers_than_connections(database: Database) -> None:
    async def one() -> None:
        async with database.read() as connection:
            await connection.scalar(select(func.count()).select_from(accounts))

    await asyncio.gather(*(one() for _ in range(READERS * 5)))


async def test_writers_take_turns(database: Database) -> None:
    """Read, think, write: without turns two of these would read the same count."""

    async def one() -> None:
        async with database.write() as connection:
            number = await connection.scalar(select(func.count()).select_from(accounts))
            await asyncio.sleep(0)
            await connection.execute(account(f"{number:03}"))

    await asyncio.gather(*(one() for _ in range(50)))
    assert await names(database) == [f"{number:03}" for number in range(50)]


async def test_a_write_has_the_file_to_itself_from_its_start(database: Database) -> None:
    """Else a read at its start could be out of date by the time of its first change."""
    async with database.write():
        other = sqlite3.connect(database.path, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


async def test_a_write_inside_a_write_is_refused(database: Database) -> None:
    with pytest.raises(RuntimeError, match="inside"):
        async with database.write(), database.write():
            pass
    async with database.write() as connection:
        await connection.execute(account("a"))


async def test_waiting_for_ever_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.database.WAIT_S", 0.05)

    async def other() -> None:
        async with database.write():
            pass

    async with database.write():
        with pytest.raises(DatabaseUnavailable, match="became free"):
            await asyncio.create_task(other())


async def test_cancelled_at_any_moment(database: Database) -> None:
    """Cancels after 1, 2, 3.. turns of the loop until a write gets through: all of it or nothing, no lock kept."""

    async def two_rows() -> None:
        async with database.write() as connection:
            await connection.execute(account("a"))
            await connection.execute(account("b"))

    cancelled = 0
    for turns in growing_turns():
        task = asyncio.create_task(two_rows())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        assert await names(database) in ([], ["a", "b"])
        if done is None:
            break
        assert isinstance(done, asyncio.CancelledError)
        cancelled += 1
        async with database.write() as connection:
            await connection.execute(accounts.delete())
    assert cancelled > 3
    assert await names(database) == ["a", "b"]


async def test_cancelled_twice(database: Database) -> None:
    started = asyncio.Event()

    async def slow() -> None:
        async with database.write() as connection:
            await connection.execute(account("a"))
            started.set()
            await connection.execute(
                text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT 1 FROM n")
            )

    task = asyncio.create_task(slow())
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as connection:
        await connection.execute(account("b"))
    assert await names(database) == ["b"]


async def test_settings_that_make_it_durable(database: Database) -> None:
    async def pragma(connection: Any, name: str) -> Any:
        return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()

    async with database.write() as connection:
        values = [await pragma(connection, name) for name in ("journal_mode", "synchronous", "foreign_keys")]
        assert values == ["wal", 2, 1]
        assert await pragma(connection, "wal_autocheckpoint") > 0
        assert await pragma(connection, "busy_timeout") == 5000
    async with database.read() as connection:
        assert await pragma(connection, "wal_autocheckpoint") == 0
        assert await pragma(connection, "query_only") == 1


_KILLED_WRITER = """
import asyncio, sys
from pathlib import Path
from storage.database import Database
from storage.tables import accounts
async def main():
    database = await Database.open(Path(sys.argv[1]))
    for number in range(100_000):
        async with database.write() as connection:
            await connection.execute(accounts.insert().values(id=f"{number:06}", name=f"{number:06}", created_at=1.0))
        print(number, flush=True)
asyncio.run(main())
"""


async def test_a_second_process_is_kept_out_and_a_killed_one_keeps_what_it_acknowledged(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _KILLED_WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout is not None
        try:
            while await asyncio.to_thread(writer.stdout.readline) != "20\n":
                assert writer.poll() is None
            with pytest.raises(DatabaseUnavailable, match=f"process {writer.pid}; .*another data directory"):
                await Database.open(path)
        finally:
            writer.send_signal(signal.SIGKILL)
        acknowledged = 20 + len((await asyncio.to_thread(writer.stdout.read)).splitlines())
    database = await Database.open(path)
    found = await names(database)
    await database.aclose()
    assert found == [f"{number:06}" for number in range(len(found))]
    assert len(found) >= acknowledged + 1


async def test_the_same_process_is_kept_out_too(database: Database, path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"process {os.getpid()}"):
        await Database.open(path)
    async with database.write() as connection:
        await connection.execute(account("a"))


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await (await Database.open(path)).aclose()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseUnavailable, match=r"9999.*restore a backup"):
        await Database.open(path)
    assert path.read_bytes() == before
    with pytest.raises(DatabaseUnavailable, match="9999"):  # and the lock was given back
        await Database.open(path)


async def test_a_migration_that_fails_half_way_changes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await Database.open(path)).aclose()
    folder = tmp_path / "copy" / "migrations"
    shutil.copytree(Path(schema.__file__).parent / "migrations", folder)
    (folder / "versions" / "9999_breaks.py").write_text(
        "from alembic import op\nrevision = '9999'\ndown_revision = '0004'\n"
        "def upgrade():\n    op.execute('CREATE TABLE half (x)')\n    op.execute('nonsense')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(schema, "__file__", str(folder.parent / "schema.py"))
        with pytest.raises(DatabaseUnavailable, match="nonsense"):
            await Database.open(path)
    database = await Database.open(path)
    async with database.read() as connection:
        tables = await connection.scalars(text("SELECT name FROM sqlite_master WHERE name = 'half'"))
        assert list(tables) == []
    await database.aclose()


async def test_accounts_from_before_there_were_weights_get_equal_shares(path: Path) -> None:
    path.parent.mkdir()
    schema.migrate(path, "0001")
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO accounts (id, name, created_at) VALUES ('a', 'old', 1.0)")
    raw.close()
    database = await Database.open(path)
    async with database.read() as connection:
        assert list(await connection.scalars(text("SELECT weight FROM accounts"))) == [1.0]
    await database.aclose()


async def test_finetunes_from_before_there_were_versions_become_version_one(path: Path) -> None:
    path.parent.mkdir()
    schema.migrate(path, "0002")
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO accounts (id, name, created_at) VALUES ('a', 'old', 1.0)")
        for finetune, status, digest in (("f1", "ready", "d1"), ("f2", "failed", None)):
            raw.execute(
                "INSERT INTO finetunes (id, account_id, name, model, description, public, status, reasons, digest, "
                "object_key, size_bytes, rank, modules, created_at, modified_at) VALUES "
                "(?, 'a', ?, 'm', '', 0, ?, '[\"r\"]', ?, 'k', 7, 4, '[\"q_proj\"]', 1.0, 2.0)",
                (finetune, finetune, status, digest),
            )
            raw.execute(
                "INSERT INTO finetune_files VALUES (?, 'adapter_config.json', 'key', 3, 'sha', 1.5)", (finetune,)
            )
    raw.close()
    database = await Database.open(path)
    async with database.read() as connection:
        versions = await connection.execute(
            text(
                "SELECT v.finetune_id, number, v.status, reasons, digest, rank, modules, v.created_at, v.modified_at, "
                "f.file_name, a.name, a.version, pinned, last_version, requests FROM finetune_versions v "
                "JOIN finetunes t ON t.id = v.finetune_id "
                "JOIN finetune_files f ON f.finetune_id = v.finetune_id AND f.version = v.number "
                "LEFT JOIN finetune_aliases a ON a.finetune_id = v.finetune_id ORDER BY 1"
            )
        )
        same = ('["r"]', 4, '["q_proj"]', 1.0, 2.0, "adapter_config.json")
        assert [tuple(row) for row in versions] == [
            ("f1", 1, "ready", same[0], "d1", *same[1:], "default", 1, 0, 1, 0),
            ("f2", 1, "failed", same[0], None, *same[1:], None, None, 0, 1, 0),
        ]
        assert list(await connection.scalars(text("SELECT name FROM finetunes ORDER BY name"))) == ["f1", "f2"]
    await database.aclose()


@pytest.mark.parametrize("damage", [b"not a database" * 1000, b"SQLite format 3\x00" + bytes(4080)])
async def test_a_file_that_is_no_database(path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    with pytest.raises(DatabaseUnavailable, match="damaged: put a backup in its place"):
        await Database.open(path)


async def test_one_that_another_program_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.database.BUSY_TIMEOUT_S", 0.05)
    database = await Database.open(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="another program holds it"):
        async with database.write():
            pass
    holder.close()
    await database.aclose()


async def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(Exception, match=r"database .*directory") as caught:
        await Database.open(path)
    assert type(caught.value).__module__ == "storage.errors"


async def test_a_full_database(database: Database) -> None:
    async def too_much() -> None:
        async with database.write() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
            await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            for number in range(1000):
                await connection.execute(account(f"{number}" * 20))

    with pytest.raises(StorageFull):
        await too_much()
    assert await names(database) == []


async def test_closed(path: Path) -> None:
    database = await Database.open(path)
    await database.aclose()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        async with database.write():
            pass
    with pytest.raises(DatabaseUnavailable, match="closed"):
        async with database.read():
            pass


async def test_close_waits_for_transactions_under_way(path: Path) -> None:
    database = await Database.open(path)
    reading, done = asyncio.Event(), asyncio.Event()

    async def reader() -> int:
        async with database.read() as connection:
            reading.set()
            await done.wait()
            return int(await connection.scalar(select(func.count()).select_from(accounts)) or 0)

    task = asyncio.create_task(reader())
    await reading.wait()
    closing = asyncio.create_task(database.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    done.set()
    assert await task == 0
    await closing


async def test_opening_sets_up_no_logging(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    await (await Database.open(path)).aclose()
    assert capfd.readouterr() == ("", "")
