"""Log filters as SQL conditions on the `logs` table. Values are always parameters, never text of the statement.

null matches with eq and neq; neq also finds rows without a value. `metadata.key` and `metadata.value` look at any
entry, each on its own, as the original does; `metadata.<name>` asks for the value of that very entry.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, String, and_, case, cast, func, literal, not_, null, or_, select
from sqlalchemy.sql.selectable import TableValuedAlias

from gateway.logs.filters import Filter, LogQuery, Value
from storage.tables import logs

_COLUMNS: Final[Mapping[str, ColumnElement[Any]]] = {
    "event_id": logs.c.id,
    "duration": logs.c.duration_ms,
    "tokens": logs.c.tokens_in + logs.c.tokens_out,
    # What this gateway does not have is the same for every log: always authenticated, never resold, never scanned.
    "request_type": null(),
    "authentication": literal(True),
    "wholesale": literal(False),
    "compatibilityMode": literal(False),
    "dlp_action": null(),
}
_SEARCHED: Final = (logs.c.id, logs.c.model, logs.c.provider, logs.c.path, logs.c.lora)


def conditions(account_id: str, gateway: str, query: LogQuery, dialect: str) -> ColumnElement[bool]:
    """Everything that the query asks of a row of this account and gateway. `dialect`: "sqlite" or "postgresql"."""
    parts: list[ColumnElement[bool]] = [logs.c.account_id == account_id, logs.c.gateway == gateway]
    parts += [_condition(one, dialect) for one in query.filters]
    if query.search is not None:
        parts.append(or_(*(column.icontains(query.search, autoescape=True) for column in _SEARCHED)))
    return and_(*parts)


def _condition(one: Filter, dialect: str) -> ColumnElement[bool]:
    if one.key.startswith("metadata."):
        return _metadata(one, dialect)
    column = _COLUMNS[one.key] if one.key in _COLUMNS else logs.c[one.key]
    match one.comparison:
        case "eq":
            return or_(*(column.is_(None) if value is None else column == value for value in one.values))
        case "neq":
            return and_(*(column.is_distinct_from(value) for value in one.values))
        case "contains":
            return or_(*(column.icontains(value, autoescape=True) for value in one.values))
        case "lt":
            return or_(*(column < value for value in one.values))
        case "gt":
            return or_(*(column > value for value in one.values))
        case "le":
            return or_(*(column <= value for value in one.values))
        case "ge":
            return or_(*(column >= value for value in one.values))


def _metadata(one: Filter, dialect: str) -> ColumnElement[bool]:
    name = one.key.partition(".")[2]
    matches = [_entry(name, one.comparison == "contains", value, dialect) for value in one.values]
    return not_(or_(*matches)) if one.comparison == "neq" else or_(*matches)


def _entry(name: str, contains: bool, value: Value, dialect: str) -> ColumnElement[bool]:
    """Whether some metadata entry has this value (for null: whether there is no such entry)."""
    entries, text = _entries(dialect)
    parts: list[ColumnElement[bool]] = []
    if name not in ("key", "value"):
        parts.append(entries.c.key == name)
    looked_at: ColumnElement[str] = entries.c.key if name == "key" else text
    if value is None:
        return not_(_exists(entries, parts))
    if contains:
        parts.append(looked_at.icontains(_texts(value)[0], autoescape=True))
    else:
        parts.append(looked_at.in_(_texts(value)))
    return _exists(entries, parts)


def _exists(entries: TableValuedAlias, parts: list[ColumnElement[bool]]) -> ColumnElement[bool]:
    return select(literal(1)).select_from(entries).where(*parts).exists()


def _entries(dialect: str) -> tuple[TableValuedAlias, ColumnElement[str]]:
    """The metadata of a row as a table of entries, and an entry's value as text."""
    if dialect == "postgresql":
        entries = func.json_each_text(logs.c.metadata).table_valued("key", "value")
        return entries, entries.c.value
    entries = func.json_each(logs.c.metadata).table_valued("key", "value", "type")
    kind = entries.c.type
    return entries, case((kind == "true", "true"), (kind == "false", "false"), else_=cast(entries.c.value, String))


def _texts(value: Value) -> list[str]:
    """How a value can be spelled in stored JSON."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int | float):
        return sorted({str(value), str(float(value))})
    return [str(value)]
