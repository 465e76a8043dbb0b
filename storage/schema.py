"""Brings a database file to the newest schema (or an older one, for tests), in one transaction: all steps or none.

Runs before the database is opened for use, over a connection of its own, and blocks. Foreign keys are off while it
runs (alembic rebuilds tables) and checked before the commit.
"""

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, event, pool
from sqlalchemy.engine.interfaces import DBAPIConnection

from storage.errors import DatabaseUnavailable

_alembic = threading.Lock()  # alembic keeps its current environment in a module


def migrate(path: Path, to: str = "head") -> None:
    """Raises DatabaseUnavailable when the file was written by a newer program, and SQLAlchemy's errors."""
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=pool.NullPool)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    with _alembic, engine.connect() as connection, connection.begin():
        _upgrade(connection, to)


def _upgrade(connection: Connection, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise DatabaseUnavailable(
                f"the database has schema {revision}, which this version does not know (its newest is {max(known)}); "
                "run the version that wrote it, or restore a backup from before the upgrade"
            )
    command.upgrade(config, to)
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise DatabaseUnavailable(f"a migration left a row of {broken[0]} that refers to nothing; nothing was changed")


def _prepare(connection: DBAPIConnection, record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
