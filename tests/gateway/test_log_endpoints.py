"""The log over HTTP, on the whole gateway with a fake backend: a call is made, then read back, marked and exported."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.backends.fake import FakeBackend
from gateway.endpoints.logs import ROUTES
from gateway.errors import OverCapacity
from gateway.settings import DEMO_MODEL
from storage.errors import DatabaseUnavailable
from tests.gateway.stack import CHAT, RUN, Stack, open_stack, serve

LOGS = "/ai-gateway/gateways/default/logs"


async def _get(stack: Stack, path: str = "", status: int = 200, **params: Any) -> Any:
    answer = await stack.client.get(stack.url(LOGS + path), params=params)
    assert answer.status_code == status, answer.text
    return answer.json()


async def _ask(stack: Stack, question: str, **body: Any) -> str:
    answer = await stack.post(RUN, {"prompt": question, **body})
    assert answer.status_code == 200
    return answer.headers["cf-aig-log-id"]


async def test_an_answer_is_in_the_list_as_soon_as_it_is_there(stack: Stack) -> None:
    for number in range(3):
        log_id = await _ask(stack, f"question {number}")
        body = await _get(stack)
        assert body["result"][0]["id"] == log_id
        assert body["result_info"] == {
            "page": 1, "per_page": 20, "count": number + 1, "total_count": number + 1, "total_pages": 1,
        }  # fmt: skip


async def test_a_row_says_what_happened(stack: Stack) -> None:
    headers = {"cf-aig-metadata": '{"user":"u1","n":5,"ok":true}', "user-agent": "tests"}
    answer = await stack.post(RUN, {"prompt": "one two", "max_tokens": 2}, headers=headers)
    row = (await _get(stack, "/" + answer.headers["cf-aig-log-id"]))["result"]
    expected = {
        "provider": "workers-ai", "model": DEMO_MODEL, "path": f"ai/run/{DEMO_MODEL}", "status_code": 200,
        "success": True, "cached": False, "step": 0, "metadata": {"user": "u1", "n": 5, "ok": True},
        "model_type": "Text Generation", "request_content_type": "application/json", "feedback": None, "score": None,
        "request_head": '{"prompt": "one two", "max_tokens": 2}', "request_head_complete": True,
        "response_head_complete": True, "user_agent": "tests", "lora": None, "tokens_in": 2, "tokens_out": 2,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["response_head"] == answer.text
    assert row["request_size"] == len(row["request_head"])
    assert row["created_at"].endswith("Z")
    assert {"queue_ms", "adapter_wait_ms", "first_token_ms", "total_ms", "batch_rows", "batch_adapters",
            "batch_accounts", "adapter_source"} == set(row["timings"])  # fmt: skip


async def test_bodies_come_back_byte_for_byte(stack: Stack) -> None:
    asked = b'{ "prompt" : "h\\u00e9llo" , "stream" : true }'
    answer = await stack.post(RUN, asked, headers={"content-type": "text/html"})
    base = stack.url(f"{LOGS}/{answer.headers['cf-aig-log-id']}")
    request = await stack.client.get(base + "/request")
    response = await stack.client.get(base + "/response")
    assert request.content == asked
    assert request.headers["content-type"] == "application/json"  # never what a browser would run
    assert request.headers["x-content-type-options"] == "nosniff"
    assert response.content == answer.content
    assert response.headers["content-type"].startswith("text/event-stream")
    for one in (request, response):
        assert one.headers["cache-control"] == "private, no-store"


async def test_pages_end_with_an_empty_one(stack: Stack) -> None:
    ids = [await _ask(stack, f"question {number}") for number in range(7)]
    seen: list[str] = []
    for page in range(1, 6):
        rows = (await _get(stack, page=page, per_page=3))["result"]
        seen += [row["id"] for row in rows]
        if not rows:
            break
    assert (page, seen) == (4, ids[::-1])


async def test_failures_are_logged_and_found(stack: Stack) -> None:
    await _ask(stack, "fine")
    failed = await stack.post(RUN, {"prompt": ""})
    assert failed.status_code == 400
    rows = (await _get(stack, success="false"))["result"]
    assert [(row["id"], row["status_code"], row["error_code"]) for row in rows] == [
        (failed.headers["cf-aig-log-id"], 400, 5006)
    ]


@pytest.mark.parametrize(
    "query",
    [
        "success=true&order_by=created_at&order_by_direction=asc",
        "filters=%5B%7B%22key%22%3A%22success%22%2C%22operator%22%3A%22eq%22%2C%22value%22%3A%5Btrue%5D%7D%5D",
        "filters.key=success&filters.operator=eq&filters.value=true&filters.key=model&filters.operator=contains"
        "&filters.value=demo&filters.value=other",
        "filters.key=success&filters.key=provider&filters.operator=eq&filters.operator=eq&filters.value=true"
        "&filters.value=workers-ai",
    ],
)
async def test_every_encoding_of_filters_works_over_http(stack: Stack, query: str) -> None:
    log_id = await _ask(stack, "fine")
    await stack.post(RUN, {"prompt": ""})
    answer = await stack.client.get(stack.url(f"{LOGS}?{query}"))
    assert [row["id"] for row in answer.json()["result"]] == [log_id]


@pytest.mark.parametrize("path", ["", "/export"])
@pytest.mark.parametrize("query", ["filters.key=x&filters.operator=eq&filters.value=1", "filters=[", "order_by=x"])
async def test_bad_filters(stack: Stack, path: str, query: str) -> None:
    answer = await stack.client.get(stack.url(f"{LOGS}{path}?{query}"))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 7001)


async def test_feedback(stack: Stack) -> None:
    log_id = await _ask(stack, "fine")
    url = stack.url(f"{LOGS}/{log_id}")
    for patch, expected in (
        ({"feedback": 1}, (1, None, {})),
        ({"score": 0.5, "unknown": [1]}, (1, 0.5, {})),
        ({"metadata": {"a": 1, "b": "x", "c": True}}, (1, 0.5, {"a": 1, "b": "x", "c": True})),
        ({"feedback": None, "metadata": None}, (None, 0.5, {})),
        ({"feedback": -1, "score": None}, (-1, None, {})),
        ({}, (-1, None, {})),
    ):
        answer = await stack.client.patch(url, content=json.dumps(patch), headers={"content-type": "text/plain"})
        assert answer.status_code == 200, answer.text
        row = answer.json()["result"]
        assert (row["feedback"], row["score"], row["metadata"]) == expected
        assert (await _get(stack, f"/{log_id}"))["result"]["feedback"] == expected[0]
    assert (await _get(stack, feedback=0))["result_info"]["total_count"] == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 3003), (b"[]", 5006), (b"{", 5006), (b'{"feedback":2}', 5006), (b'{"feedback":0}', 5006),
        (b'{"feedback":true}', 5006), (b'{"feedback":"1"}', 5006), (b'{"score":"high"}', 5006),
        (b'{"score":1e999}', 5006), (b'{"score":true}', 5006), (b'{"score":99999999999999999999999}', 5006),
        (b'{"metadata":[]}', 5006), (b'{"metadata":{"a":{"b":1}}}', 5006), (b'{"metadata":{"a":null}}', 5006),
        (b'{"metadata":{"":1}}', 5006), (b'{"metadata":{"a":99999999999999999999999}}', 5006),
        (json.dumps({"metadata": {str(n): n for n in range(21)}}).encode(), 5006),
        (json.dumps({"metadata": {"a": "x" * 5000}}).encode(), 5006),
        (b'{"metadata":{"a":"' + b"x" * 70_000 + b'"}}', 3006),
    ],
)  # fmt: skip
async def test_bad_feedback_changes_nothing(stack: Stack, body: bytes, code: int) -> None:
    log_id = await _ask(stack, "fine")
    before = (await _get(stack, f"/{log_id}"))["result"]
    answer = await stack.client.patch(stack.url(f"{LOGS}/{log_id}"), content=body)
    assert (answer.status_code // 100, answer.json()["errors"][0]["code"]) == (4, code)
    assert (await _get(stack, f"/{log_id}"))["result"] == before


async def test_delete_says_success_at_the_top_and_takes_filters(stack: Stack) -> None:
    for number in range(4):
        await _ask(stack, f"question {number}")
    await stack.post(RUN, {"prompt": ""})
    for query, left in (("success=false", 4), ("limit=1&order_by_direction=asc", 3), ("", 0), ("", 0)):
        answer = await stack.client.delete(stack.url(f"{LOGS}?{query}"))
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        assert (await _get(stack))["result_info"]["total_count"] == left


@pytest.mark.parametrize(
    "query", ["sucess=false", "limit=0", "limit=all", "page=", "model=x&modle=y", "model=", "model=x&model=y"]
)
async def test_a_delete_that_may_mean_something_else_deletes_nothing(stack: Stack, query: str) -> None:
    await _ask(stack, "fine")
    answer = await stack.client.delete(stack.url(f"{LOGS}?{query}"))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 7001)
    assert (await _get(stack))["result_info"]["total_count"] == 1


async def test_export_loads_back_as_what_was_said(stack: Stack) -> None:
    native = await _ask(stack, "native words")
    streamed = await stack.post(RUN, {"messages": [{"role": "user", "content": "streamed words"}], "stream": True})
    chat = {
        "model": DEMO_MODEL,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "openai words"}],
    }
    whole = await stack.post(CHAT, chat)
    chunks = await stack.post(CHAT, {**chat, "stream": True})
    await stack.post(RUN, {"prompt": ""})
    answer = await stack.client.get(stack.url(f"{LOGS}/export"), params={"format": "openai_chat"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    conversations = [json.loads(line)["messages"] for line in answer.text.splitlines()]
    said = [(turns[-2]["content"], turns[-1]["role"], turns[-1]["content"]) for turns in conversations]
    assert said == [
        (text, "assistant", text) for text in ("native words", "streamed words", "openai words", "openai words")
    ]
    assert conversations[2][0] == {"role": "system", "content": "be brief"}
    for log_id, feedback in ((native, 1), (streamed.headers["cf-aig-log-id"], -1), (whole.headers["cf-aig-log-id"], 1)):
        await stack.client.patch(stack.url(f"{LOGS}/{log_id}"), json={"feedback": feedback})
    marked = await stack.client.get(stack.url(f"{LOGS}/export"), params={"feedback": 1})
    assert marked.text.splitlines() == [answer.text.splitlines()[0], answer.text.splitlines()[2]]
    assert chunks.status_code == 200
    empty = await stack.client.get(stack.url(f"{LOGS}/export"), params={"model": "none"})
    assert (empty.status_code, empty.content) == (200, b"")


async def test_failed_and_cut_answers_are_not_exported(tmp_path: Path) -> None:
    fake = FakeBackend(lambda request: ["half ", OverCapacity("full")])
    async with open_stack(tmp_path, fake) as stack:
        assert (await stack.post(RUN, {"prompt": "q", "stream": True})).status_code == 200
        await stack.post(RUN, {"prompt": "q"})
        assert (await _get(stack))["result_info"]["total_count"] == 2
        assert (await stack.client.get(stack.url(f"{LOGS}/export"))).content == b""


@pytest.mark.parametrize("query", ["format=csv", "formt=openai_chat", "feedbak=1"])
async def test_bad_export(stack: Stack, query: str) -> None:
    answer = await stack.client.get(stack.url(f"{LOGS}/export?{query}"))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 7001)


async def test_export_streams_over_a_socket(stack: Stack) -> None:
    for number in range(250):
        await _ask(stack, f"question {number}")
    async with (
        serve(stack.app) as url,
        httpx.AsyncClient(base_url=url, headers=stack.client.headers) as client,
        client.stream("GET", stack.url(f"{LOGS}/export")) as answer,
    ):
        lines = [json.loads(line) async for line in answer.aiter_lines()]
    assert [line["messages"][0]["content"] for line in lines] == [f"question {number}" for number in range(250)]


async def test_an_account_never_sees_the_logs_of_another(stack: Stack) -> None:
    log_id = await _ask(stack, "secret of a")
    as_b = {"authorization": f"Bearer {stack.secret_b}"}
    for row in ROUTES:
        for account in (stack.account, stack.account_b):
            path = row.path.format(account_id=account, gateway_id="default", log_id=log_id)
            answer = await stack.client.request(row.method, path, headers=as_b, content=b'{"feedback":1}')
            assert b"secret of a" not in answer.content
            assert answer.status_code == 404 or account == stack.account_b
            if "{log_id}" in row.path:
                assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003), row
    assert (await _get(stack, f"/{log_id}"))["result"]["feedback"] is None
    assert (await _get(stack))["result_info"]["total_count"] == 1


async def test_permissions(stack: Stack) -> None:
    log_id = await _ask(stack, "fine")
    reader = await stack.token("ai_gateway.read")
    other = await stack.token("workers_ai.write", "ai_gateway.run")
    for row in ROUTES:
        path = row.path.format(account_id=stack.account, gateway_id="default", log_id=log_id)
        for secret, allowed in ((reader, row.permission == "ai_gateway.read"), (other, False)):
            headers = {"authorization": f"Bearer {secret}"}
            answer = await stack.client.request(row.method, path, headers=headers, content=b'{"feedback":1}')
            assert answer.status_code == (200 if allowed else 403), (row.method, row.path)
    assert (await _get(stack, f"/{log_id}"))["result"]["feedback"] is None


@pytest.mark.parametrize("gateway", ["other", "Default", "..", "default%00", "x" * 500])
async def test_unknown_gateways(stack: Stack, gateway: str) -> None:
    answer = await stack.client.get(stack.url(f"/ai-gateway/gateways/{gateway}/logs"))
    assert answer.status_code in (400, 404)
    for row in ROUTES:
        path = row.path.format(account_id=stack.account, gateway_id="other", log_id="x")
        answer = await stack.client.request(row.method, path, content=b'{"feedback":1}')
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003)


@pytest.mark.parametrize("log_id", ["x", "0", "../../x", "%27%20OR%201=1", "a" * 3000])
async def test_unknown_logs(stack: Stack, log_id: str) -> None:
    answer = await stack.client.get(stack.url(f"{LOGS}/{log_id}"))
    assert answer.status_code in (400, 404, 414)


async def test_a_row_store_that_is_away_is_a_503(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    await _ask(stack, "fine")

    def away() -> Any:
        raise DatabaseUnavailable("gone: /secret/path")

    await stack.services.accounts.authenticate(stack.secret)
    monkeypatch.setattr(stack.services.database, "read", away)
    for path in ("", "/export"):
        answer = await stack.client.get(stack.url(LOGS + path))
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7011)
        assert answer.headers["retry-after"]
        assert "secret" not in answer.text
