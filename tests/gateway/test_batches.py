"""`?queueRequest=true`: taken in, answered in the background, asked for by id, kept over a restart, gone in a day."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.fake import FakeBackend
from gateway.batches import desk, records
from gateway.batches.answered import Answered
from gateway.batches.records import Batch, BatchRecords
from gateway.errors import ObjectNotFound, OverCapacity
from gateway.messages import ResolvedRequest
from gateway.settings import DEMO_MODEL
from runtime.protocol import MAX_PRIORITY
from storage.errors import StorageUnavailable
from tests.gateway.stack import RUN, Stack, open_stack
from tests.gateway.told import check_told

QUEUE = RUN + "?queueRequest=true"
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "one hall", "external_reference": "a"},
    {"messages": [{"role": "user", "content": "two"}], "stream": True},
    {"prompt": "x", "lora": "nobody", "external_reference": "c"},
]


async def submit(stack: Stack, requests: Any, **more: Any) -> str:
    answer = await stack.post(QUEUE, {"requests": requests}, **more)
    assert answer.status_code == 200, answer.text
    result = answer.json()["result"]
    assert (result["status"], result["model"]) == ("queued", DEMO_MODEL)
    return str(result["request_id"])


async def poll(stack: Stack, request_id: str) -> Any:
    answer = await stack.post(QUEUE, {"request_id": request_id})
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


async def finished(stack: Stack, request_id: str) -> Any:
    """Asks until it is done, as callers do; the loop turns meanwhile."""
    async with asyncio.timeout(20):
        while "responses" not in (result := await poll(stack, request_id)):
            assert result["request_id"] == request_id
            assert result["status"] in ("queued", "running")
            await asyncio.sleep(0)
    return result


async def test_a_batch_and_its_answers(stack: Stack) -> None:
    request_id = await submit(stack, REQUESTS, headers={"cf-aig-metadata": '{"team": "gulls"}'})
    result = await finished(stack, request_id)
    answers = sorted(result["responses"], key=lambda answer: answer["id"])
    assert [answer["external_reference"] for answer in answers] == ["a", None, "c"]
    assert [answer["success"] for answer in answers] == [True, True, False]
    assert answers[0]["result"] == {
        "response": "one hall", "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }  # fmt: skip
    assert answers[1]["result"]["response"] == "two"
    assert answers[2]["result"] == {}
    assert answers[2]["errors"][0]["code"] == 3037
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    listed = (await stack.client.get(stack.url("/ai-gateway/gateways/default/logs"))).json()["result"]
    assert sorted(log["status_code"] for log in listed) == [200, 200, 404]
    assert {json.dumps(log["metadata"]) for log in listed} == {'{"team": "gulls"}'}
    assert {log["path"] for log in listed} == {f"ai/run/{DEMO_MODEL}"}
    assert all(asked.request.priority == MAX_PRIORITY and not asked.request.stream for asked in stack.fake.requests)
    assert await poll(stack, request_id) == result  # as often as one likes
    for body in ({"requests": REQUESTS}, {"request_id": request_id}):
        check_told("/ai/run/{model}", body, (await stack.post(QUEUE, body)).json())


async def test_another_account_sees_nothing_of_it(stack: Stack) -> None:
    request_id = await submit(stack, REQUESTS[:1])
    await finished(stack, request_id)
    url, headers = stack.url(QUEUE, stack.account_b), {"authorization": f"Bearer {stack.secret_b}"}
    for wanted in (request_id, "00000000-0000-4000-8000-000000000000", "x" * 500):
        answer = await stack.client.post(url, json={"request_id": wanted}, headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003)
        assert "no batch" in answer.json()["errors"][0]["message"]


async def test_it_survives_a_restart_in_the_middle(tmp_path: Path) -> None:
    gate = asyncio.Event()

    def stuck(request: ResolvedRequest) -> list[Any]:
        return ["first", gate]

    async with open_stack(tmp_path, FakeBackend(stuck)) as first:
        account, secret = first.account, first.secret
        request_id = await submit(first, REQUESTS[:2])
        await first.fake.until(lambda: first.fake.open == 2)
        assert (await poll(first, request_id))["status"] == "running"
    assert not first.fake.open
    async with _reopened(tmp_path) as again:
        again.account, again.client.headers["authorization"] = account, f"Bearer {secret}"
        result = await finished(again, request_id)
    assert sorted(answer["result"]["response"] for answer in result["responses"]) == ["one hall", "two"]


async def test_what_was_answered_before_a_restart_is_not_asked_again(tmp_path: Path) -> None:
    gate = asyncio.Event()
    requests = [{"prompt": prompt, "external_reference": prompt} for prompt in ("one hall", "stuck", "two")]

    def script(request: ResolvedRequest) -> list[Any]:
        prompt = str(request.request.prompt)
        return [gate, "never"] if prompt == "stuck" else [prompt]

    async with open_stack(tmp_path, FakeBackend(script)) as first:
        account, secret = first.account, first.secret
        request_id = await submit(first, [*requests, {"prompt": "x", "lora": "nobody"}])
        folder = tmp_path / "data" / "objects" / "batches" / request_id
        async with asyncio.timeout(20):
            while sum(len(json.loads(part.read_bytes())) for part in folder.glob("part-*.json")) < 3:
                await asyncio.sleep(0.001)
        assert (await poll(first, request_id))["status"] == "running"
    async with _reopened(tmp_path) as again:
        again.account, again.client.headers["authorization"] = account, f"Bearer {secret}"
        result = await finished(again, request_id)
        assert [asked.request.prompt for asked in again.fake.requests] == ["stuck"]
        async with asyncio.timeout(20):
            while sorted(path.name for path in folder.iterdir()) != ["requests.json", "responses.json"]:
                await asyncio.sleep(0.001)
    answers = sorted(result["responses"], key=lambda answer: answer["id"])
    assert [answer["external_reference"] for answer in answers] == ["one hall", "stuck", "two", None]
    assert [answer["result"].get("response") for answer in answers] == ["one hall", "stuck", "two", None]
    assert result["responses"][-1]["id"] == 1  # the order is that of completion
    assert answers[3]["errors"][0]["code"] == 3037
    assert result["usage"]["total_tokens"] == 3 + 2 + 2


async def test_answers_that_cannot_be_kept_are_answers_all_the_same(tmp_path: Path) -> None:
    """Storage that is away while a batch is at work costs nothing but what a crash then would."""
    async with open_stack(tmp_path) as stack:
        failed: list[int] = []

        async def keep(batch: Batch, number: int, answers: list[Answered]) -> None:
            failed.append(number)
            raise StorageUnavailable("away")

        stack.app.state.services.batches._queue.records.keep = keep
        result = await finished(stack, await submit(stack, REQUESTS))
    assert len(result["responses"]) == 3
    assert set(failed) == {0}


def _reopened(folder: Path) -> Any:
    """The same data folder; the accounts that every stack makes have other names this time."""
    return open_stack(folder, FakeBackend(), names=("c", "d"))


async def test_what_the_moment_forbids_is_waited_for(tmp_path: Path) -> None:
    tries: list[int] = []

    def script(request: ResolvedRequest) -> list[Any]:
        tries.append(1)
        return [OverCapacity("busy", retry_after_s=0.001)] if len(tries) < 3 else ["at last"]

    async with open_stack(tmp_path, FakeBackend(script)) as stack:
        result = await finished(stack, await submit(stack, REQUESTS[:1]))
    assert result["responses"][0]["result"]["response"] == "at last"
    assert len(tries) == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({}, 400, 5006, "'requests' must be a list"),
        ({"requests": []}, 400, 5006, "'requests' must be a list"),
        ({"requests": "x"}, 400, 5006, "'requests' must be a list"),
        ({"requests": [{"prompt": "x"}] * 10_001}, 400, 5006, "1 to 10000"),
        ({"requests": [{"prompt": "x"}, {"prompt": ""}]}, 400, 5006, "'requests[1]': 'prompt' is empty"),
        ({"requests": [{"prompt": "x", "temperature": 9}]}, 400, 5006, "'requests[0]': 'temperature'"),
        ({"requests": [{"requests": []}]}, 400, 5006, "'requests[0]'"),
        ({"requests": [5]}, 400, 5006, "'requests[0]'"),
        ({"requests": [{"prompt": "x", "external_reference": 5}]}, 400, 5006, "external_reference"),
        ({"requests": [{"prompt": "x", "external_reference": "r" * 513}]}, 400, 5006, "external_reference"),
        ({"request_id": 7}, 400, 5006, "'request_id'"),
        ({"requests": [{"prompt": "x" * 10_000_000}]}, 413, 3006, "10000000 bytes"),
        (b"", 400, 3003, "no body"),
    ],
)
async def test_bad_batches(stack: Stack, body: Any, status: int, code: int, said: str) -> None:
    answer = await stack.post(QUEUE, body)
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert said in error["message"]
    assert stack.fake.requests == []


async def test_an_unknown_model_takes_no_batch(stack: Stack) -> None:
    answer = await stack.post("/ai/run/@cf/nobody/nothing?queueRequest=true", {"requests": REQUESTS})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 5007)
    without = await stack.post(RUN, {"requests": REQUESTS})
    assert "queueRequest=true" in without.json()["errors"][0]["message"]


async def test_an_account_may_not_pile_up_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_OPEN", 2)
    gate = asyncio.Event()
    async with open_stack(tmp_path, FakeBackend(lambda request: [gate, "done"])) as stack:
        ids = [await submit(stack, REQUESTS[:1]) for _ in range(2)]
        answer = await stack.post(QUEUE, {"requests": REQUESTS[:1]})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, 3040)
        assert answer.headers["retry-after"] == "30"
        gate.set()
        for request_id in ids:
            await finished(stack, request_id)
        await submit(stack, REQUESTS[:1])


async def test_results_go_after_a_day(stack: Stack) -> None:
    request_id = await submit(stack, REQUESTS[:1])
    await finished(stack, request_id)
    stored = Path(stack.services.settings.data_dir) / "objects" / "batches" / request_id
    async with asyncio.timeout(20):  # the parts go after the batch is done
        while sorted(path.name for path in stored.iterdir()) != ["requests.json", "responses.json"]:
            await asyncio.sleep(0.001)
    (stored / "part-0.json").write_bytes(b"[]")  # as a crash would leave them
    (stored / "part-1.json").write_bytes(b"[]")
    now = [0.0]
    later = BatchRecords(stack.services.database, stack.services.objects, now=lambda: now[0])
    batch = await BatchRecords(stack.services.database, stack.services.objects).get(stack.account, request_id)
    assert batch.finished_at is not None
    now[0] = batch.finished_at + records.KEPT_S - 1
    assert await later.sweep() == 0
    assert (await later.get(stack.account, request_id)).status == "done"
    now[0] += 2
    with pytest.raises(ObjectNotFound):  # before anything is swept
        await later.get(stack.account, request_id)
    assert await later.sweep() == 1
    assert not list(stored.glob("*"))


def test_the_limits_are_those_of_the_contract() -> None:
    assert desk.MAX_BYTES == 10_000_000
    assert records.KEPT_S == 86_400
