"""Tools, choices and turns with calls, in every spelling that clients send, in both dialects."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadInput, InvalidRequest
from gateway.messages import ChatRequest, Chunk, Message, Tool, ToolCall, ToolCallDelta, ToolChoice, Usage
from gateway.text.template import TemplateFault
from gateway.text.tokenizer import Tokenizer
from gateway.text.tool_calls.formats import call_grammar
from gateway.wire import openai, tools, workers_ai
from gateway.wire.turns import MAX_CALLS, MAX_WAITING
from tests.gateway.text.tool_bases import FAMILIES, tool_base

HELLO = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
FLAT: dict[str, Any] = {"name": "f", "description": "does", "parameters": SCHEMA}
WRAPPED: dict[str, Any] = {"type": "function", "function": {**FLAT, "strict": True}}
ALLOWED: dict[str, Any] = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
NO_PARAMETERS = '{"type": "object", "properties": {}}'
NOTHING: list[Any] = [None, []]
DIALECTS = ["openai", "workers_ai"]


def parse(dialect: str, body: Any) -> ChatRequest:
    whole = json.dumps({"messages": HELLO, "model": "m", **body}).encode()
    return openai.parse(whole) if dialect == "openai" else workers_ai.parse(whole, [], "m")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools_in_every_spelling(dialect: str) -> None:
    for sent in (FLAT, WRAPPED, {**FLAT, "type": "function"}):
        (tool,) = parse(dialect, {"tools": [sent]}).tools
        assert (tool.name, tool.description, json.loads(tool.parameters)) == ("f", "does", SCHEMA)
        assert list(json.loads(tool.parameters)["properties"]) == ["b", "a"], "in the caller's order"
    bare: list[Any] = [
        {"name": "a.b-C_9"},
        {"name": "a.b-C_9", "description": None, "parameters": None},
        {"type": "function", "function": {"name": "a.b-C_9", "parameters": {}}},
    ]
    for sent in bare:
        assert parse(dialect, {"tools": [sent]}).tools == (Tool("a.b-C_9", "", NO_PARAMETERS),)
    for nothing in NOTHING:
        assert parse(dialect, {"tools": nothing}).tools == ()
    assert parse(dialect, {"functions": [], "function_call": "auto"}).tools == ()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_of_allowed_tools_the_model_sees_those_alone(dialect: str) -> None:
    offered = [FLAT, {**FLAT, "name": "g"}]
    wrapped = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    for sent, choice in (
        (ALLOWED, ToolChoice("required")),  # as the Responses API has it
        ({"type": "allowed_tools", "allowed_tools": wrapped}, ToolChoice("auto")),  # as chat completions have it
    ):
        request = parse(dialect, {"tools": offered, "tool_choice": sent})
        assert [tool.name for tool in request.offered] == ["f"]
        assert request.tool_choice == choice


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("body", "choice"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolChoice()),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"tool_choice": "none"}, ToolChoice("none")),
        ({"tool_choice": "required"}, ToolChoice("required")),
        ({"tool_choice": "any"}, ToolChoice("required")),
        ({"tool_choice": {"type": "required"}}, ToolChoice("required")),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, ToolChoice("required", "f")),
        ({"tool_choice": {"type": "function", "name": "f"}}, ToolChoice("required", "f")),
    ],
)
def test_choices(dialect: str, body: Any, choice: ToolChoice) -> None:
    request = parse(dialect, {"tools": [FLAT], **body})
    assert request.tool_choice == choice
    assert len(request.offered) == (choice.mode != "none")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({"tools": "f"}, "'tools' must be a list", "tools"),
        ({"tools": [5]}, "'tools' must be a list", "tools"),
        ({"tools": {"name": "f"}}, "'tools' must be a list", "tools"),
        ({"tools": [FLAT, {}]}, r"'tools\[1\]' must have a name", "tools"),
        ({"tools": [{"type": "web_search"}]}, r"'tools\[0\].type'", "tools"),
        ({"tools": [{"name": "a b"}]}, "must have a name of 1 to 64", "tools"),
        ({"tools": [{"name": "a" * 65}]}, "must have a name of 1 to 64", "tools"),
        ({"tools": [{"name": "a\n"}]}, "must have a name of 1 to 64", "tools"),
        ({"tools": [{"name": "é"}]}, "must have a name of 1 to 64", "tools"),
        ({"tools": [FLAT, WRAPPED]}, "two functions of the same name", "tools"),
        ({"tools": [{"name": "f", "parameters": []}]}, r"'tools\[0\].parameters' must be a JSON schema", "tools"),
        ({"tools": [{"name": "f", "parameters": "{}"}]}, r"'tools\[0\].parameters' must be a JSON schema", "tools"),
        ({"tools": [{"name": f"f{n}"} for n in range(tools.MAX_TOOLS + 1)]}, "at most 128 functions", "tools"),
        ({"tools": [{"name": "f", "description": "x" * tools.MAX_BYTES}]}, "at most 262144 bytes", "tools"),
        ({"tools": [FLAT], "tool_choice": "always"}, "'tool_choice' must be", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": 5}, "'tool_choice' must be", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {"type": "function"}}, "'tool_choice' must be", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "not among", "tool_choice"),
        ({"tool_choice": "required"}, "there are no 'tools'", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {**ALLOWED, "tools": [{"name": "g"}]}}, "not among", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {**ALLOWED, "tools": []}}, "none at all", "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {**ALLOWED, "mode": "never"}}, "'tool_choice' must be", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "there are no 'tools'", "tool_choice"),
        ({"tools": [FLAT], "parallel_tool_calls": "maybe"}, "'parallel_tool_calls'", "parallel_tool_calls"),
        ({"tools": [FLAT], "raw": True}, "without 'raw'", "tools"),
        ({"functions": [{"name": "f", "code": "() => 1"}]}, "'functions' is not supported; send 'tools'", "functions"),
        ({"function_call": {"name": "f"}}, "'function_call' is not supported", "function_call"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(dialect: str, body: Any, said: str, param: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        parse(dialect, body)
    assert caught.value.param == param


def test_deep_schemas_are_refused_and_cost_nothing() -> None:
    for depth, said in ((70, "nested"), (100_000, "nested|not valid JSON|list of functions")):
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        with pytest.raises(BadInput, match=said):
            openai.parse(b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"name":"f","parameters":'
                         + deep + b"}]}")  # fmt: skip


def test_tools_need_messages() -> None:
    for more in ({}, {"raw": True}):
        with pytest.raises(BadInput, match="'tools' need 'messages'"):
            workers_ai.parse(json.dumps({"prompt": "x", "tools": [FLAT], **more}).encode(), [], "m")
        body = {"prompt": "x", "tools": [FLAT], "tool_choice": "none", **more}
        assert workers_ai.parse(json.dumps(body).encode(), [], "m").offered == ()


def talk(dialect: str, *turns: Any) -> tuple[Message, ...]:
    messages = parse(dialect, {"messages": [*HELLO, *turns]}).messages
    assert messages is not None
    return messages[1:]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_calls_in_every_spelling(dialect: str) -> None:
    theirs = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1.0, "\\u00e9"]}'}}
    (turn,) = talk(dialect, {"role": "assistant", "content": None, "tool_calls": [theirs]})
    assert turn == Message("assistant", "", (ToolCall("call_1", "f", '{"a": [1.0, "\\u00e9"]}'),))
    for arguments, kept in (({"a": 1}, '{"a": 1}'), ('{"a":1}', '{"a":1}'), (None, "{}"), ("", "{}"), ({}, "{}"),
                            (" {} ", "{}"), ("null", "{}")):  # fmt: skip
        (turn,) = talk(dialect, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]})
        assert (turn.tool_calls[0].name, turn.tool_calls[0].arguments) == ("f", kept)
    for nothing in NOTHING:
        assert talk(dialect, {"role": "assistant", "content": "y", "tool_calls": nothing}) == (
            Message("assistant", "y"),
        )


def test_results_find_their_calls() -> None:
    """Flat calls have no ids; templates may want them, in both places and the same."""
    flat = [{"name": "f", "arguments": {"n": 1}}, {"name": "g", "arguments": {}}, {"name": "f", "arguments": {"n": 2}}]
    turn, *results = talk(
        "workers_ai",
        {"role": "assistant", "content": "", "tool_calls": flat},
        {"role": "tool", "name": "f", "content": "1"},
        {"role": "tool", "name": "f", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "tool", "name": "h", "content": "5", "tool_call_id": "other"},
    )
    first, second, third = (call.id for call in turn.tool_calls)
    assert len({first, second, third}) == 3
    assert all(len(one) == 9 and one.isalnum() for one in (first, second, third))
    assert [result.tool_call_id for result in results] == [first, third, second, None, "other"]
    assert [result.name for result in results] == ["f", "f", None, None, "h"]


def test_a_thousand_results_are_matched_at_once() -> None:
    """As long as a body may be, and no faster way for a caller to hold up the others."""
    calls = [{"role": "assistant", "tool_calls": [{"name": "f"}] * MAX_CALLS}] * 400
    results = [{"role": "tool", "name": "none", "content": ""}] * 40_000
    body = json.dumps({"model": "m", "messages": [*calls, *results]}).encode()
    started = time.process_time()
    messages = openai.parse(body).messages
    assert time.process_time() - started < 3
    assert messages is not None
    assert sum(message.tool_call_id is not None for message in messages) == MAX_WAITING


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, r"messages\[1\].tool_calls\[0\]' must have the name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{oh"}]}, "arguments must be a JSON object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "arguments must be a JSON object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": 5}]}, "arguments must be a JSON object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '"{}"'}]}, "arguments must be a JSON object"),
        ({"role": "assistant", "tool_calls": "f"}, r"messages\[1\].tool_calls': expected array"),
        ({"role": "assistant", "tool_calls": [{"name": "f"}] * (MAX_CALLS + 1)}, "at most 128 calls"),
        ({"role": "user", "content": "y", "tool_calls": [{"name": "f"}]}, "only stand in a turn of the assistant"),
        ({"role": "tool", "tool_call_id": "1"}, "content' must be a string"),
        ({"role": "tool", "tool_call_id": 1, "content": "y"}, "tool_call_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_turn_is_said(turn: Any, said: str) -> None:
    for dialect in DIALECTS:
        with pytest.raises(BadInput, match=said):
            talk(dialect, turn)


CALLS = (ToolCallDelta(0, "call_a", "f", '{"n": 12345678901234567890123}'), ToolCallDelta(1, "call_b", "g", "{}"))


def test_native_answers_are_flat_and_exact() -> None:
    reply = workers_ai.WorkersAIReply()
    whole = reply.whole([Chunk("", "tool_calls", tool_calls=CALLS)], Usage(1, 2))
    assert b'"arguments":{"n": 12345678901234567890123}' in whole
    assert json.loads(whole)["result"] == {
        "response": "",
        "tool_calls": [{"name": "f", "arguments": {"n": 12345678901234567890123}}, {"name": "g", "arguments": {}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    told = reply.piece(Chunk("Hm.", tool_calls=CALLS[1:])).decode()
    events = [json.loads(event.removeprefix("data: ")) for event in told.strip().split("\n\n")]
    assert events == [{"response": "Hm."}, {"response": "", "tool_calls": [{"index": 1, "name": "g", "arguments": {}}]}]


def test_openais_answers() -> None:
    reply = openai.OpenAIReply("id", 1)
    (choice,) = json.loads(reply.whole([Chunk("", "tool_calls", tool_calls=CALLS)], Usage(1, 2)))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant", "content": None, "refusal": None,
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": CALLS[0].arguments}},
            {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }  # fmt: skip
    (choice,) = json.loads(reply.whole([Chunk("Hm.", "tool_calls", tool_calls=CALLS)], Usage(1, 2)))["choices"]
    assert choice["message"]["content"] == "Hm."


NAMES = st.sampled_from(["f", "tide_at", "", "a b", "\ud800", None, 5])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "parameters", "properties", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FUNCTIONS = st.fixed_dictionaries(
    {}, optional={"name": NAMES, "description": VALUES, "parameters": VALUES, "type": VALUES}
)
TOOLS = st.fixed_dictionaries({}, optional={"type": st.just("function"), "function": FUNCTIONS | VALUES}) | FUNCTIONS
CALLED = st.fixed_dictionaries({}, optional={"name": NAMES, "arguments": VALUES})
CALLINGS = st.fixed_dictionaries({}, optional={"id": NAMES, "function": CALLED}) | CALLED
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.none() | st.text(max_size=5),
        "tool_calls": st.lists(CALLINGS | VALUES, max_size=3) | VALUES,
        "tool_call_id": NAMES,
        "name": NAMES,
    },
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(TURNS, max_size=4), "model": st.just("m")},
    optional={"tools": st.lists(TOOLS, max_size=3) | VALUES, "tool_choice": VALUES, "parallel_tool_calls": VALUES},
)
FAMILY_BASES: list[Tokenizer] = []


@pytest.fixture(scope="module", autouse=True)
def bases(tmp_path_factory: pytest.TempPathFactory) -> None:
    FAMILY_BASES[:] = [Tokenizer.from_folder(tool_base(tmp_path_factory.mktemp(name), name)) for name in FAMILIES]


@given(BODIES)
def test_whatever_is_sent_is_a_prompt_or_a_sentence(body: Any) -> None:
    """Never another error: from the bytes to the tokens and the grammar."""
    try:
        request = openai.parse(json.dumps(body).encode())
    except InvalidRequest:
        return
    for tokenizer in FAMILY_BASES:
        with contextlib.suppress(TemplateFault):
            assert tokenizer.encode_request(request, 4096)
            call_grammar(tokenizer.tool_format, request, tokenizer.mark_ids)
