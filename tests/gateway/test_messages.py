"""`/ai/v1/messages` in Anthropic's shape: text, tools, the events of a stream, and its client's own header."""

import json
from typing import Any

import pytest

from gateway.messages import ChatRequest, Chunk, ToolCallDelta, Usage
from gateway.settings import DEMO_MODEL
from gateway.wire.anthropic_reply import AnthropicReply
from tests.gateway.stack import Stack
from tests.gateway.told import check_told

PATH = "/ai/v1/messages"
COUNT = PATH + "/count_tokens"
HELLO: Any = {"model": DEMO_MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "which hall"}]}


def told(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; the name is said twice, and must be the same."""
    events = []
    for text in body.decode().split("\n\n"):
        if text:
            name, data = text.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in events)
    return events


async def test_a_message(stack: Stack) -> None:
    body = {**HELLO, "system": [{"type": "text", "text": "be brief"}], "stop_sequences": ["zzz"], "top_k": 3}
    answer = await stack.post(PATH, body)
    assert answer.json() == {
        "id": "msg_" + answer.headers["cf-aig-log-id"],
        "type": "message",
        "role": "assistant",
        "model": DEMO_MODEL,
        "content": [{"type": "text", "text": "which hall"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 2,
        },
    }  # fmt: skip
    asked = stack.fake.requests[0].request
    assert [message.role for message in asked.messages or ()] == ["system", "user"]
    assert (asked.sampling.stop, asked.sampling.top_k, asked.sampling.max_tokens) == (("zzz",), 3, 50)


async def test_the_callers_own_sequence_is_named_when_it_ended_the_answer(stack: Stack) -> None:
    body = {**HELLO, "messages": [{"role": "user", "content": "which hall opens first"}]}
    body["stop_sequences"] = ["first", "opens"]
    ended = {"stop_reason": "stop_sequence", "stop_sequence": "opens"}
    whole = (await stack.post(PATH, body)).json()
    assert {name: whole[name] for name in ended} == ended
    assert whole["content"] == [{"type": "text", "text": "which hall "}]
    events = told((await stack.post(PATH, {**body, "stream": True})).content)
    assert [data["delta"] for name, data in events if name == "message_delta"] == [ended]
    assert events[0][1]["message"]["stop_reason"] is None
    body["stop_sequences"] = ["second"]
    whole = (await stack.post(PATH, body)).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)


SCHEMA: Any = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
FORMAT: Any = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize(
    "asking",
    [
        {"output_config": {"format": FORMAT, "effort": "low"}},
        {"output_format": FORMAT},  # what the SDK's beta calls send
        {"output_config": {"format": FORMAT}, "output_format": {"type": "json_schema", "schema": {"type": "array"}}},
    ],
)
async def test_the_answer_keeps_to_the_schema_that_was_asked_for(stack: Stack, asking: dict[str, Any]) -> None:
    assert (await stack.post(PATH, {**HELLO, **asking})).status_code == 200
    assert json.loads(stack.fake.requests[0].request.json_schema or "") == SCHEMA


async def test_settings_without_a_format_ask_for_none(stack: Stack) -> None:
    for asking in ({"output_config": {"effort": "low"}}, {"output_config": {"format": None}}, {"output_format": None}):
        assert (await stack.post(PATH, {**HELLO, **asking})).status_code == 200
        assert stack.fake.requests[-1].request.json_schema is None


async def test_bounds_are_those_of_this_dialect(stack: Stack) -> None:
    assert (await stack.post(PATH, {**HELLO, "top_k": 250, "top_p": 0})).status_code == 200
    assert (await stack.post(PATH, {**HELLO, "top_k": 0})).status_code == 200
    first, second = (asked.request.sampling for asked in stack.fake.requests)
    assert (first.top_k, second.top_k) == (250, None)
    assert 0 < (first.top_p or 0) < 0.001


async def test_a_stream(stack: Stack) -> None:
    answer = await stack.post(PATH, {**HELLO, "stream": True, "max_tokens": 1})
    events = told(answer.content)
    assert [name for name, _ in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert events[0][1]["message"]["content"] == []
    assert events[2][1]["delta"] == {"type": "text_delta", "text": "which"}
    assert events[4][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (events[4][1]["usage"]["input_tokens"], events[4][1]["usage"]["output_tokens"]) == (2, 1)
    assert stack.records.seen[0].response == answer.content


async def test_the_key_may_stand_in_anthropics_own_header(stack: Stack) -> None:
    headers = {"x-api-key": stack.secret, "anthropic-version": "2023-06-01"}
    del stack.client.headers["authorization"]
    assert (await stack.post(PATH, HELLO, headers=headers)).status_code == 200
    assert (await stack.post(PATH, HELLO, headers={"x-api-key": "wrong"})).status_code == 401
    both = await stack.post(PATH, HELLO, headers={**headers, "authorization": f"Bearer {stack.secret}"})
    assert (both.status_code, both.json()["errors"][0]["code"]) == (400, 5006)


async def test_tools_their_calls_and_results(stack: Stack) -> None:
    tools = [{"name": "look", "description": "d", "input_schema": {"type": "object"}}]
    messages = [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "I look"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "blue"}]},
                {"type": "text", "text": "and now"},
            ],
        },
    ]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = {**HELLO, "messages": messages, "tools": tools, "tool_choice": choice}
    assert (await stack.post(PATH, body)).status_code == 200
    asked = stack.fake.requests[0].request
    turns = asked.messages or ()
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "user"]
    assert (turns[1].content, turns[1].tool_calls[0].id, turns[1].tool_calls[0].arguments) == (
        "I look", "t1", '{"at": 1}',
    )  # fmt: skip
    assert (turns[2].content, turns[2].tool_call_id, turns[3].content) == ("blue", "t1", "and now")
    assert (asked.tool_choice.mode, asked.tool_choice.parallel) == ("required", False)
    assert asked.tools[0].name == "look"
    named = {**body, "tool_choice": {"type": "tool", "name": "look"}}
    assert (await stack.post(PATH, named)).status_code == 200
    assert stack.fake.requests[1].request.tool_choice.name == "look"


def test_calls_are_blocks_of_their_own() -> None:
    reply = AnthropicReply("id")
    reply.describe(ChatRequest("anthropic", "m"))
    pieces = [
        Chunk("see"),
        Chunk(tool_calls=(ToolCallDelta(0, "c1", "look", '{"a"'), ToolCallDelta(0, None, None, ":1}"))),
        Chunk(tool_calls=(ToolCallDelta(1, "c2", "look", "{}"),)),
    ]
    events = told(b"".join(map(reply.piece, pieces)) + reply.ending(Chunk("", "tool_calls"), Usage(9, 2, 4)))
    starts = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert [(block["type"], block.get("id")) for block in starts] == [
        ("text", None), ("tool_use", "c1"), ("tool_use", "c2"),
    ]  # fmt: skip
    parts = [data for name, data in events if name == "content_block_delta" and data["index"] == 1]
    assert "".join(data["delta"]["partial_json"] for data in parts) == '{"a":1}'
    assert [data["index"] for name, data in events if name == "content_block_stop"] == [0, 1, 2]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert events[-2][1]["usage"]["input_tokens"] == 5
    assert events[-2][1]["usage"]["cache_read_input_tokens"] == 4
    whole = AnthropicReply("id")
    whole.describe(ChatRequest("anthropic", "m"))
    call = ToolCallDelta(0, "c1", "look", '{"a":1}')
    said = json.loads(whole.whole([Chunk("", "tool_calls", tool_calls=(call,))], Usage(1, 1)))
    assert said["content"] == [{"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}}]


async def test_tokens_are_counted_before_anything_is_asked(stack: Stack) -> None:
    body = {"model": DEMO_MODEL, "system": "be brief", "messages": HELLO["messages"]}
    answer = await stack.post(COUNT, body)
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 4})
    check_told(COUNT, body, answer.json())
    assert (stack.fake.requests, stack.records.seen) == ([], [])
    for change, status, code in (
        ({"messages": []}, 400, 5006),
        ({"model": "@cf/no/where"}, 400, 5007),
        ({"model": "@cf/google/gemma-2b-it-lora"}, 400, 5007),
    ):
        refused = await stack.post(COUNT, {**body, **change})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (status, code), refused.text
        assert refused.json()["error"]["message"]


async def test_errors_before_and_inside_a_stream(stack: Stack) -> None:
    answer = await stack.post(PATH, {**HELLO, "lora": "gulls"})
    body = answer.json()
    assert (answer.status_code, body["type"], body["errors"][0]["code"]) == (404, "error", 3037)
    assert "Finetune gulls not found" in body["error"]["message"]
    assert body["error"]["type"] == "not_found_error"
    large = (await stack.post(PATH, {**HELLO, "max_tokens": 5000})).json()["error"]
    assert (large["type"], large["code"], large["param"]) == ("request_too_large", "5021", "max_tokens")
    broken = {**HELLO, "messages": [{"role": "user", "content": "break"}], "stream": True}
    events = told((await stack.post(PATH, broken)).content)
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["type"] == "overloaded_error"
    assert "the runtime went away" in events[-1][1]["error"]["message"]
    assert "message_stop" not in [name for name, _ in events]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "'model' is missing"),
        ({"messages": []}, "'messages' is missing or empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "'messages[0].role'"),
        ({"messages": [{"role": "user", "content": None}]}, "'messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'messages[0].content[0]'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "f"}]}]}, "'messages[0].content[0]'"),
        ({"system": [{"type": "image"}]}, "'system'"),
        ({"max_tokens": 0}, "'max_tokens'"),
        ({"max_tokens": "9"}, "'max_tokens'"),
        ({"stop_sequences": ["a"] * 5}, "'stop'"),
        ({"tools": [{"name": "f", "type": "web_search_20250305"}]}, "'tools[0].type'"),
        ({"tool_choice": {"type": "tool"}}, "'tool_choice.type'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "'output_config.format'"),
        ({"output_format": {"type": "json_object", "schema": {}}}, "'output_format'"),
        ({"top_k": -1}, "'top_k'"),
        ({"top_p": 1.5}, "'top_p'"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice' asks for a call"),
        ({"thinking": {"type": "enabled"}, "temperature": 9}, "'temperature'"),
    ],
)
async def test_bad_bodies(stack: Stack, change: dict[str, Any], said: str) -> None:
    answer = await stack.post(PATH, {**HELLO, **change})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert stack.fake.requests == []
