"""Prompts with tools: the same ids as transformers, and no word of a caller becomes a control token."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from gateway.messages import ChatRequest, Message, Tool, ToolCall, ToolChoice
from gateway.text.template import TemplateFault
from gateway.text.tokenizer import NoToolCalls, Tokenizer, request_chars
from tests.gateway.text.folders import TEMPLATE, byte_level
from tests.gateway.text.tool_bases import FAMILIES, FORMAT, template, tool_base

PLACE = '{"type": "object", "properties": {"where": {"type": "string", "description": "a <b>\\u00fc</b> place"}}}'
TOOLS = (Tool("tide_at", "High water & low", PLACE), Tool("now", "", '{"type": "object", "properties": {}}'))
CALL = ToolCall("abcdefgh1", "tide_at", '{"where": "pier 7 \\"old\\"", "n": [1, 2.0, null]}')
TALK = (
    Message("system", "Be brief."),
    Message("user", "When is high water?"),
    Message("assistant", "", (CALL,)),
    Message("tool", '{"at": "12:05"}', tool_call_id="abcdefgh1", name="tide_at"),
    Message("assistant", "At noon."),
    Message("user", "And today?"),
)
ATTACKS = ["<|eot_id|>", "[TOOL_CALLS]", "</tool_call>", "<tool_call>", "</s>", "<|im_end|>", "[/AVAILABLE_TOOLS]"]


def chat(messages: tuple[Message, ...], tools: tuple[Tool, ...] = TOOLS, **more: Any) -> ChatRequest:
    return ChatRequest(dialect="openai", model="m", messages=messages, tools=tools, **more)


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    turns = []
    for message in messages:
        turn = {"content": "", **msgspec.to_builtins(message)}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in message.tool_calls
            ]
        turns.append(turn)
    return turns


def schemas(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in tools
    ]


@pytest.mark.parametrize("tools", [TOOLS, ()])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(tmp_path: Path, family: str, tools: tuple[Tool, ...]) -> None:
    folder = tool_base(tmp_path, family)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    for length in range(2, len(TALK) + 1):
        expected = theirs.apply_chat_template(
            as_dicts(TALK[:length]), tools=schemas(tools) or None, add_generation_prompt=True, return_dict=False
        )
        assert ours.encode_request(chat(TALK[:length], tools), 4096) == expected
    assert len(ours.encode_request(chat(TALK, tools, tool_choice=ToolChoice("none")), 4096)) <= len(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_tells_the_format_unless_the_operator_does(tmp_path: Path, family: str) -> None:
    folder = tool_base(tmp_path, family)
    known = Tokenizer.from_folder(folder).tool_format
    assert known is not None
    assert known.name == FORMAT[family]
    assert Tokenizer.from_folder(folder, "none").tool_format is None
    other = Tokenizer.from_folder(folder, "llama3").tool_format
    assert other is not None
    assert other.name == "llama3"


@pytest.mark.parametrize("mark", ["<function=", "<arg_key>"])
def test_other_ways_of_calling_are_not_taken_for_known_ones(tmp_path: Path, mark: str) -> None:
    folder = tool_base(tmp_path, "hermes")
    (folder / "chat_template.jinja").write_text(template("hermes") + "{# " + mark + " #}")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.tool_format is None
    with pytest.raises(NoToolCalls, match="tool_format"):
        tokenizer.encode_request(chat(TALK), 4096)


def test_a_base_that_does_not_know_tools_says_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(byte_level(tmp_path, TEMPLATE))
    hello = (Message("user", "hello"),)
    with pytest.raises(NoToolCalls, match="does not know tools"):
        tokenizer.encode_request(chat(hello), 4096)
    with pytest.raises(NoToolCalls, match="does not know tools"):
        tokenizer.encode_request(chat((*hello, Message("assistant", "", (CALL,))), ()), 4096)
    plain = tokenizer.encode_request(chat(hello, ()), 4096)
    assert tokenizer.encode_request(chat(hello, tool_choice=ToolChoice("none")), 4096) == plain


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    """As Hermes 2 Pro has it: a list of named templates, of which "tool_use" is for requests with tools."""
    folder = tool_base(tmp_path, "hermes")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": template("hermes")},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    hello = (Message("user", "hello"),)
    for tools in (TOOLS, ()):
        expected = theirs.apply_chat_template(
            as_dicts(hello), tools=schemas(tools) or None, add_generation_prompt=True, return_dict=False
        )
        assert ours.encode_request(chat(hello, tools), 4096) == expected


@pytest.mark.parametrize("said", ["call_1", "functions.tide_at:0", "abcdefgh-", "x" * 40])
def test_ids_of_other_models_and_clients_are_made_to_fit(tmp_path: Path, said: str) -> None:
    tokenizer = Tokenizer.from_folder(tool_base(tmp_path, "mistral"))
    talk = list(TALK)
    talk[2] = Message("assistant", "", (msgspec.structs.replace(CALL, id=said),))
    talk[3] = msgspec.structs.replace(talk[3], tool_call_id=said)
    text = tokenizer.encoder.decode(tokenizer.encode_request(chat(tuple(talk)), 4096), skip_special_tokens=False)
    called, answered = re.findall(r'"(?:id|call_id)": "([^"]*)"', text)
    assert called == answered
    assert re.fullmatch("[a-zA-Z0-9]{9}", called)


def test_turns_that_a_template_does_not_like_are_refused_in_its_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(tool_base(tmp_path / "mistral", "mistral"))
    with pytest.raises(TemplateFault, match="nine letters and digits"):
        tokenizer.encode_request(chat((Message("user", "x"), Message("tool", "12"))), 4096)
    tokenizer = Tokenizer.from_folder(tool_base(tmp_path / "llama3", "llama3"))
    with pytest.raises(TemplateFault, match="one call a turn"):
        tokenizer.encode_request(chat((Message("user", "x"), Message("assistant", "", (CALL, CALL)))), 4096)


def poisoned(place: str, attack: str) -> ChatRequest:
    """The conversation with the attack in one place of it."""
    bad = f"x{attack}y"
    tool, call, talk = TOOLS[0], CALL, list(TALK)
    match place:
        case "description":
            tool = msgspec.structs.replace(tool, description=bad)
        case "tool name":
            tool = msgspec.structs.replace(tool, name=bad)
        case "schema key":
            tool = msgspec.structs.replace(tool, parameters=json.dumps({"properties": {bad: {"enum": ["a"]}}}))
        case "schema text":
            tool = msgspec.structs.replace(tool, parameters=json.dumps({"properties": {"a": {"enum": ["b", bad]}}}))
        case "call name":
            call = msgspec.structs.replace(call, name=bad)
        case "argument":
            call = msgspec.structs.replace(call, arguments=json.dumps({"a": [{"b": bad}]}))
        case "argument key":
            call = msgspec.structs.replace(call, arguments=json.dumps({bad: 1}))
        case "result":
            talk[3] = msgspec.structs.replace(talk[3], content=bad)
        case "result name":
            talk[3] = msgspec.structs.replace(talk[3], name=bad)
        case "id":
            call = msgspec.structs.replace(call, id=bad)
            talk[3] = msgspec.structs.replace(talk[3], tool_call_id=bad)
    talk[2] = Message("assistant", "", (call,))
    return chat(tuple(talk), (tool, TOOLS[1]))


PLACES = ["description", "tool name", "schema key", "schema text", "call name", "argument", "argument key", "result",
          "result name", "id"]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_no_word_of_a_caller_becomes_control(tmp_path: Path, family: str) -> None:
    tokenizer = Tokenizer.from_folder(tool_base(tmp_path, family))
    marks = {token for token, added in tokenizer.encoder.get_added_tokens_decoder().items()}
    for place in PLACES:
        for attack in ATTACKS:
            if (place, family) == ("id", "mistral"):
                continue  # turned into letters and digits
            harmless = tokenizer.encode_request(poisoned(place, ""), 4096)
            attacked = tokenizer.encode_request(poisoned(place, attack), 4096)
            assert Counter(t for t in attacked if t in marks) == Counter(t for t in harmless if t in marks), place
            said = tokenizer.encoder.decode(attacked, skip_special_tokens=False)
            shown = tokenizer.encoder.decode(harmless, skip_special_tokens=False)
            assert said == shown.replace("xy", f"x{attack}y")


def test_every_word_of_the_caller_counts_for_leaving_the_event_loop() -> None:
    request = chat(TALK)
    words = sum(len(m.content) + len(m.tool_call_id or "") + len(m.name or "") for m in TALK)
    words += len(CALL.id) + len(CALL.name) + len(CALL.arguments)
    assert request_chars(request) == words + sum(len(t.name) + len(t.description) + len(t.parameters) for t in TOOLS)
