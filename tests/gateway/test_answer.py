"""The order of things in an answer: the record before the last byte, errors before and after the first, callers who
go away or do not read, deadlines. Driven as raw ASGI where the order counts, over sockets where the network does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.fake import FakeBackend, Script
from gateway.body_budget import BodyBudget
from gateway.errors import OverCapacity, RuntimeUnavailable, StorageUnavailable
from gateway.messages import ResolvedRequest
from tests.gateway.stack import RUN, Stack, events, open_stack, serve
from tests.turns import growing_turns


class Caller:
    """One ASGI request, by hand: what was sent so far, and a hang-up on demand."""

    def __init__(self, stack: Stack, body: dict[str, Any]) -> None:
        self._stack = stack
        self._body = json.dumps(body).encode()
        self._asked = False
        self._gone = asyncio.Event()
        self._news = asyncio.Condition()
        self.sent: list[dict[str, Any]] = []

    async def run(self) -> None:
        scope = {
            "type": "http", "method": "POST", "path": self._stack.url(RUN), "query_string": b"", "root_path": "",
            "headers": [(b"authorization", f"Bearer {self._stack.secret}".encode())], "scheme": "http",
            "server": ("x", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip
        await self._stack.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))
        async with self._news:
            self._news.notify_all()

    async def until(self, count: int) -> None:
        """Waits for that many messages."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: len(self.sent) >= count)

    def hang_up(self) -> None:
        self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, *pieces: Any, **settings: Any) -> AsyncIterator[Stack]:
    def script(_: ResolvedRequest) -> Script:
        return pieces

    async with open_stack(tmp_path, FakeBackend(script), settings=settings) as stack:
        yield stack


STREAM = {"prompt": "x", "stream": True}
WHOLE = {"prompt": "x"}


async def test_a_streams_record_is_on_disk_before_its_end_leaves(tmp_path: Path) -> None:
    async with opened(tmp_path, "a", "b") as stack, asyncio.TaskGroup() as group:
        stack.records.hold = asyncio.Event()
        caller = Caller(stack, STREAM)
        group.create_task(caller.run())
        record = await stack.records.until(1)
        await caller.until(3)
        assert events(caller.body) == [{"response": "a"}, {"response": "b"}]
        assert not caller.ended
        assert record.response.endswith(b"data: [DONE]\n\n")
        assert stack.records.durable == []
        stack.records.hold.set()
        await caller.until(4)
        assert stack.records.durable == [record.id]
        assert caller.ended
        assert record.response == caller.body


async def test_a_whole_answers_record_is_on_disk_before_anything_leaves(tmp_path: Path) -> None:
    async with opened(tmp_path, "a", "b") as stack, asyncio.TaskGroup() as group:
        stack.records.hold = asyncio.Event()
        caller = Caller(stack, WHOLE)
        group.create_task(caller.run())
        await stack.records.until(1)
        assert caller.sent == []
        stack.records.hold.set()
        await caller.until(2)
        assert stack.records.durable


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_an_error_before_the_first_piece_is_plain_json(tmp_path: Path, body: dict[str, Any]) -> None:
    async with opened(tmp_path, RuntimeUnavailable("the runtime went away", retry_after_s=2)) as stack:
        answer = await stack.post(RUN, body)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7010)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "2"
        assert stack.records.seen[0].error_code == 7010


async def test_an_error_after_it_is_one_event_and_no_done(tmp_path: Path) -> None:
    async with opened(tmp_path, "a", RuntimeUnavailable("the runtime went away")) as stack:
        answer = await stack.post(RUN, STREAM)
        assert answer.status_code == 200
        assert events(answer.content) == [
            {"response": "a"},
            {"errors": [{"code": 7010, "message": "the runtime went away"}], "success": False},
        ]
        record = stack.records.seen[0]
        assert (record.outcome, record.status_code, record.error_code) == ("error", 503, 7010)
        assert record.response == answer.content
        assert stack.fake.open == 0


