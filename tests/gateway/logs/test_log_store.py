"""The log as a whole, on a real database and object store: what was appended is there, once, and only for its owner."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import ObjectNotFound, StorageUnavailable
from gateway.ids import uuid7
from gateway.logs.filters import LogQuery, parse_query
from gateway.logs.log_store import LogPatch, LogStore
from gateway.logs.record import LogRecord
from gateway.settings import Logs
from runtime.protocol import SequenceTiming
from tests.gateway.logs.support import ACME, GLOBEX, House, record

SMALL = Logs(segment_bytes=4096)


async def _archived(house: House) -> None:
    """Until only the open segment is left."""
    async with asyncio.timeout(20):
        while len(house.segments()) > 1:
            await asyncio.sleep(0.01)


async def test_a_log_is_listed_right_after_its_append(store: LogStore) -> None:
    for number in range(5):
        sent = record(f"question {number}")
        await store.append(sent)
        page = await store.list(ACME, "default", LogQuery())
        assert (page.total, page.rows[0]["id"]) == (number + 1, sent.id)
    assert store.counters.reads_behind == 0


async def test_every_field_of_a_record_reaches_its_row(store: LogStore) -> None:
    timing = SequenceTiming(0.001, 0.002, 0.003, 0.004, 5, 3, 2, "disk")
    sent = record(
        lora="my-lora", adapter_id="f" * 36, adapter_digest="d" * 64, tokens_in=3, tokens_out=4, cached_tokens=2,
        cost=0.5, step=1, first_byte_ms=7, error_code=3037, trace_id="e" * 32, user_agent="curl", streamed=True,
        metadata={"user": "u1", "n": 5, "ok": True, "ratio": 0.5}, timing=timing, cached=True,
    )  # fmt: skip
    await store.append(sent)
    row = await store.get(ACME, "default", sent.id)
    for name in set(LogRecord.__struct_fields__) & set(row.keys()) - {"metadata", "timing"}:
        assert row[name] == getattr(sent, name), name
    assert row["metadata"] == {"user": "u1", "n": 5, "ok": True, "ratio": 0.5}
    assert row["timing"] == {
        "queue_ms": 1.0, "adapter_wait_ms": 2.0, "first_token_ms": 3.0, "total_ms": 4.0, "batch_rows": 5,
        "batch_adapters": 3, "batch_accounts": 2, "adapter_source": "disk",
    }  # fmt: skip
    assert row["success"] is True
    assert (row["request_size"], row["response_size"]) == (len(sent.request), len(sent.response))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": "\ud800 lone", "path": "x\0y", "model": "m" * 500, "user_agent": "\0" * 400},
        {"metadata": {"a": 10**30, "b": float("nan"), "c": "\udfff", "\0": 1}},
        {"tokens_in": 10**12, "duration_ms": -(10**12), "cost": float("inf")},
        {"request": b"", "response": b""},
        {"request": bytes(range(256)) * 400, "response": b"\xff" * 100_000},
    ],
)
async def test_no_record_can_stop_the_ones_behind_it(store: LogStore, changes: dict[str, Any]) -> None:
    odd, plain = record(**changes), record()
    await store.append(odd)
    await store.append(plain)
    assert (await store.list(ACME, "default", LogQuery())).total == 2
    assert await store.request_body(ACME, "default", odd.id) == odd.request
    assert await store.response_body(ACME, "default", plain.id) == plain.response
    assert store.counters.ship_failures == 0


async def test_bodies_are_the_same_bytes_before_and_after_they_are_archived(house: House) -> None:
    store = await house.store(SMALL)
    sent = [record(f"question {n}", "x" * (n * 100), account_id=(ACME, GLOBEX)[n % 2]) for n in range(60)]
    await asyncio.gather(*(store.append(one) for one in sent))
    await store.list(ACME, "default", LogQuery())
    assert len(house.segments()) > 5
    for one in sent:
        assert await store.request_body(one.account_id, "default", one.id) == one.request
    await _archived(house)
    assert store.counters.bodies_archived > 5
    for one in sent:
        row, bodies = await store.bodies(one.account_id, "default", one.id)
        assert (bodies.request, bodies.response) == (one.request, one.response)
        assert bodies.log_id == row["id"]
    await store.aclose()


async def test_other_accounts_and_gateways_see_nothing(store: LogStore) -> None:
    mine, theirs = record("mine"), record("theirs", account_id=GLOBEX)
    elsewhere = record("elsewhere", gateway="other")
    for one in (mine, theirs, elsewhere):
        await store.append(one)
    listed = await store.list(ACME, "default", LogQuery())
    assert [row["id"] for row in listed.rows] == [mine.id]
    for foreign in (theirs.id, elsewhere.id, uuid7()):
        for call in (
            store.get(ACME, "default", foreign),
            store.patch(ACME, "default", foreign, LogPatch(feedback=1)),
            store.request_body(ACME, "default", foreign),
            store.response_body(ACME, "default", foreign),
        ):
            with pytest.raises(ObjectNotFound):
                await call
    by_id = parse_query([("filters", f'[{{"key":"id","operator":"eq","value":["{theirs.id}"]}}]')])
    assert (await store.list(ACME, "default", by_id)).total == 0
    assert await store.delete(ACME, "default", by_id) == 0
    assert await store.delete(ACME, "default", LogQuery()) == 1
    assert (await store.get(GLOBEX, "default", theirs.id))["feedback"] is None
    assert [line async for line in store.export(ACME, "default", LogQuery())] == []
    lines = [line async for line in store.export(GLOBEX, "default", LogQuery())]
    assert len(lines) == 1
    assert b"theirs" in lines[0]


async def test_patch_changes_what_is_given_and_clears_what_is_null(store: LogStore) -> None:
    sent = record(metadata={"a": 1})
    await store.append(sent)
    row = await store.patch(ACME, "default", sent.id, LogPatch(feedback=-1, score=0.25))
    assert (row["feedback"], row["score"], row["metadata"]) == (-1, 0.25, {"a": 1})
    row = await store.patch(ACME, "default", sent.id, LogPatch(feedback=None, metadata={"b": True}))
    assert (row["feedback"], row["score"], row["metadata"]) == (None, 0.25, {"b": True})
    row = await store.patch(ACME, "default", sent.id, LogPatch(metadata=None))
    assert row["metadata"] == {}
    assert dict(await store.patch(ACME, "default", sent.id, LogPatch())) == dict(row)


async def test_pages_end_empty_and_hold_every_log_once(store: LogStore) -> None:
    sent = [record(created_at=1000.0 + n // 3) for n in range(23)]
    for one in sent:
        await store.append(one)
    seen: list[str] = []
    for number in range(1, 10):
        page = await store.list(ACME, "default", LogQuery(page=number, per_page=5, direction="asc"))
        assert page.total == 23
        seen += [row["id"] for row in page.rows]
        if not page.rows:
            break
    assert number == 6
    assert sorted(seen) == sorted(one.id for one in sent)


async def test_delete_takes_filters_and_a_limit_in_order(store: LogStore) -> None:
    sent = [record(created_at=1000.0 + n, outcome="error" if n % 2 else "stop") for n in range(10)]
    for one in sent:
        await store.append(one)
    assert await store.delete(ACME, "default", parse_query([("order_by_direction", "asc")]), limit=3) == 3
    assert await store.delete(ACME, "default", parse_query([("success", "false")])) == 4
    left = await store.list(ACME, "default", LogQuery(direction="asc"))
    assert [row["id"] for row in left.rows] == [sent[4].id, sent[6].id, sent[8].id]


async def test_deleted_logs_do_not_reach_the_archive_nor_come_back(house: House) -> None:
    store = await house.store()
    gone, kept = record("secret of acme"), record("kept")
    await store.append(gone)
    await store.append(kept)
    only_gone = parse_query([("filters", f'[{{"key":"id","operator":"eq","value":["{gone.id}"]}}]')])
    assert await store.delete(ACME, "default", only_gone) == 1
    await store.aclose()
    store = await house.store()  # the old segment is sealed and archived now
    await _archived(house)
    assert [row["id"] for row in (await store.list(ACME, "default", LogQuery())).rows] == [kept.id]
    assert await store.request_body(ACME, "default", kept.id) == kept.request
    await store.aclose()
    stored = b"".join(path.read_bytes() for path in house.folder.rglob("*") if path.is_file())
    assert b"secret of acme" not in stored


async def test_export_gives_finished_exchanges_oldest_first_in_every_state_of_the_bodies(house: House) -> None:
    store = await house.store(SMALL)
    sent = [record(f"q{n}", f"a{n}" * 300, created_at=1000.0 + n) for n in range(20)]
    skipped = [
        record(outcome="error", status_code=500, response=b"{}", created_at=1001.5),
        record(outcome="client_abort", created_at=1002.5),
        record("q", "", created_at=1003.5),
        record(request=b"not json", created_at=1004.5),
    ]
    for one in sorted([*sent, *skipped], key=lambda one: one.created_at):
        await store.append(one)
    for _ in range(2):
        lines = [msgspec.json.decode(line) async for line in store.export(ACME, "default", LogQuery())]
        assert [line["messages"] for line in lines] == [
            [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}" * 300}] for n in range(20)
        ]
        await _archived(house)
    assert store.counters.export_skipped == 4  # two each time; the others are not even looked at
    await store.patch(ACME, "default", sent[7].id, LogPatch(feedback=1))
    marked = [line async for line in store.export(ACME, "default", parse_query([("feedback", "1")]))]
    assert len(marked) == 1
    assert b"q7" in marked[0]
    await store.aclose()


async def test_a_second_process_cannot_open_the_folder(house: House) -> None:
    store = await house.store()
    with pytest.raises(StorageUnavailable):
        await house.store()
    await store.aclose()
    await (await house.store()).aclose()


async def test_a_folder_that_cannot_be_used_fails_the_start(house: House) -> None:
    (house.folder / "logs").write_text("a file")
    with pytest.raises(StorageUnavailable):
        await house.store()


async def test_closing_leaves_every_row_and_no_task(house: House) -> None:
    store = await house.store()
    sent = [record() for _ in range(200)]
    appends = [asyncio.ensure_future(store.append(one)) for one in sent]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*appends)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("log-")]
    with pytest.raises(StorageUnavailable):
        await store.append(record())
    store = await house.store()
    assert (await store.list(ACME, "default", LogQuery())).total == 200
    await store.aclose()


async def test_damage_in_the_middle_costs_its_tail_and_keeps_the_file(house: House) -> None:
    store = await house.store()
    good, bad = record("good"), record("bad")
    await store.append(good)
    await store.append(bad)
    await store.aclose()
    (segment,) = house.segments()
    path = house.folder / "logs" / segment
    await _rows_forgotten(house)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    # A younger segment makes it an older one, whose tail no crash can have torn.
    (house.folder / "logs" / "9000000000000000-00000001.wal").write_bytes(b"")
    store = await house.store()
    assert [row["id"] for row in (await store.list(ACME, "default", LogQuery())).rows] == [good.id]
    await _archived(house)
    assert store.counters.damaged_segments == 1
    assert Path(str(path).replace(".wal", ".damaged")).read_bytes() == bytes(data)
    assert await store.request_body(ACME, "default", good.id) == good.request
    await store.aclose()


async def test_damage_amid_the_newest_segment_keeps_the_file_too(house: House) -> None:
    """What a server finds at its start: nothing younger stands beside the damaged segment."""
    store = await house.store()
    good, bad, cut_off = record("good"), record("bad"), record("cut off")
    for each in (good, bad, cut_off):
        await store.append(each)
    await store.aclose()
    (segment,) = house.segments()
    path = house.folder / "logs" / segment
    await _rows_forgotten(house)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the second of three
    path.write_bytes(data)
    store = await house.store()
    assert [row["id"] for row in (await store.list(ACME, "default", LogQuery())).rows] == [good.id]
    await _archived(house)
    assert Path(str(path).replace(".wal", ".damaged")).read_bytes() == bytes(data)
    await store.aclose()


async def test_a_segment_that_went_bad_after_its_rows_were_shipped_is_kept(house: House) -> None:
    """Its bodies are nowhere else: those behind the damage would go with the file."""
    store = await house.store()
    texts = [record("good"), record("bad"), record("behind it")]
    for each in texts:
        await store.append(each)
    assert (await store.list(ACME, "default", LogQuery())).total == 3
    await store.aclose()
    (segment,) = house.segments()
    path = house.folder / "logs" / segment
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the second of three
    path.write_bytes(data)
    store = await house.store()
    await _archived(house)
    assert (await store.list(ACME, "default", LogQuery())).total == 3
    assert await store.request_body(ACME, "default", texts[0].id) == texts[0].request
    assert Path(str(path).replace(".wal", ".damaged")).read_bytes() == bytes(data)
    await store.aclose()


async def test_readers_do_not_wait_long_for_a_row_store_that_is_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.log_store._READ_WAIT_S", 0.1)
    store = await house.store()
    async with house.database.write():  # nobody else can write now
        await store.append(record())
        assert (await store.list(ACME, "default", LogQuery())).total == 0
        assert store.counters.reads_behind == 1
    assert (await store.list(ACME, "default", LogQuery())).total == 1
    await store.aclose()


async def _rows_forgotten(house: House) -> None:
    from sqlalchemy import delete

    from storage.tables import log_segments, logs

    async with house.database.write() as connection:
        await connection.execute(delete(logs))
        await connection.execute(delete(log_segments))


async def test_a_cancelled_export_stops_reading(store: LogStore) -> None:
    for number in range(10):
        await store.append(record(f"q{number}"))
    lines = store.export(ACME, "default", LogQuery())
    assert b"q0" in await anext(lines)
    async with contextlib.aclosing(lines):  # type: ignore[type-var]
        pass
    assert store.counters.exported == 1
