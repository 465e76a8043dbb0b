"""JSON mode on both routes: values on the native one, text on OpenAI's, and what is not whole JSON is an error."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from gateway.backends.fake import FakeBackend, Script
from gateway.messages import ResolvedRequest
from gateway.settings import DEMO_MODEL
from tests.gateway.stack import CHAT, RUN, Stack, events, open_stack

ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_object"},
}  # fmt: skip
VALUE = '{"n": 12345678901234567890123, "x": 1.10, "s": "\\u00e9 \\"q\\"", "l": [true, null]}'


def pieces(text: str, size: int = 7) -> Sequence[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """The fake model says what the last message of the caller asks for, or VALUE."""

    def script(request: ResolvedRequest) -> Script:
        messages = request.request.messages or ()
        said = messages[-1].content if messages else "hi"
        return list(pieces(VALUE if said == "hi" else said))

    async with open_stack(tmp_path, FakeBackend(script)) as opened:
        yield opened


async def test_the_native_route_answers_with_the_value_itself(stack: Stack) -> None:
    answer = await stack.post(RUN, ASKED)
    assert answer.status_code == 200
    assert answer.json()["result"]["response"] == json.loads(VALUE)
    assert b'"n": 12345678901234567890123, "x": 1.10' in answer.content, "numbers as the model wrote them"
    assert answer.json()["result"]["usage"]["prompt_tokens"] == 1
    assert stack.fake.requests[-1].request.json_schema == '{"type":"object"}'


@pytest.mark.parametrize("value", ["[1]", "12", '"text"', "null", "true", " {} "])
async def test_whatever_the_schema_asks_for(stack: Stack, value: str) -> None:
    body = {
        "messages": [{"role": "user", "content": value}],
        "response_format": {"type": "json_schema", "json_schema": {}},
    }
    assert (await stack.post(RUN, body)).json()["result"]["response"] == json.loads(value)


async def test_without_json_mode_json_stays_text(stack: Stack) -> None:
    for more in ({}, {"response_format": {"type": "text"}}):
        answer = await stack.post(RUN, {"messages": ASKED["messages"], **more})
        assert answer.json()["result"]["response"] == VALUE


async def test_openais_route_answers_with_text(stack: Stack) -> None:
    answer = await stack.post(CHAT, {"model": DEMO_MODEL, **ASKED})
    assert answer.json()["choices"][0]["message"]["content"] == VALUE


async def test_both_routes_stream_pieces_of_text(stack: Stack) -> None:
    native = events((await stack.post(RUN, {**ASKED, "stream": True})).content)
    assert "".join(event["response"] for event in native[:-1]) == VALUE
    theirs = events((await stack.post(CHAT, {"model": DEMO_MODEL, **ASKED, "stream": True})).content)
    said = [event["choices"][0]["delta"].get("content") or "" for event in theirs[:-1] if event["choices"]]
    assert "".join(said) == VALUE


async def test_an_answer_that_max_tokens_cut(stack: Stack) -> None:
    """Native: an error, for there is no value. OpenAI's: the part that there is, and why it ends."""
    native = await stack.post(RUN, {**ASKED, "max_tokens": 3})
    assert native.status_code == 400
    assert native.json()["result"] == {}
    (error,) = native.json()["errors"]
    assert error["code"] == 5024
    assert error["message"].startswith("AiError: JSON Mode couldn't be met: ")
    assert "max_tokens" in error["message"]
    record = await stack.records.until(1)
    assert (record.status_code, record.error_code, record.outcome) == (400, 5024, "error")
    assert record.tokens_out == 3, "they were made, and count"
    assert msgspec.json.decode(record.response)["errors"] == native.json()["errors"]
    theirs = await stack.post(CHAT, {"model": DEMO_MODEL, **ASKED, "max_tokens": 3})
    assert theirs.status_code == 200
    choice = theirs.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", VALUE[:21])


async def test_an_answer_that_a_stop_string_cut(stack: Stack) -> None:
    answer = await stack.post(RUN, {**ASKED, "stop": ["x"]})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 5024)
    assert "'stop'" in answer.json()["errors"][0]["message"]