async def test_an_error_in_a_whole_answer_is_plain_json(tmp_path: Path) -> None:
    async with opened(tmp_path, "a", RuntimeUnavailable("the runtime went away")) as stack:
        answer = await stack.post(RUN, WHOLE)
        assert (answer.status_code, answer.json()["result"]) == (503, {})


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_a_caller_who_goes_away_frees_everything(tmp_path: Path, body: dict[str, Any]) -> None:
    gate = asyncio.Event()
    async with opened(tmp_path, "a", gate, "b") as stack:
        caller = Caller(stack, body)
        async with asyncio.TaskGroup() as group:
            group.create_task(caller.run())
            await stack.fake.until(lambda: stack.fake.open == 1)
            if body is STREAM:
                await caller.until(2)
            caller.hang_up()
            record = await stack.records.until(1)
        assert (stack.fake.open, stack.fake.closed) == (0, 1)
        assert (record.outcome, record.status_code) == ("client_abort", 499)
        assert record.response == (b'data: {"response":"a"}\n\n' if body is STREAM else b"")
        assert stack.records.durable == [record.id]
        assert not caller.ended
        assert (await stack.client.get("/healthz")).status_code == 200


async def test_a_caller_who_goes_away_while_the_record_is_written_keeps_its_record(tmp_path: Path) -> None:
    async with opened(tmp_path, "a") as stack:
        stack.records.hold = asyncio.Event()
        caller = Caller(stack, STREAM)
        async with asyncio.TaskGroup() as group:
            group.create_task(caller.run())
            await stack.records.until(1)
            caller.hang_up()
            await asyncio.sleep(0)
            stack.records.hold.set()
        assert len(stack.records.seen) == len(stack.records.durable) == 1
        assert stack.records.seen[0].outcome == "stop"


async def test_cancelling_at_every_await_leaves_one_record_and_nothing_open(tmp_path: Path) -> None:
    """The server goes down at any moment: the handler is cancelled after k steps, for every k until it survives."""
    async with opened(tmp_path, "a", "b") as stack:
        # The record's way to the disk is a thread's: how many turns of the loop it takes is the disk's affair.
        for step in growing_turns():
            before = len(stack.records.seen)
            opened_before = len(stack.fake.requests)
            caller = Caller(stack, STREAM)
            task = asyncio.ensure_future(caller.run())
            for _ in range(step):
                await asyncio.sleep(0)
            survived = task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert stack.fake.open == 0
            num_records = len(stack.records.seen) - before
            assert num_records == len(stack.records.durable) - before <= 1
            if len(stack.fake.requests) > opened_before:
                assert num_records == 1, f"cancelled at step {step}"
            if survived:
                assert caller.ended
                break
        else:
            pytest.fail("the request never ended")
        assert step > 5


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_the_deadline(tmp_path: Path, body: dict[str, Any]) -> None:
    async with opened(tmp_path, "a", asyncio.Event(), server={"request_timeout_s": 0.2}) as stack:
        answer = await stack.post(RUN, body)
        record = stack.records.seen[0]
        assert (record.outcome, record.status_code, record.error_code) == ("error", 408, 3046)
        assert stack.fake.open == 0
        if body is STREAM:
            assert events(answer.content)[-1]["errors"][0]["code"] == 3046
        else:
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (408, 3046)
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["cf-aig-log-id"] == record.id


async def test_a_log_that_takes_no_more_fails_a_whole_answer(tmp_path: Path) -> None:
    async with opened(tmp_path, "a") as stack:
        stack.records.error = StorageUnavailable("disk full", retry_after_s=5)
        answer = await stack.post(RUN, WHOLE)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7011)
        assert answer.headers["retry-after"] == "5"
        refused = await stack.post(RUN, {"prompt": ""})
        assert refused.status_code == 503
        stack.records.error = None
        assert (await stack.post(RUN, WHOLE)).status_code == 200


async def test_a_log_that_takes_no_more_ends_a_stream_with_an_error(tmp_path: Path) -> None:
    async with opened(tmp_path, "a") as stack:
        stack.records.error = StorageUnavailable("disk full", retry_after_s=5)
        answer = await stack.post(RUN, STREAM)
        assert events(answer.content)[-1] == {
            "errors": [{"code": 7011, "message": "this exchange cannot be logged at the moment; try again later"}],
            "success": False,
        }
        assert len(stack.records.seen) == 1


async def test_a_hang_up_over_a_socket(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with opened(tmp_path, "a", gate, "b") as stack, serve(stack.app) as url:
        headers = {"authorization": f"Bearer {stack.secret}"}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers) as client,
            client.stream("POST", stack.url(RUN), json=STREAM) as answer,
        ):
            async for line in answer.aiter_lines():
                assert line == 'data: {"response":"a"}'
                break
        record = await stack.records.until(1)
        assert (record.outcome, stack.fake.open, stack.fake.closed) == ("client_abort", 0, 1)


