"""Reading, marking and deleting log rows. The account is part of every WHERE: an id of another account is not there.

Lists are paged by page number because the contract's clients ask so; what walks many rows (export, delete) goes by
key. A delete runs in transactions of a few hundred rows, so that it never holds up the writers for long.
"""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, CursorResult, RowMapping, and_, delete, func, or_, select, update

from gateway.logs.conditions import conditions
from gateway.logs.filters import LogQuery
from storage.database import Database
from storage.tables import logs

Row = RowMapping
Figures = list[ColumnElement[Any]]

_DELETE_ROWS: Final = 500
_WALK_ROWS: Final = 100
_MEASURES: Final = {"cost": logs.c.cost, "duration": logs.c.duration_ms, "tokens_in": logs.c.tokens_in,
                    "tokens_out": logs.c.tokens_out, "total_tokens": logs.c.tokens_in + logs.c.tokens_out}  # fmt: skip


class LogPage(msgspec.Struct, frozen=True):
    """One page of rows; `total` counts all that match, `meta` has their smallest and largest figures if asked for."""

    rows: tuple[Row, ...]
    total: int
    meta: Mapping[str, float | None] | None = None


class LogRows:
    """The `logs` table. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, account_id: str, gateway: str, query: LogQuery) -> LogPage:
        """The rows of one page, empty past the end."""
        async with self._database.read() as connection:
            where = conditions(account_id, gateway, query, connection.dialect.name)
            figures: Figures = [func.count()]
            if query.meta_info:
                figures += [f(column) for column in _MEASURES.values() for f in (func.min, func.max)]
            counted = (await connection.execute(select(*figures).select_from(logs).where(where))).one()
            rows = select(logs).where(where).order_by(*_order(query)).limit(query.per_page)
            found = await connection.execute(rows.offset((query.page - 1) * query.per_page))
            names = [f"{end}_{name}" for name in _MEASURES for end in ("min", "max")]
            meta = dict(zip(names, counted[1:], strict=True)) if query.meta_info else None
            return LogPage(tuple(found.mappings()), int(counted[0]), meta)

    async def get(self, account_id: str, gateway: str, log_id: str) -> Row | None:
        """One row, or None when it is not in this account and gateway."""
        async with self._database.read() as connection:
            found = await connection.execute(select(logs).where(*_is(account_id, gateway, log_id)))
            return _one(found)

    async def patch(self, account_id: str, gateway: str, log_id: str, changes: Mapping[str, Any]) -> Row | None:
        """Sets the columns and returns the row as it is then; None when it is not there."""
        async with self._database.write() as connection:
            where = _is(account_id, gateway, log_id)
            if changes:
                await connection.execute(update(logs).where(*where).values(**changes))
            return _one(await connection.execute(select(logs).where(*where)))

    async def delete(self, account_id: str, gateway: str, query: LogQuery, limit: int | None) -> int:
        """Deletes what matches now, in the query's order, at most `limit`; returns how many went."""
        started = time.time()
        num_deleted = 0
        while limit is None or num_deleted < limit:
            size = _DELETE_ROWS if limit is None else min(_DELETE_ROWS, limit - num_deleted)
            async with self._database.write() as connection:
                where = conditions(account_id, gateway, query, connection.dialect.name)
                ids = select(logs.c.id).where(where, logs.c.created_at <= started).order_by(*_order(query)).limit(size)
                chosen = (await connection.execute(ids)).scalars().all()
                if chosen:
                    await connection.execute(delete(logs).where(logs.c.account_id == account_id, logs.c.id.in_(chosen)))
            num_deleted += len(chosen)
            if len(chosen) < size:
                break
        return num_deleted

    async def walk(self, account_id: str, gateway: str, query: LogQuery) -> AsyncIterator[Row]:
        """Every row that matches now, oldest first, a few at a time; order and page of the query do not count."""
        started = time.time()
        last: tuple[float, str] | None = None
        while True:
            async with self._database.read() as connection:
                where = and_(conditions(account_id, gateway, query, connection.dialect.name),
                             logs.c.created_at <= started)  # fmt: skip
                if last is not None:
                    later = and_(logs.c.created_at == last[0], logs.c.id > last[1])
                    # The plain bound says nothing new, but it is the one that an index can begin at.
                    where = and_(where, logs.c.created_at >= last[0], or_(logs.c.created_at > last[0], later))
                rows = select(logs).where(where).order_by(logs.c.created_at, logs.c.id).limit(_WALK_ROWS)
                found = (await connection.execute(rows)).mappings().all()
            for row in found:
                yield row
            if len(found) < _WALK_ROWS:
                return
            last = found[-1]["created_at"], found[-1]["id"]


def _one(found: CursorResult[Any]) -> Row | None:
    return found.mappings().one_or_none()


def _is(account_id: str, gateway: str, log_id: str) -> tuple[Any, ...]:
    return logs.c.account_id == account_id, logs.c.gateway == gateway, logs.c.id == log_id


def _order(query: LogQuery) -> tuple[Any, ...]:
    columns = [logs.c[query.order_by]]
    if query.order_by != "created_at":
        columns.append(logs.c.created_at)
    columns.append(logs.c.id)
    return tuple(column.asc() if query.direction == "asc" else column.desc() for column in columns)
