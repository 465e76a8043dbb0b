"""Native inference over HTTP: the contract's shapes, settings from body and query, headers on every answer."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.fake import FakeBackend
from gateway.settings import DEMO_MODEL
from tests.gateway.stack import RUN, Stack, events, open_stack
from tests.gateway.tiny_adapters import write_base

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


async def test_a_model_that_takes_no_adapters_says_so(tmp_path: Path) -> None:
    """The base answers; with `lora`, by body or by query, the contract's 405/5005, and the backend is not asked."""
    name, fake = "@cf/tiny/no-lora", FakeBackend()
    folder = write_base(tmp_path / "no-lora", model_type="gpt_neox")
    settings = {"models": {name: {"path": str(folder)}}}
    async with open_stack(tmp_path, backends={name: fake}, settings=settings) as stack:
        run = f"/ai/run/{name}"
        assert (await stack.post(run, {"prompt": "a"})).status_code == 200
        for path, body in ((run, {"prompt": "a", "lora": "x"}), (run + "?lora=x", {"prompt": "a"})):
            refused = await stack.post(path, body)
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (405, 5005)
            assert "does not support LoRA" in refused.json()["errors"][0]["message"]
        assert len(fake.requests) == 1


async def test_an_answer_in_one_piece(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "which hall opens"})
    assert answer.status_code == 200
    assert answer.json() == {
        "result": {
            "response": "which hall opens",
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        },
        "success": True,
        "errors": [],
        "messages": [],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, no-store"
    log_id = answer.headers["cf-aig-log-id"]
    assert UUID7.fullmatch(log_id)
    assert answer.headers["cf-aig-request-id"] == answer.headers["cf-aig-event-id"] == log_id
    assert answer.headers["cf-aig-step"] == "0"
    record = stack.records.seen[0]
    assert (record.id, record.account_id, record.gateway) == (log_id, stack.account, "default")
    assert (record.model, record.outcome, record.status_code) == (DEMO_MODEL, "stop", 200)
    assert (record.tokens_in, record.tokens_out, record.usage_source) == (3, 3, "runtime")
    assert record.request == b'{"prompt": "which hall opens"}'
    assert record.response == answer.content
    assert record.path == f"ai/run/{DEMO_MODEL}"
    assert record.first_byte_ms is not None
    assert record.first_byte_ms <= record.duration_ms
    assert record.timing is not None


async def test_an_answer_in_pieces(stack: Stack) -> None:
    answer = await stack.post(RUN, {"messages": [{"role": "user", "content": "which hall"}], "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert UUID7.fullmatch(answer.headers["cf-aig-log-id"])
    assert events(answer.content) == [
        {"response": "which"},
        {"response": " hall"},
        {"response": "", "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}},
        "[DONE]",
    ]
    record = stack.records.seen[0]
    assert record.streamed
    assert record.response == answer.content
    assert record.response_content_type.startswith("text/event-stream")


@pytest.mark.parametrize(
    "path", [RUN, RUN.replace("@cf/", "@cf%2F"), RUN + "/", "/ai/run/%40cf%2Florikeet%2Fdemo-lora"]
)
async def test_every_way_to_write_the_model(stack: Stack, path: str) -> None:
    assert (await stack.post(path, {"prompt": "x"})).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "", "nonsense"])
async def test_the_content_type_does_not_matter(stack: Stack, kind: str) -> None:
    assert (await stack.post(RUN, {"prompt": "x"}, headers={"content-type": kind})).status_code == 200


async def test_settings_in_the_query(stack: Stack) -> None:
    query = "?raw=true&stream=true&max_tokens=2&temperature=0&seed=7&unknown=1&tags=a"
    answer = await stack.post(RUN + query, {"prompt": "a b c d"})
    assert events(answer.content)[-1] == "[DONE]"
    asked = stack.fake.requests[0].request
    assert (asked.raw, asked.stream, asked.sampling.max_tokens) == (True, True, 2)
    assert (asked.sampling.temperature, asked.sampling.seed) == (0.0, 7)
    assert stack.records.seen[0].outcome == "length"


async def test_the_body_wins_over_the_query(stack: Stack) -> None:
    await stack.post(RUN + "?stream=true&max_tokens=9", {"prompt": "a", "stream": False, "max_tokens": 3})
    asked = stack.fake.requests[0].request
    assert (asked.stream, asked.sampling.max_tokens) == (False, 3)


async def test_nulls_unknown_fields_and_texts_for_booleans(stack: Stack) -> None:
    body: dict[str, Any] = {
        "prompt": "a b",
        "messages": None,
        "lora": None,
        "stop": None,
        "raw": "true",
        "stream": "false",
        "temperature": None,
        "max_tokens": 5.0,
        "tools": [],
        "response_format": {"type": "text"},
        "n": 1,
        "logprobs": False,
        "user": {"deep": [1, 2, {"x": None}]},
        "keep_alive": "5m",
    }
    answer = await stack.post(RUN, body)
    assert answer.status_code == 200, answer.text
    asked = stack.fake.requests[0].request
    assert asked.raw
    assert not asked.stream
    assert (asked.sampling.temperature, asked.sampling.max_tokens, asked.lora) == (0.6, 5, None)


async def test_content_may_come_in_parts_or_be_null(stack: Stack) -> None:
    parts = [{"type": "text", "text": "which "}, {"type": "text", "text": "hall"}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": parts, "name": "x"},
    ]
    answer = await stack.post(RUN, {"messages": messages})
    assert answer.json()["result"]["response"] == "which hall"


async def test_a_stop_string(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "one two three four", "stop": [" three"]})
    assert answer.json()["result"]["response"] == "one two"
    assert stack.records.seen[0].outcome == "stop"


async def test_the_callers_own_wishes(stack: Stack) -> None:
    headers = {
        "cf-aig-event-id": "mine-1",
        "cf-aig-metadata": '{"team": "gulls", "n": 3, "ok": true, "cf.user": "x", "a": 1, "b": 2, "c": 3}',
        "cf-aig-gateway-id": "default",
        "user-agent": "test/1",
    }
    answer = await stack.post(RUN, {"prompt": "x"}, headers=headers)
    assert answer.headers["cf-aig-event-id"] == "mine-1"
    record = stack.records.seen[0]
    assert record.metadata == {"team": "gulls", "n": 3, "ok": True, "a": 1, "b": 2}
    assert record.user_agent == "test/1"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": null}', '{"a": {"b": 1}}', "{}", "x" * 9000, "{" * 100])
async def test_bad_metadata_is_no_error(stack: Stack, text: str) -> None:
    assert (await stack.post(RUN, {"prompt": "x"}, headers={"cf-aig-metadata": text})).status_code == 200
    assert stack.records.seen[0].metadata is None


async def test_a_caller_may_keep_things_out_of_the_log(stack: Stack) -> None:
    await stack.post(RUN, {"prompt": "secret"}, headers={"cf-aig-collect-log": "false"})
    assert stack.records.seen == []
    await stack.post(RUN, {"prompt": "secret"}, headers={"cf-aig-collect-log-payload": "false"})
    record = stack.records.seen[0]
    assert (record.request, record.response, record.tokens_in) == (b"", b"", 1)


async def test_another_gateway_is_refused(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "x"}, headers={"cf-aig-gateway-id": "prod"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 2001)


async def test_the_log_can_be_read_back_at_once(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "which hall", "stream": True})
    log_id = answer.headers["cf-aig-log-id"]
    log = await stack.client.get(stack.url(f"/ai-gateway/gateways/default/logs/{log_id}"))
    assert log.status_code == 200
    assert log.json()["result"]["success"] is True
    body = await stack.client.get(stack.url(f"/ai-gateway/gateways/default/logs/{log_id}/response"))
    assert body.content == answer.content


async def test_a_failed_request_is_logged_too(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "x", "temperature": 9})
    assert answer.status_code == 400
    record = stack.records.seen[0]
    assert record.id == answer.headers["cf-aig-log-id"]
    assert (record.outcome, record.status_code, record.error_code, record.model) == ("error", 400, 5006, DEMO_MODEL)
    assert record.response == answer.content
    assert record.request == b'{"prompt": "x", "temperature": 9}'


async def test_lora_reaches_the_backend_only_resolved(stack: Stack) -> None:
    answer = await stack.post(RUN, {"prompt": "x", "lora": "nobody"})
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["errors"][0]["code"]) == (404, 3037)
    assert "Finetune nobody not found" in body["errors"][0]["message"]
    assert stack.fake.requests == []
    assert stack.records.seen[0].lora == "nobody"