async def test_a_hang_up_over_a_socket_before_any_answer(tmp_path: Path) -> None:
    async with opened(tmp_path, asyncio.Event(), "b") as stack, serve(stack.app) as url:
        headers = {"authorization": f"Bearer {stack.secret}"}
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            call = asyncio.ensure_future(client.post(stack.url(RUN), json=WHOLE))
            await stack.fake.until(lambda: stack.fake.open == 1)
            call.cancel()
            record = await stack.records.until(1)
        assert (record.outcome, record.status_code, stack.fake.open) == ("client_abort", 499, 0)


async def test_a_reader_who_never_reads_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    pieces = ["x" * 60_000] * 400
    async with opened(tmp_path, *pieces, server={"request_timeout_s": 0.5}) as stack, serve(stack.app) as url:
        _reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1024)
        body = json.dumps({**STREAM, "max_tokens": 400}).encode()
        head = f"POST {stack.url(RUN)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.secret}\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        record = await stack.records.until(1)
        assert (record.outcome, record.error_code) == ("error", 3046)
        assert stack.fake.open == 0
        writer.transport.abort()


async def test_bodies_in_memory_are_bounded_together(tmp_path: Path) -> None:
    gate = asyncio.Event()
    server = {"body_buffer_bytes": 1600, "max_body_bytes": 5000}
    async with opened(tmp_path, gate, "a", server=server) as stack, asyncio.TaskGroup() as group:
        first = group.create_task(stack.post(RUN, {"prompt": "x" * 700}))
        await stack.fake.until(lambda: stack.fake.open == 1)
        refused = await stack.post(RUN, {"prompt": "x" * 700})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (429, 3040)
        assert refused.headers["retry-after"] == "1"
        assert stack.services.bodies.refused == 1
        small = group.create_task(stack.post(RUN, {"prompt": "x"}))
        await stack.fake.until(lambda: stack.fake.open == 2)
        gate.set()
        assert (await first).status_code == (await small).status_code == 200
        assert stack.services.bodies.used_bytes == 0
        assert (await stack.post(RUN, {"prompt": "x" * 3000})).status_code == 200  # alone, it may be larger


LENGTHS = st.sampled_from([None, "", "0", "7", "600", "-5", "9" * 30, "1e3"])


@given(st.lists(st.tuples(st.sampled_from("abc"), LENGTHS, st.integers(0, 500), st.booleans()), max_size=30))
def test_the_budget_is_kept_and_given_back(calls: list[tuple[str, str | None, int, bool]]) -> None:
    budget = BodyBudget(1000)
    with contextlib.ExitStack() as stack:
        for account_id, announced, num_bytes, keep in calls:
            held = stack if keep else contextlib.ExitStack()
            try:
                held.enter_context(budget.reserve(account_id, announced, 500)).cover(num_bytes)
            except OverCapacity:
                assert budget.used_bytes > 0
            if held is not stack:
                held.close()
            assert 0 <= budget.used_bytes <= 1000
    assert budget.used_bytes == 0


def test_one_account_cannot_take_the_room_of_the_others() -> None:
    budget = BodyBudget(1_000_000)
    with contextlib.ExitStack() as stack:
        for size in (100_000, 10_000, 1000, 100, 10, 1):
            with contextlib.suppress(OverCapacity):
                while True:
                    stack.enter_context(budget.reserve("greedy", str(size), 100_000))
        for _ in range(10):
            stack.enter_context(budget.reserve("other", "20000", 100_000))
    assert budget.used_bytes == 0


def test_a_body_of_unknown_length_takes_what_has_come() -> None:
    budget = BodyBudget(1_000_000)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(budget.reserve("a", None, 300_000))
        for _ in range(20):
            stack.enter_context(budget.reserve("a", None, 300_000))
        small = budget.used_bytes
        assert small < 400_000
        first.cover(100_000)
        assert budget.used_bytes >= small + 80_000
        with pytest.raises(OverCapacity):
            first.cover(290_000)
    assert budget.used_bytes == 0


async def test_many_at_once(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        answers = await asyncio.gather(
            *(stack.post(RUN, {"prompt": f"n {i}", "stream": i % 2 == 0}) for i in range(60))
        )
        for index, answer in enumerate(answers):
            text = answer.text
            assert f"n {index}" in text or f" {index}" in text
        assert len({answer.headers["cf-aig-log-id"] for answer in answers}) == 60
        assert len(stack.records.durable) == 60
        assert stack.fake.open == 0
