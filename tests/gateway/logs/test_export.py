"""Exchanges as training data: what the dialects really write is read back, and half-told ones are left out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OverCapacity
from gateway.logs.export import chat_line
from gateway.messages import ChatRequest, Chunk, ToolCallDelta, Usage
from gateway.wire import responses_body
from gateway.wire.anthropic_reply import AnthropicReply
from gateway.wire.completions import CompletionReply
from gateway.wire.openai import OpenAIReply
from gateway.wire.reply import Reply
from gateway.wire.responses_reply import ResponsesReply
from gateway.wire.sse import DONE
from gateway.wire.workers_ai import WorkersAIReply

DIALECTS = ["workers_ai", "openai", "completions", "messages", "responses"]
USAGE = Usage(3, 4)
LAST = Chunk("", "stop", USAGE)
ASK = json.dumps({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}).encode()


def _reply(dialect: str) -> Reply:
    asked = ChatRequest("openai", "m")
    if dialect == "responses":
        told = ResponsesReply("id", 1)
        told.describe(asked, responses_body.ResponsesBody())
        return told
    others: dict[str, OpenAIReply | CompletionReply | AnthropicReply] = {
        "completions": CompletionReply("id", 1),
        "messages": AnthropicReply("id"),
        "openai": OpenAIReply("id", 1),
    }
    described = others.get(dialect)
    if described is None:
        return WorkersAIReply()
    described.describe(asked)
    return described


def _answer(line: bytes | None) -> Any:
    assert line is not None
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)["messages"]


@given(st.sampled_from(DIALECTS), st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_streamed_and_whole_answers_give_the_same_line(dialect: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    reply = _reply(dialect)
    streamed = b"".join(reply.piece(Chunk(piece)) for piece in pieces) + reply.ending(LAST, USAGE)
    whole = chat_line(ASK, reply.whole([Chunk(text, "stop")], USAGE), streamed=False)
    assert chat_line(ASK, streamed, streamed=True) == whole
    if text:
        assert _answer(whole) == [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": text},
        ]
    else:
        assert whole is None


def test_of_several_choices_the_first_counts() -> None:
    reply = _reply("openai")
    pieces = [Chunk("no", index=1), Chunk("a"), Chunk("t this", "stop", index=1), Chunk("b")]
    streamed = b"".join(map(reply.piece, pieces)) + reply.ending(LAST, USAGE)
    whole = reply.whole([Chunk("ab", "stop"), Chunk("not this", "stop", index=1)], USAGE)
    assert chat_line(ASK, streamed, streamed=True) == chat_line(ASK, whole, streamed=False)
    assert _answer(chat_line(ASK, whole, streamed=False))[-1]["content"] == "ab"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_was_cut_or_failed_gives_no_line(dialect: str) -> None:
    reply = _reply(dialect)
    begun = reply.piece(Chunk("half an "))
    whole = begun + reply.piece(Chunk("answer")) + reply.ending(LAST, USAGE)
    assert chat_line(ASK, whole, streamed=True) is not None
    assert chat_line(ASK, begun, streamed=True) is None
    end = len(DONE) if whole.endswith(DONE) else 3  # two have no end mark but their last event
    assert chat_line(ASK, whole[:-end], streamed=True) is None
    failed = begun + reply.failure_event(OverCapacity("full")) + DONE
    assert chat_line(ASK, failed, streamed=True) is None
    assert chat_line(ASK, reply.failure(OverCapacity("full")), streamed=False) is None


def test_events_are_read_however_they_are_spelled() -> None:
    body = b': ping\r\n\r\ndata:{"response":\r\ndata: "a"}\r\n\r\ndata: {"response":"b"}\n\ndata: [DONE]\n\n'
    assert _answer(chat_line(b'{"prompt":"q"}', body, streamed=True)) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "ab"},
    ]


def test_content_parts_null_content_and_json_answers() -> None:
    ask = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                        {"role": "assistant", "content": None}, {"role": "user", "content": "c"}]}  # fmt: skip
    reply = b'{"result":{"response":{"city":"Basel"}},"success":true}'
    assert [turn["content"] for turn in _answer(chat_line(json.dumps(ask).encode(), reply, streamed=False))] == [
        "ab", "", "c", '{"city":"Basel"}',
    ]  # fmt: skip


FLAT_TOOL = {"name": "f", "parameters": {"type": "object"}}
TOOL_TALK = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"n": 1}}]},
        {"role": "tool", "name": "f", "content": "r"},
    ],
    "tools": [FLAT_TOOL],
}


@pytest.mark.parametrize("dialect", ["workers_ai", "openai", "messages", "responses"])
def test_calls_and_tools_are_part_of_the_line(dialect: str) -> None:
    """Whole, streamed, and in pieces where the dialect has pieces."""
    ask, reply = json.dumps(TOOL_TALK).encode(), _reply(dialect)
    calls = (ToolCallDelta(0, "call_0", "f", '{"a": 1}'), ToolCallDelta(1, "call_1", "f", "{}"))
    pieces = [Chunk("so "), Chunk("it is", tool_calls=calls[:1]), Chunk(tool_calls=calls[1:])]
    if dialect != "workers_ai":
        halves = (ToolCallDelta(0, "call_0", "f", '{"a"'), ToolCallDelta(0, arguments=": 1}"), calls[1])
        pieces = [Chunk("so it"), Chunk(" is", tool_calls=halves[:1]), Chunk(tool_calls=halves[1:])]
    streamed = b"".join(map(reply.piece, pieces)) + reply.ending(Chunk("", "tool_calls", USAGE), USAGE)
    whole = reply.whole([Chunk("so it is", "tool_calls", tool_calls=calls)], USAGE)
    lines = [chat_line(ask, whole, streamed=False), chat_line(ask, streamed, streamed=True)]
    for line in lines:
        *_, called, answered, said = _answer(line)
        (old,) = called["tool_calls"]
        assert (old["function"], answered["tool_call_id"]) == ({"name": "f", "arguments": '{"n": 1}'}, old["id"])
        assert said["content"] == "so it is"
        told = [(call["id"], call["type"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in said["tool_calls"]]  # fmt: skip
        assert told == [("call_0", "function", "f", {"a": 1}), ("call_1", "function", "f", {})]
        assert json.loads(line or b"")["tools"] == [{"type": "function", "function": FLAT_TOOL}]


def test_a_half_call_teaches_nothing() -> None:
    reply = _reply("openai")
    half = reply.piece(Chunk(tool_calls=(ToolCallDelta(0, "call_0", "f", '{"a"'),)))
    streamed = half + reply.ending(Chunk("", "length", USAGE), USAGE)
    assert chat_line(json.dumps(TOOL_TALK).encode(), streamed, streamed=True) is None


@pytest.mark.parametrize(
    ("request_body", "response"),
    [
        (b"", b""),
        (b"not json", b'{"result":{"response":"x"}}'),
        (b"[]", b'{"result":{"response":"x"}}'),
        (b"[" * 100_000, b"[" * 100_000),
        (b'{"prompt":""}', b'{"result":{"response":"x"}}'),
        (b'{"prompt":"a","messages":[]}', b'{"result":{"response":"x"}}'),
        (b'{"messages":[{"role":"robot","content":"x"}]}', b'{"result":{"response":"x"}}'),
        (b'{"prompt":"q"}', b"not json"),
        (b'{"prompt":"q"}', b"[]"),
        (b'{"prompt":"q"}', b'{"result":null}'),
        (b'{"prompt":"q"}', b'{"choices":[]}'),
        (b'{"prompt":"q"}', b'{"choices":[{"message":{"content":null}}]}'),
        (b'{"prompt":"q"}', b'{"choices":{"0":1}}'),
        (b'{"prompt":"q"}', b"\xff\xfe"),
    ],
)
def test_what_cannot_be_read_gives_no_line(request_body: bytes, response: bytes) -> None:
    assert chat_line(request_body, response, streamed=False) is None
    assert chat_line(request_body, response, streamed=True) is None


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_line_or_none(request_body: bytes, response: bytes, streamed: bool) -> None:
    chat_line(request_body, response, streamed=streamed)
