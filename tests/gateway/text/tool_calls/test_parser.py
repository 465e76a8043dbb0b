"""Calls among text, in three families' ways: what counts as a call, what comes back as text, and how it is told."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.messages import Message, ToolCall
from gateway.text.guard import Guard
from gateway.text.template import ChatTemplate
from gateway.text.tool_calls.call_reader import CallReader
from gateway.text.tool_calls.json_value import JsonValue, NotJson
from gateway.text.turns import turns
from tests.gateway.text.tool_bases import EOS, FAMILIES, FORMAT, template
from tests.gateway.text.tool_calls.reading import Read, parser_of, read

NAMES = ("llama3", "mistral", "hermes")
ONE = '{"name": "now", "arguments": {}}'

# (format, answer) -> (text, calls): both for who takes pieces and for who takes whole calls.
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    # Hermes
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>', "", [("now", '{"a": 1}')]),
    ("hermes", f"I look.\n\n<tool_call>{ONE}</tool_call>", "I look.", [("now", "{}")]),
    ("hermes", f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>\n", "", [("now", "{}")] * 2),
    ("hermes", f"<tool_call>[{ONE}, {ONE}]</tool_call>", "", [("now", "{}")] * 2),
    ("hermes", f"<tool_call>{ONE}</tool_call> Done.", " Done.", [("now", "{}")]),
    ("hermes", f"<tool_call>\n{ONE}", "", [("now", "{}")]),  # the end is forgotten
    ("hermes", f"<tool_call>{ONE}\n<tool_call>{ONE}</tool_call>", "", [("now", "{}")] * 2),
    ("hermes", f"<tool_call>{ONE}</tool_ca", "", [("now", "{}")]),
    ("hermes", f"<tool_call>{ONE}</tool> x", "</tool> x", [("now", "{}")]),
    ("hermes", "a < b <tool> <tool_cal l>", "a < b <tool> <tool_cal l>", []),
    ("hermes", "a <tool_call", "a <tool_call", []),
    ("hermes", "<tool_call>", "<tool_call>", []),
    ("hermes", "<tool_call> nothing </tool_call>", "<tool_call> nothing </tool_call>", []),
    ("hermes", f"<tool_call>x<tool_call>{ONE}</tool_call>", "<tool_call>x", [("now", "{}")]),
    ("hermes", f"<tool_call><tool_call>{ONE}</tool_call>", "<tool_call>", [("now", "{}")]),
    ("hermes", f"An example: {ONE}", f"An example: {ONE}", []),
    ("hermes", '<tool_call>{"name": "gone", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "gone", "arguments": {}}</tool_call>', []),
    ("hermes", '<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "name": "now"}</tool_call>', "",
     [("now", '{"a": [1, {"b": "}"}]}')]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\\\u00e9\\"}"}</tool_call>', "",
     [("now", '{"a": "\\u00e9"}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"t": "two\nlines\t"}}</tool_call>', "",
     [("now", '{"t": "two\\nlines\\t"}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}, "why": [2]}</tool_call>', "", [("now", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}</tool_call>!', "!", [("now", '{"a": 1}')]),
    ("hermes", '<tool_call>{"title": "now", "arguments": {}}</tool_call>',
     '<tool_call>{"title": "now", "arguments": {}}</tool_call>', []),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
     '<tool_call>{"name": 5, "arguments": {}}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "no', '<tool_call>{"name": "no', []),
    ("hermes", '<tool_call>{"arguments": {"a": 1}', '<tool_call>{"arguments": {"a": 1}', []),
    # Mistral
    ("mistral", f"[TOOL_CALLS] [{ONE}]", "", [("now", "{}")]),
    ("mistral", f"[TOOL_CALLS]{ONE}", "", [("now", "{}")]),
    ("mistral", f'[TOOL_CALLS] [{ONE}, {{"name": "a.b-c_9", "arguments": {{"x": -1.5e3}}, "id": "abcdefghi"}}]', "",
     [("now", "{}"), ("a.b-c_9", '{"x": -1.5e3}')]),
    ("mistral", f"So: [TOOL_CALLS] [{ONE}] and", "So: and", [("now", "{}")]),
    ("mistral", f"[TOOL_CALLS] [{ONE}", "", [("now", "{}")]),
    ("mistral", f"[TOOL_CALLS] [{ONE}, oh", ", oh", [("now", "{}")]),
    ("mistral", f"[TOOL_CALLS] [{ONE} {ONE}]", " " + ONE + "]", [("now", "{}")]),
    ("mistral", "[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    ("mistral", f"[{ONE}]", f"[{ONE}]", []),
    ("mistral", f"[TOOL_CALLS] [{ONE}][TOOL_CALLS] [{ONE}]", "", [("now", "{}")] * 2),
    ("mistral", "[TOOL_CALLS]now{}", "[TOOL_CALLS]now{}", []),
    # Llama 3
    ("llama3", '{"name": "now", "parameters": {"a": 1}}', "", [("now", '{"a": 1}')]),
    ("llama3", f"<|python_tag|>{ONE}", "", [("now", "{}")]),
    ("llama3", f"\n{ONE}\n", "", [("now", "{}")]),
    ("llama3", f"{ONE}; {ONE}", "", [("now", "{}")] * 2),
    ("llama3", f"{ONE}\n{ONE}", "", [("now", "{}")] * 2),
    ("llama3", f"[{ONE}]", "", [("now", "{}")]),
    ("llama3", '{"type": "function", "function": "now", "parameters": {}}', "", [("now", "{}")]),
    ("llama3", '{"type": "function", "name": "now", "parameters": {}} ok', " ok", [("now", "{}")]),
    ("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama3", f"Look: {ONE}", f"Look: {ONE}", []),
    ("llama3", f"Look: <|python_tag|>{ONE}", "Look:", [("now", "{}")]),
    ("llama3", '{"answer": 42, "name": "now"}', '{"answer": 42, "name": "now"}', []),
    ("llama3", "[1, 2]", "[1, 2]", []),
    ("llama3", "{oh}", "{oh}", []),
    ("llama3", "  ", "  ", []),
    ("llama3", "", "", []),
]  # fmt: skip


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("name", "answer", "text", "calls"), CASES)
def test_what_is_a_call(name: str, answer: str, text: str, calls: list[tuple[str, str]], eager: bool) -> None:
    for size in (1, 2, 5, 1000):
        got = read(name, [answer[at : at + size] for at in range(0, len(answer), size)], eager=eager)
        assert (got.text, got.calls, got.num_whole) == (text, calls, len(calls))
        assert not got.is_half_told
        assert sorted(got.text + got.spent) == sorted(answer)
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in got.calls)


BROKEN = '<tool_call>{"name": "now", "arguments": {"a": [1, %%'


def test_a_call_that_breaks_is_text_or_half_told() -> None:
    """Whoever takes whole calls gets every word back; whoever takes pieces has got some, and is told so."""
    assert read("hermes", [BROKEN]).text == BROKEN
    got = read("hermes", BROKEN, eager=True)
    assert (got.text, got.calls, got.num_whole, got.is_half_told) == ("%%", [("now", '{"a": [1, ')], 0, True)
    cut = BROKEN.removesuffix("%%")
    assert read("hermes", [cut]).text == cut
    got = read("hermes", cut, eager=True)
    assert (got.text, got.calls, got.is_half_told) == ("", [("now", '{"a": [1, ')], True)


def test_what_cannot_be_told_in_pieces_is_not_lost_when_it_breaks() -> None:
    said = '<tool_call>{"name": "now", "arguments": "no object"}</tool_call>'
    assert read("hermes", [said]).text == said
    got = read("hermes", said, eager=True)
    assert got.text.endswith('"no object"}</tool_call>')
    assert (got.calls, got.is_half_told) == ([("now", "")], True)


def test_pieces_come_as_they_are_said() -> None:
    parser = parser_of("hermes", eager=True)
    told = [
        [(call.name, call.arguments) for call in parser.push(piece).calls]
        for piece in ("<tool_call>", '{"name": "now"', ', "arguments": {', '"a": ', '"b c', '"}', "}", "</tool_call>")
    ]
    assert told == [[], [("now", "")], [(None, "{")], [(None, '"a": ')], [(None, '"b c')], [(None, '"}')], [], []]


def test_text_flows_while_nothing_looks_like_a_call() -> None:
    parser = parser_of("hermes")
    assert [parser.push(piece).text for piece in ("a", " b", " ", "c<", "d <tool", "_x", "\n")] == [
        "a", " b", "", " c", "<d", " <tool_x", "",
    ]  # fmt: skip
    assert parser.flush().text == "\n"


@pytest.mark.parametrize("name", NAMES)
def test_at_most_one(name: str) -> None:
    opening = {"mistral": "[TOOL_CALLS]", "hermes": "<tool_call>", "llama3": ""}[name]
    answer = f"{opening}[{ONE}, {ONE}] and more {opening} text"
    got = read(name, answer, at_most_one=True)
    assert (got.text, got.calls, got.num_whole) == ("", [("now", "{}")], 1)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_new_and_of_the_familys_form(name: str) -> None:
    opening = {"mistral": "[TOOL_CALLS]", "hermes": "<tool_call>", "llama3": ""}[name]
    ids = {read(name, [opening + ONE]).ids[0] for _ in range(50)}
    assert len(ids) == 50
    form = r"[a-zA-Z0-9]{9}" if name == "mistral" else r"call_[a-zA-Z0-9]{24}"
    assert all(re.fullmatch(form, one) for one in ids)


FRAGMENTS = st.sampled_from([
    "<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[TOOL", "<|python_tag|>", "<|", " ", "\n", ";", ",", "[",
    "]", "{", "}", '"', "\\", ":", ONE, '{"name": "now"', '"arguments": {', '"parameters": "{}"', '{"name": "gone"}',
    '"a": 1', "-1.5e", "null", "é", "🦜", "\\ud83d", "\\udf1c", "\x00", "text",
])  # fmt: skip
ANSWERS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=14).map("".join)


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def same(got: Read) -> tuple[Any, ...]:
    return got.text, got.calls, got.spent, got.num_whole, got.is_half_told


@given(st.sampled_from(NAMES), ANSWERS, st.lists(st.integers(0, 400), max_size=12), st.booleans(), st.booleans())
@example("hermes", f"a\n<tool_call>{ONE}{ONE}", [3], True, False)
def test_however_an_answer_is_cut_the_result_is_the_same(
    name: str, answer: str, cuts: list[int], eager: bool, one: bool
) -> None:
    whole = read(name, [answer], eager=eager, at_most_one=one)
    assert same(read(name, split(answer, cuts), eager=eager, at_most_one=one)) == same(whole)
    assert same(read(name, answer, eager=eager, at_most_one=one)) == same(whole)


@given(st.sampled_from(NAMES), ANSWERS)
def test_nothing_is_lost_and_every_whole_call_is_json(name: str, answer: str) -> None:
    patient, eager = read(name, [answer]), read(name, [answer], eager=True)
    assert sorted(patient.text + patient.spent) == sorted(answer)
    assert len(patient.calls) == patient.num_whole
    assert not patient.is_half_told
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in patient.calls)
    if not eager.is_half_told:
        assert (eager.text, eager.calls) == (patient.text, patient.calls)


@given(st.sampled_from(NAMES), st.text(), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_text_without_a_call_comes_back_unchanged(name: str, text: str, cuts: list[int], eager: bool) -> None:
    got = read(name, split(text, cuts), eager=eager)
    assert (got.text, got.calls, got.spent) == (text, [], "")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)


@given(JSON, st.booleans())
def test_json_is_read_to_its_end_and_not_further(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    reader = JsonValue()
    assert all(reader.push(char) and (not reader.done or at == len(text) - 1) for at, char in enumerate(text))
    if not reader.done:
        assert reader.push(",") == ""
    assert reader.done
    assert reader.text == text


@given(st.text('{}[]:,"\\u01eE+-.truefalsn dx\n', max_size=24))
def test_what_is_not_json_is_noticed(text: str) -> None:
    reader, accepted = JsonValue(), True
    try:
        for char in text + " ":
            if reader.done or not reader.push(char):
                break
    except NotJson:
        accepted = False
    if accepted and reader.done:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
        assert json.loads(reader.text) == value
        assert text[end:].strip() == "" or len(reader.text) <= len(text)


def test_arguments_have_a_greatest_depth() -> None:
    reader = CallReader(frozenset({"now"}))
    for char in '{"name": "now", "arguments": ' + '{"a":' * 64:
        reader.push(char)
    with pytest.raises(NotJson):
        reader.push("{")


CHATS = {family: ChatTemplate(template(family), bos="", eos="") for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@given(calls=st.lists(st.tuples(st.sampled_from(["tide_at", "now"]), OBJECTS), min_size=1, max_size=3),
       content=st.sampled_from(["", "Let me see."]), eager=st.booleans())  # fmt: skip
def test_what_a_template_writes_is_read_back(
    family: str, calls: list[tuple[str, dict[str, Any]]], content: str, eager: bool
) -> None:
    if family == "llama3":
        calls, content = calls[:1], ""
    if family == "mistral":
        content = ""
    made = tuple(ToolCall(f"abcdefgh{i}", name, json.dumps(said)) for i, (name, said) in enumerate(calls))
    chat = CHATS[family]
    talk, follow = [Message("user", "x")], [] if family == "mistral" else [Message("user", "y")]
    before = chat.render(turns(talk, Guard(None)))
    after = chat.render(turns([*talk, Message("assistant", content, made), *follow], Guard(None)))
    answer = after.removeprefix(before)
    if follow:
        answer = answer.rpartition("y")[0].rpartition(EOS[family])[0]
    got = read(FORMAT[family], answer, eager=eager)
    assert [(name, json.loads(arguments)) for name, arguments in got.calls] == calls
    assert got.text.strip() == content
