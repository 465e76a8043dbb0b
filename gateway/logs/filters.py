"""What a log query may say, and how the wire says it; pure parsing, no SQL.

Structured filters are `{key, operator, value: [...]}`, values OR-ed within a filter, filters AND-ed. They arrive in
three encodings (wire-contract 4.6): a JSON array in `filters`; per filter `filters.key, .operator, .value...`
(TypeScript SDK); all keys, then all operators, then all values (Python SDK). The last is ambiguous unless there is one
filter or as many values as filters: then it is refused rather than guessed. Simple parameters (`success=true`,
`min_cost=1`) become filters with the same meaning.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Final, Literal, TypeVar, get_args

import msgspec

from gateway.errors import BadQuery

Value = str | int | float | bool | None
Operator = Literal["eq", "neq", "contains", "lt", "gt"]
Comparison = Literal["eq", "neq", "contains", "lt", "gt", "le", "ge"]
Kind = Literal["text", "number", "time", "flag", "metadata"]
OrderBy = Literal["created_at", "provider", "model", "model_type", "success", "cached"]
Direction = Literal["asc", "desc"]
Pairs = Sequence[tuple[str, str]]
_T = TypeVar("_T")

OPERATORS: Final = get_args(Operator)
MAX_FILTERS: Final = 20
MAX_VALUES: Final = 100
MAX_TEXT: Final = 1024
MAX_PER_PAGE: Final = 100
MAX_PAGE: Final = 1_000_000

# The contract's keys, then ours. Of the contract's, the last four have one constant answer here (conditions.py).
KEYS: Final[Mapping[str, Kind]] = {
    "id": "text", "created_at": "time", "request_content_type": "text", "response_content_type": "text",
    "request_type": "text", "success": "flag", "cached": "flag", "provider": "text", "model": "text",
    "model_type": "text", "cost": "number", "tokens": "number", "tokens_in": "number", "tokens_out": "number",
    "duration": "number", "feedback": "number", "event_id": "text", "metadata.key": "metadata",
    "metadata.value": "metadata", "user_agent": "text", "authentication": "flag", "wholesale": "flag",
    "compatibilityMode": "flag", "dlp_action": "text",
    "lora": "text", "adapter_id": "text", "adapter_digest": "text", "outcome": "text", "path": "text",
    "trace_id": "text", "status_code": "number", "error_code": "number", "score": "number", "streamed": "flag",
}  # fmt: skip
_SIMPLE_EQUAL: Final = ("cached", "success", "provider", "model", "model_type", "request_content_type",
                        "response_content_type", "feedback", "lora", "adapter_id", "adapter_digest", "outcome",
                        "status_code", "streamed", "user_agent", "trace_id")  # fmt: skip
_SIMPLE_RANGE: Final = {"cost": "cost", "duration": "duration", "tokens_in": "tokens_in",
                        "tokens_out": "tokens_out", "total_tokens": "tokens"}  # fmt: skip
_FILTER_NAMES: Final = ("filters", "filters.key", "filters.operator", "filters.value")
_OTHER_NAMES: Final = ("search", "start_date", "end_date", "order_by", "order_by_direction", "direction")
FILTER_NAMES: Final = (
    *_FILTER_NAMES, *_OTHER_NAMES, *_SIMPLE_EQUAL,
    *(f"{end}_{name}" for name in _SIMPLE_RANGE for end in ("min", "max")),
)  # fmt: skip


class Filter(msgspec.Struct, frozen=True):
    """One condition on one key. `values` are already of the key's kind: times are Unix seconds, flags are bool."""

    key: str
    comparison: Comparison
    values: tuple[Value, ...]


class LogQuery(msgspec.Struct, frozen=True):
    """Which logs, in which order. Pages count from 1."""

    filters: tuple[Filter, ...] = ()
    search: str | None = None
    order_by: OrderBy = "created_at"
    direction: Direction = "desc"
    page: int = 1
    per_page: int = 20
    meta_info: bool = False


