"""`/ai/v1/responses`, by OpenAI's own client: text, functions, and the events of a stream in their order."""

import json
from typing import Any

import openai
import pytest

from gateway.messages import Chunk, ToolCallDelta, Usage
from gateway.settings import DEMO_MODEL
from gateway.wire import responses_body
from gateway.wire.responses_reply import ResponsesReply
from tests.gateway.stack import Stack

PATH = "/ai/v1/responses"
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}


async def test_a_text(stack: Stack, client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model=DEMO_MODEL, input="which hall opens", instructions="be brief", metadata={"a": "b"}
    )
    assert answer.output_text == "which hall opens"
    assert (answer.status, answer.object, answer.instructions) == ("completed", "response", "be brief")
    assert (answer.metadata, answer.error, answer.incomplete_details) == ({"a": "b"}, None, None)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 3, 8)
    asked = stack.fake.requests[0].request
    assert [message.role for message in asked.messages or ()] == ["system", "user"]
    assert asked.sampling.max_tokens == 256
    assert not asked.sampling.max_tokens_given


async def test_a_cut_answer_is_incomplete(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model=DEMO_MODEL, input="a b c", max_output_tokens=2)
    assert (answer.status, answer.output_text, answer.max_output_tokens) == ("incomplete", "a b", 2)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_a_stream(stack: Stack, client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=DEMO_MODEL, input="which hall") as stream:
        told = [event async for event in stream]
        final = await stream.get_final_response()
    kinds = [event.type for event in told]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [getattr(event, "sequence_number", None) for event in told] == list(range(10))
    assert final.output_text == "which hall"
    assert final.usage is not None
    assert final.usage.total_tokens == 4
    assert b"[DONE]" not in stack.records.seen[0].response


async def test_items_become_turns(stack: Stack, client: openai.AsyncOpenAI) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "which "}, {"type": "input_text", "text": "hall"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me look"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "the blue one"},
        {"type": "function_call_output", "call_id": "c2", "output": "none"},
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "so?"},
    ]
    await client.responses.create(model=DEMO_MODEL, input=items, tools=[TOOL], tool_choice="auto")
    asked = stack.fake.requests[0].request
    turns = asked.messages or ()
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool", "system", "user"]
    assert turns[0].content == "which hall"
    assert turns[1].content == "let me look"
    assert [(call.id, call.arguments) for call in turns[1].tool_calls] == [("c1", '{"at": 1}'), ("c2", "{}")]
    assert [turn.tool_call_id for turn in turns[2:4]] == ["c1", "c2"]
    assert [tool.name for tool in asked.tools] == ["look"]


def test_calls_are_items_of_their_own() -> None:
    body = json.dumps({"model": "m", "input": "x", "tools": [TOOL]}).encode()
    pieces = [
        Chunk("see"),
        Chunk(tool_calls=(ToolCallDelta(0, "c1", "look", '{"a"'),)),
        Chunk(tool_calls=(ToolCallDelta(0, None, None, ":1}"),)),
        Chunk(tool_calls=(ToolCallDelta(1, "c2", "look", "{}"),)),
    ]
    reply = ResponsesReply("id", 1)
    reply.describe(*responses_body.parse(body))
    data = b"".join(map(reply.piece, pieces)) + reply.ending(Chunk("", "tool_calls"), Usage(1, 2))
    told = [json.loads(event.split(b"data: ")[1]) for event in data.split(b"\n\n") if event]
    output = told[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("message", "completed"), ("function_call", "completed"), ("function_call", "completed"),
    ]  # fmt: skip
    assert [item.get("arguments") for item in output] == [None, '{"a":1}', "{}"]
    assert len({item["id"] for item in output}) == 3
    opened = [event["output_index"] for event in told if event["type"] == "response.output_item.added"]
    closed = [event["output_index"] for event in told if event["type"] == "response.output_item.done"]
    assert opened == closed == [0, 1, 2]
    whole = ResponsesReply("id", 1)
    whole.describe(*responses_body.parse(body))
    calls = (ToolCallDelta(0, "c1", "look", '{"a":1}'), ToolCallDelta(1, "c2", "look", "{}"))
    said = json.loads(whole.whole([Chunk("see", "tool_calls", tool_calls=calls)], Usage(1, 2)))
    assert said["output"] == output


async def test_a_schema_for_the_text(stack: Stack, client: openai.AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    answer = await client.responses.create(model=DEMO_MODEL, input="{}", text=form)
    assert json.loads(stack.fake.requests[0].request.json_schema or "") == schema
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


async def test_errors_before_and_inside_a_stream(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Finetune gulls not found"):
        await client.responses.create(model=DEMO_MODEL, input="x", extra_body={"lora": "gulls"})
    stream = await client.responses.create(model=DEMO_MODEL, input="break", stream=True)
    with pytest.raises(openai.APIError, match="the runtime went away"):
        [event async for event in stream]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "x"}, "'model' is missing"),
        ({"model": "m"}, "'input' is missing"),
        ({"model": "m", "input": ""}, "'input' is empty"),
        ({"model": "m", "input": []}, "'input' is empty"),
        ({"model": "m", "input": [{"type": "web_search_call"}]}, "'input[0].type'"),
        ({"model": "m", "input": [{"content": "x"}]}, "'input[0].role'"),
        ({"model": "m", "input": [{"role": "user"}]}, "'input[0].content'"),
        ({"model": "m", "input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input[0].content'"),
        ({"model": "m", "input": [{"type": "function_call", "call_id": "c"}]}, "the name of a function"),
        ({"model": "m", "input": "x", "previous_response_id": "r"}, "'previous_response_id'"),
        ({"model": "m", "input": "x", "background": True}, "'background'"),
        ({"model": "m", "input": "x", "max_output_tokens": 0}, "'max_output_tokens'"),
        ({"model": "m", "input": "x", "temperature": "hot"}, "'temperature'"),
        ({"model": "m", "input": "x", "tools": [{"type": "web_search"}]}, "'tools[0].type'"),
        ({"model": "m", "input": "x", "text": {"format": {"type": "json_schema"}}}, "'text.format.schema'"),
        ({"model": "m", "input": "x", "metadata": {"a": "b" * 40_000}}, "'metadata'"),
    ],
)
async def test_bad_bodies(stack: Stack, body: Any, said: str) -> None:
    answer = await stack.post(PATH, body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["errors"][0]["code"] == 5006
