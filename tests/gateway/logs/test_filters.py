"""Filters: three encodings, one meaning; and the SQL says what a plain reading of the rows says."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import BadQuery
from gateway.logs.filters import KEYS, OPERATORS, Filter, LogQuery, make_filter, parse_query
from gateway.logs.log_store import LogPatch, LogStore
from gateway.logs.record import LogRecord
from tests.gateway.logs.support import ACME, record

TWO = (Filter("provider", "eq", ("workers-ai", "openai")), Filter("success", "eq", (True,)))


def _parse(query: str) -> LogQuery:
    return parse_query(parse_qsl(query, keep_blank_values=True))


def test_three_encodings_of_the_same_filters() -> None:
    as_json = json.dumps(
        [
            {"key": "provider", "operator": "eq", "value": ["workers-ai", "openai"]},
            {"key": "success", "operator": "eq", "value": [True]},
        ]
    )
    interleaved = (
        "filters.key=provider&filters.operator=eq&filters.value=workers-ai&filters.value=openai"
        "&filters.key=success&filters.operator=eq&filters.value=true"
    )
    assert _parse(urlencode({"filters": as_json})).filters == TWO
    assert _parse(interleaved).filters == TWO
    grouped = (
        "filters.key=provider&filters.key=success&filters.operator=eq&filters.operator=neq"
        "&filters.value=openai&filters.value=true"
    )
    assert _parse(grouped).filters == (Filter("provider", "eq", ("openai",)), Filter("success", "neq", (True,)))
    one = "filters.key=model&filters.operator=contains&filters.value=a&filters.value=b"
    assert _parse(one).filters == (Filter("model", "contains", ("a", "b")),)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("filters.key=a_key&filters.operator=eq&filters.value=1", "metadata.key"),
        ("filters.key=model&filters.operator=like&filters.value=1", "contains"),
        ("filters.key=model&filters.operator=gt&filters.value=1", "contains"),
        ("filters.key=cost&filters.operator=contains&filters.value=1", "lt or gt"),
        ("filters.key=cost&filters.operator=eq&filters.value=cheap", "number"),
        ("filters.key=cost&filters.operator=lt&filters.value=null", "eq and neq"),
        ("filters.key=success&filters.operator=eq&filters.value=maybe", "true or false"),
        ("filters.key=created_at&filters.operator=gt&filters.value=yesterday", "ISO 8601"),
        ("filters.key=model&filters.operator=eq", "no value"),
        ("filters.key=model&filters.value=x", "operator"),
        ("filters.value=x", "filters.key"),
        ("filters.operator=eq&filters.value=x&filters.key=model&filters.operator=eq&filters.value=y", "before"),
        ("filters.kye=x", "filters.key"),
        (
            "filters.key=a&filters.key=b&filters.operator=eq&filters.operator=eq"
            "&filters.value=1&filters.value=2&filters.value=3",
            "JSON array",
        ),
        ("filters=[", "JSON"),
        ("filters=[5]", "object"),
        ("filters=%5B%7B%22key%22%3A5%7D%5D", "object"),
        ("filters=" + "%5B" * 20_000, "JSON"),
        ("filters=" + json.dumps([{"key": "model", "operator": "eq", "value": ["x"]}] * 21), "at most"),
        ("filters=" + json.dumps([{"key": "model", "operator": "eq", "value": ["x"] * 101}]), "at most"),
        ("filters=" + json.dumps([{"key": "model", "operator": "eq", "value": [{"a": 1}]}]), "string, number"),
        ("search=" + "x" * 1025, "at most"),
        ("order_by=cost", "created_at"),
        ("order_by_direction=up", "asc, desc"),
        ("page=0", "page"),
        ("page=99999999", "page"),
        ("per_page=-1", "per_page"),
        ("min_cost=abc", "min_cost"),
        ("min_cost=1e999", "min_cost"),
        ("max_duration=NaN", "max_duration"),
        ("success=2", "success"),
        ("start_date=2026-13-01", "start_date"),
    ],
)
def test_what_is_refused_says_what_is_allowed(query: str, says: str) -> None:
    with pytest.raises(BadQuery) as refused:
        _parse(query)
    assert says in refused.value.message
    assert len(refused.value.message) < 1000


def test_unknown_names_pass_in_a_list_and_are_refused_where_they_would_widen() -> None:
    assert _parse("modle=x&foo=bar") == LogQuery()
    with pytest.raises(BadQuery, match="modle"):
        parse_query([("modle", "x")], also=("limit",))
    assert parse_query([("limit", "5"), ("model", "m")], also=("limit",)).filters == (Filter("model", "eq", ("m",)),)


def test_simple_parameters() -> None:
    query = _parse(
        "success=true&cached=false&feedback=0&min_cost=0.5&max_total_tokens=10&start_date=2026-11-20T00:00:00Z"
        "&end_date=2026-11-20T01:00:00%2B01:00&model=&search=x&order_by=model&direction=asc&per_page=500&page=2"
    )
    assert set(query.filters) == {
        Filter("success", "eq", (True,)),
        Filter("cached", "eq", (False,)),
        Filter("feedback", "eq", (-1,)),
        Filter("cost", "ge", (0.5,)),
        Filter("tokens", "le", (10,)),
        Filter("created_at", "ge", (1795132800.0,)),
        Filter("created_at", "le", (1795132800.0,)),
    }
    assert (query.order_by, query.direction, query.page, query.per_page) == ("model", "asc", 2, 100)


@given(st.lists(st.tuples(st.sampled_from(["filters", "filters.key", "filters.operator", "filters.value", "page",
                                           "success", "min_cost", "start_date", "search"]),
                          st.one_of(st.text(max_size=30), st.sampled_from([*KEYS, *OPERATORS, "1", "true", "null"]))),
                max_size=12))  # fmt: skip
def test_any_query_is_understood_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        query = parse_query(pairs)
    except BadQuery:
        return
    for one in query.filters:
        assert one.values


@given(st.text(max_size=40), st.sampled_from(["start_date", "end_date"]))
def test_any_time_is_understood_or_refused(text: str, name: str) -> None:
    try:
        parse_query([(name, text)])
    except BadQuery:
        return


@given(st.datetimes(timezones=st.timezones()), st.booleans())
def test_times_mean_themselves(moment: Any, naive: bool) -> None:
    try:
        (one,) = parse_query([("start_date", moment.isoformat())]).filters
    except BadQuery:
        return  # an offset with seconds of old times
    assert one.values == (moment.timestamp(),)


RECORDS: list[LogRecord] = [
    record(created_at=1000.0, cost=0.0, tokens_in=1, tokens_out=2, metadata={"user": "u1", "plan": "pro", "n": 5}),
    record(created_at=1001.0, cost=0.5, model="@cf/meta/100%", lora="x_y", metadata={"user": "u2", "ok": True}),
    record(created_at=1002.0, outcome="error", status_code=404, error_code=3037, provider="openai", user_agent="curl"),
    record(created_at=1003.0, cached=True, streamed=True, lora="xzy", metadata={"plan": "u1", "r": 0.5}, duration_ms=9),
]
FEEDBACK = (None, 1, -1, None)


def _plain(row: Mapping[Any, Any], one: Filter) -> bool:
    """What a filter means, without SQL."""
    values: list[Any]
    if one.key.startswith("metadata."):
        name = one.key.partition(".")[2]
        entries = row["metadata"]
        if name == "key":
            values = list(entries)
        elif name == "value":
            values = list(entries.values())
        else:
            values = [entries[name]] if name in entries else []
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        wanted = [str(v).lower() if isinstance(v, bool) else v if v is None else str(v) for v in one.values]
        if one.comparison == "contains":
            return any(w is not None and w.lower() in t.lower() for w in wanted for t in texts)
        hit = any((not texts) if w is None else w in texts for w in wanted)
        return hit if one.comparison == "eq" else not hit
    fields = {
        "event_id": row["id"], "duration": row["duration_ms"], "tokens": row["tokens_in"] + row["tokens_out"],
        "request_type": None, "authentication": True, "wholesale": False, "compatibilityMode": False,
        "dlp_action": None,
    }  # fmt: skip
    held = fields[one.key] if one.key in fields else row[one.key]
    if one.comparison == "neq":
        return all(held != value for value in one.values)
    if one.comparison == "eq":
        return any(held == value for value in one.values)
    if held is None:
        return False
    if one.comparison == "contains":
        return any(str(value).lower() in held.lower() for value in one.values)
    return any(held < value if one.comparison == "lt" else held > value for value in one.values)


_TEXTS = ("m", "@cf/lorikeet/demo-lora", "100%", "x_y", "_", "%", "openai", "workers-ai", "curl", "stop", "error", "u1")
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from([*_TEXTS, *(one.id for one in RECORDS)]),
    "number": st.sampled_from([None, -1, 0, 0.5, 1, 2, 3, 9, 12, 200, 404, 3037]),
    "time": st.sampled_from(["1970-01-01T00:16:41Z", 1002, 1003.5]),
    "flag": st.sampled_from([True, False, "true", "0"]),
    "metadata": st.sampled_from([None, "u1", "u2", "user", "plan", "p", "5", 5, 0.5, True, "true", "%"]),
}


@st.composite
def _filters(draw: st.DrawFn) -> Filter:
    key = draw(st.sampled_from([*KEYS, "metadata.user", "metadata.plan", "metadata.n"]))
    kind = KEYS.get(key, "metadata")
    allowed = {"text": ("eq", "neq", "contains"), "metadata": ("eq", "neq", "contains"), "flag": ("eq", "neq")}
    operator = draw(st.sampled_from(allowed.get(kind, ("eq", "neq", "lt", "gt"))))
    values = draw(st.lists(_VALUES[kind], min_size=1, max_size=3))
    if operator not in ("eq", "neq"):
        values = [value for value in values if value is not None] or [1 if kind != "metadata" else "u1"]
    return make_filter(key, operator, values)


async def test_sql_agrees_with_a_plain_reading(store: LogStore) -> None:
    for one, feedback in zip(RECORDS, FEEDBACK, strict=True):
        await store.append(one)
        await store.patch(ACME, "default", one.id, LogPatch(feedback=feedback))
    rows = (await store.list(ACME, "default", LogQuery())).rows
    loop_results: list[tuple[Filter, ...]] = []

    @settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(st.lists(_filters(), min_size=1, max_size=2).map(tuple))
    def collect(filters: tuple[Filter, ...]) -> None:
        loop_results.append(filters)

    collect()
    hits = 0
    for filters in loop_results:
        page = await store.list(ACME, "default", LogQuery(filters=filters))
        expected = {row["id"] for row in rows if all(_plain(row, one) for one in filters)}
        assert {row["id"] for row in page.rows} == expected, filters
        hits += 0 < len(expected) < len(rows)
    assert hits > 30


async def test_wildcards_in_values_are_plain_text(store: LogStore) -> None:
    for one in RECORDS:
        await store.append(one)
    for text, found in (("100%", 1), ("%", 1), ("x_y", 1), ("x%y", 0), ("'; DROP TABLE logs; --", 0)):
        assert (await store.list(ACME, "default", LogQuery(search=text))).total == found
    assert (await store.list(ACME, "default", LogQuery(search="XZY"))).total == 1


async def test_user_and_plan_of_the_same_entry(store: LogStore) -> None:
    """The contract's metadata.key and .value match independently; ours does not."""
    for one in RECORDS:
        await store.append(one)
    loose = (make_filter("metadata.key", "eq", ["user"]), make_filter("metadata.value", "eq", ["pro"]))
    assert (await store.list(ACME, "default", LogQuery(filters=loose))).total == 1
    exact = (make_filter("metadata.user", "eq", ["pro"]),)
    assert (await store.list(ACME, "default", LogQuery(filters=exact))).total == 0


async def test_meta_info_gives_the_extremes(store: LogStore) -> None:
    assert (await store.list(ACME, "default", LogQuery(meta_info=True))).meta == dict.fromkeys(
        [f"{end}_{name}" for name in ("cost", "duration", "tokens_in", "tokens_out", "total_tokens")
         for end in ("min", "max")])  # fmt: skip
    for one in RECORDS:
        await store.append(one)
    meta = (await store.list(ACME, "default", LogQuery(meta_info=True))).meta
    assert meta is not None
    assert (meta["min_cost"], meta["max_cost"], meta["min_duration"], meta["max_total_tokens"]) == (0.0, 0.5, 9, 3)