def parse_query(pairs: Pairs, *, also: Iterable[str] | None = None) -> LogQuery:
    """The query of a list from its raw, ordered pairs; empty values of simple parameters count as absent.

    `also`: further names the caller reads itself. When given, a name that nobody reads, an empty value or a repeated
    one is refused: where logs are deleted or exported a slip must not widen the selection. Raises BadQuery.
    """
    if also is not None:
        allowed = {*FILTER_NAMES, *also}
        seen: set[str] = set()
        for name, value in pairs:
            if name not in allowed:
                raise BadQuery(
                    f"{name[:64]!r} is not a parameter here; allowed: {', '.join(sorted(allowed))}", param=name
                )
            if value == "":
                raise BadQuery(f"{name} is empty; give it a value or leave it out", param=name)
            if name in seen and name not in _FILTER_NAMES:
                raise BadQuery(f"{name} is given twice; use filters for several values", param=name)
            seen.add(name)
    simple = {name: value for name, value in pairs if name not in _FILTER_NAMES and value != ""}
    direction = simple.get("order_by_direction", simple.get("direction", "desc"))
    return LogQuery(
        filters=(*_structured(pairs), *_simple(simple)),
        search=_text("search", simple["search"]) if "search" in simple else None,
        order_by=_one_of("order_by", simple.get("order_by", "created_at"), get_args(OrderBy)),
        direction=_one_of("order_by_direction", direction, get_args(Direction)),
        page=_whole("page", simple.get("page", "1"), MAX_PAGE),
        per_page=min(_whole("per_page", simple.get("per_page", "20"), MAX_PAGE), MAX_PER_PAGE),
        meta_info=_flag("meta_info", simple.get("meta_info", "false")),
    )


def make_filter(key: str, operator: str, values: Sequence[object]) -> Filter:
    """A structured filter, checked. Raises BadQuery naming what is allowed."""
    kind = _kind(key)
    comparison = _one_of("filters.operator", operator, OPERATORS)
    if operator == "contains" and kind not in ("text", "metadata"):
        raise BadQuery(f"contains does not apply to {key}; use eq, neq, lt or gt", param="filters")
    if operator in ("lt", "gt") and kind not in ("number", "time"):
        raise BadQuery(f"{operator} does not apply to {key}; use eq, neq or contains", param="filters")
    if not values:
        raise BadQuery(f"the filter on {key} has no value", param="filters")
    if len(values) > MAX_VALUES:
        raise BadQuery(f"the filter on {key} has {len(values)} values; at most {MAX_VALUES}", param="filters")
    converted = tuple(_convert(key, kind, value) for value in values)
    if operator not in ("eq", "neq") and None in converted:
        raise BadQuery(f"null can be compared with eq and neq only, not with {operator} ({key})", param="filters")
    return Filter(key, comparison, converted)


def _structured(pairs: Pairs) -> list[Filter]:
    filters: list[Filter] = []
    for name, value in pairs:
        if name == "filters" and value != "":
            filters += _from_json(value)
    filters += _from_dotted([(name.partition(".")[2], value) for name, value in pairs if name.startswith("filters.")])
    if len(filters) > MAX_FILTERS:
        raise BadQuery(f"{len(filters)} filters; at most {MAX_FILTERS}", param="filters")
    return filters


def _from_json(text: str) -> list[Filter]:
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise BadQuery("filters is not JSON; send an array of {key, operator, value}", param="filters") from error
    items = decoded if isinstance(decoded, list) else [decoded]
    filters = []
    for item in items[: MAX_FILTERS + 1]:
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            raise BadQuery("each of filters must be an object {key, operator, value}", param="filters")
        value = item.get("value")
        values = value if isinstance(value, list) else [value] if "value" in item else []
        filters.append(make_filter(item["key"], str(item.get("operator", "eq")), values))
    return filters


def _from_dotted(parts: list[tuple[str, str]]) -> list[Filter]:
    for part, _ in parts:
        if part not in ("key", "operator", "value"):
            raise BadQuery(f"filters.{part} is not a parameter; allowed: {', '.join(_FILTER_NAMES[1:])}")
    seen_value = False
    for part, _ in parts:
        seen_value = seen_value or part == "value"
        if part == "key" and seen_value:
            return _interleaved(parts)
    return _grouped(parts)


def _interleaved(parts: list[tuple[str, str]]) -> list[Filter]:
    groups: list[list[tuple[str, str]]] = []
    for part, value in parts:
        if part == "key":
            groups.append([])
        if not groups:
            raise BadQuery("filters.key must come before its operator and values", param="filters")
        groups[-1].append((part, value))
    return [f for group in groups for f in _grouped(group)]


def _grouped(parts: list[tuple[str, str]]) -> list[Filter]:
    keys = [value for part, value in parts if part == "key"]
    operators = [value for part, value in parts if part == "operator"]
    values = [value for part, value in parts if part == "value"]
    if len(operators) != len(keys):
        raise BadQuery(f"{len(keys)} filters.key but {len(operators)} filters.operator", param="filters")
    if not keys and values:
        raise BadQuery("filters.value without filters.key", param="filters")
    if len(keys) == 1:
        return [make_filter(keys[0], operators[0], values)]
    if len(keys) != len(values):
        raise BadQuery(
            f"{len(keys)} filters with {len(values)} values in groups: which value belongs to which filter cannot be "
            "told. Send filters as a JSON array, or one value per filter",
            param="filters",
        )
    return [make_filter(*one[:2], [one[2]]) for one in zip(keys, operators, values, strict=True)]


def _simple(simple: Mapping[str, str]) -> list[Filter]:
    given = [name for name in _SIMPLE_EQUAL if name in simple]
    filters = [Filter(name, "eq", (_convert(name, KEYS[name], simple[name]),)) for name in given]
    for name, key in _SIMPLE_RANGE.items():
        if f"min_{name}" in simple:
            filters.append(Filter(key, "ge", (_number(f"min_{name}", simple[f"min_{name}"]),)))
        if f"max_{name}" in simple:
            filters.append(Filter(key, "le", (_number(f"max_{name}", simple[f"max_{name}"]),)))
    if "start_date" in simple:
        filters.append(Filter("created_at", "ge", (_time("start_date", simple["start_date"]),)))
    if "end_date" in simple:
        filters.append(Filter("created_at", "le", (_time("end_date", simple["end_date"]),)))
    return filters


def _kind(key: str) -> Kind:
    """`metadata.<name>` is ours: key and value of the same entry, where the contract's two match independently."""
    if key in KEYS:
        return KEYS[key]
    if key.startswith("metadata.") and 0 < len(key) - len("metadata.") <= 256:
        return "metadata"
    raise BadQuery(f"{key[:64]!r} is not a filter key; allowed: {', '.join(KEYS)}, metadata.<name>", param="filters")


def _convert(key: str, kind: Kind, value: object) -> Value:
    if value is None or (value == "null" and kind != "text"):
        return None
    if not isinstance(value, str | int | float):
        raise BadQuery(f"a value of {key} must be a string, number, boolean or null", param="filters")
    match kind:
        case "flag":
            return _flag(key, value)
        case "time":
            return _time(key, value)
        case "number":
            number = _number(key, value)
            # The original's simple parameter knows thumbs as 0 and 1, its stored form is -1 and 1.
            return -1 if key == "feedback" and number == 0 else number
        case "metadata":
            return value if isinstance(value, bool) else _text(key, value)
        case "text":
            return _text(key, value)


def _text(name: str, value: object) -> str:
    text = str(value)
    if len(text) > MAX_TEXT:
        raise BadQuery(f"a value of {name} is {len(text)} characters long; at most {MAX_TEXT}", param=name)
    return text.encode("utf-8", "replace").decode().replace("\0", "�")


def _flag(name: str, value: object) -> bool:
    text = str(value).lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise BadQuery(f"{name} must be true or false", param=name)


def _number(name: str, value: object) -> float | int:
    text = str(value)
    if not isinstance(value, bool) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII):
        number = float(text)
        if isfinite(number) and abs(number) < 2**53:
            return int(number) if number.is_integer() else number
    raise BadQuery(f"{name} must be a number", param=name)


def _time(name: str, value: object) -> float:
    """ISO 8601 (without an offset: UTC) or Unix seconds."""
    text = str(value)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return float(_number(name, value))
        except BadQuery:
            raise BadQuery(f"{name} must be a time in ISO 8601, for example 2026-11-20T12:00:00Z", param=name) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _whole(name: str, text: str, largest: int) -> int:
    if re.fullmatch(r"\d{1,7}", text, re.ASCII) and 1 <= int(text) <= largest:
        return int(text)
    raise BadQuery(f"{name} must be a whole number from 1 to {largest}", param=name)


def _one_of(name: str, value: str, allowed: tuple[_T, ...]) -> _T:
    for choice in allowed:
        if choice == value:
            return choice
    raise BadQuery(f"{name} must be one of {', '.join(map(str, allowed))}", param=name)
