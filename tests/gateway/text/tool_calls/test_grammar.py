"""Answers that must be calls: compiled as the runtime compiles them, what they allow is what the parsers read."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from gateway.messages import ChatRequest, Message, Tool, ToolChoice
from gateway.text.detokenizer import Detokenizer
from gateway.text.tokenizer import Tokenizer
from gateway.text.tool_calls.formats import call_grammar
from runtime.errors import GrammarInvalid
from runtime.grammars.compiler import Compiled, GrammarCompiler, Masks
from runtime.protocol import Grammar
from tests.gateway.text.tool_bases import EOS, FAMILIES, tool_base
from tests.gateway.text.tool_calls.reading import Read

SIDES = '{"properties": {"side": {"enum": ["east", "west"]}, "deep": {"type": "boolean"}}, "required": ["side"]}'
TOOLS = (Tool("tide_at", "x", SIDES), Tool("now", "", '{"type": "object", "properties": {}}'))


class Base:
    """A family's tokenizer and its compiler."""

    def __init__(self, folder: Path, family: str) -> None:
        self.tokenizer = Tokenizer.from_folder(tool_base(folder, family))
        self.size = self.tokenizer.encoder.get_vocab_size()
        end = self.tokenizer.encoder.token_to_id(EOS[family])
        assert end is not None
        self.end = end
        self.compiler = GrammarCompiler(folder / "tokenizer.json", self.size, (end,))

    def asked(self, choice: ToolChoice, json_schema: str | None = None, tools: tuple[Tool, ...] = TOOLS) -> ChatRequest:
        messages = (Message("user", "x"),)
        return ChatRequest(
            "openai", "m", None, None, messages, tools=tools, tool_choice=choice, json_schema=json_schema
        )

    def compile(self, asked: ChatRequest) -> Compiled:
        source = call_grammar(self.tokenizer.tool_format, asked, self.tokenizer.mark_ids)
        assert source is not None
        return self.compiler.compile(Grammar("lark", source))

    def walk(self, compiled: Compiled, seed: int) -> list[int]:
        """What a model without a will of its own says: any allowed token, up to the end."""
        chance, constraint, said = random.Random(seed), compiled.start(), list[int]()
        while not constraint.done and len(said) < 2000:
            words = np.flatnonzero(Masks(0).allowed_words([constraint], self.size)[0])
            word = int(words[chance.randrange(len(words))])
            constraint.take(word)
            if word == self.end:
                break
            said.append(word)
        assert constraint.problem is None
        return said

    def read(self, asked: ChatRequest, said: list[int]) -> Read:
        parser, got = self.tokenizer.call_parser(asked), Read()
        assert parser is not None
        text = Detokenizer(self.tokenizer.encoder, self.tokenizer.call_marks(asked), self.tokenizer.spelled)
        for parsed in [*(parser.push(text.push([token])) for token in said), parser.flush()]:
            got.take(parsed)
        return got


@pytest.fixture(params=FAMILIES)
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Base:
    return Base(tmp_path, request.param)


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("required", "now"),
                                    ToolChoice("required", parallel=False)])  # fmt: skip
def test_whatever_is_allowed_is_a_call(base: Base, choice: ToolChoice) -> None:
    asked = base.asked(choice)
    compiled, numbers, names = base.compile(asked), set(), set()
    for seed in range(12):
        got = base.read(asked, base.walk(compiled, seed))
        assert (got.text, len(got.calls) > 0) == ("", True)
        for name, arguments in got.calls:
            given = json.loads(arguments)
            assert name == "now" or (given["side"] in ("east", "west") and given.keys() <= {"side", "deep"})
            assert name == "tide_at" or given == {}
        names |= {name for name, _ in got.calls}
        numbers.add(len(got.calls))
    assert names == ({"now"} if choice.name else {"now", "tide_at"})
    many = choice == ToolChoice("required") and base.tokenizer.tool_format.name != "llama3"  # type: ignore[union-attr]
    assert (max(numbers) > 1) == many
    assert max(numbers) <= 8


def test_with_a_schema_for_the_answer_it_is_either_that_or_a_call(base: Base) -> None:
    asked = base.asked(ToolChoice(), '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],'
                       ' "additionalProperties": false, "x-guidance": {"lenient": true}}')  # fmt: skip
    compiled, kinds = base.compile(asked), set()
    for seed in range(30):
        got = base.read(asked, base.walk(compiled, seed))
        assert bool(got.text) != bool(got.calls)
        assert not got.text or json.loads(got.text).keys() == {"ok"}
        kinds.add(bool(got.calls))
    assert kinds == {True, False}


def test_nothing_is_enforced_unless_it_must_be(base: Base) -> None:
    for choice in (ToolChoice(), ToolChoice("none")):
        assert call_grammar(base.tokenizer.tool_format, base.asked(choice), base.tokenizer.mark_ids) is None
    none = base.asked(ToolChoice("none"), "{}")
    assert call_grammar(base.tokenizer.tool_format, none, base.tokenizer.mark_ids) is None


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ('{"$defs": {"a": {"enum": [1]}}, "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}', {"x": 1}),
        ('{"anyOf": [{"properties": {"x": {"enum": ["%json \\" | start"]}}, "required": ["x"], '
         '"additionalProperties": false}]}', {"x": '%json " | start'}),
        ('{"type": ["object", "null"], "properties": {"é": {"const": 5}}, "required": ["é"]}', {"é": 5}),
    ],
)  # fmt: skip
def test_schemas_as_callers_write_them(tmp_path: Path, parameters: str, arguments: object) -> None:
    base = Base(tmp_path, "hermes")
    asked = base.asked(ToolChoice("required", "f"), tools=(Tool("f", "", parameters), *TOOLS))
    got = base.read(asked, base.walk(base.compile(asked), 0))
    assert [(name, json.loads(given)) for name, given in got.calls] == [("f", arguments)]


def test_what_cannot_be_enforced_is_left_to_the_caller(tmp_path: Path) -> None:
    """As generators write schemas: with their dialect, formats and keywords that the library does not know."""
    base = Base(tmp_path, "hermes")
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "x": {"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "maxItems": 1, "minItems": 1},
            "y": {"enum": ["a"], "format": "no-such-format", "x-order": 1, "default": "a", "title": "Y"},
        },
        "required": ["x", "y"],
        "additionalProperties": False,
    }
    asked = base.asked(ToolChoice("required"), tools=(Tool("f", "", json.dumps(schema)),))
    got = base.read(asked, base.walk(base.compile(asked), 1))
    assert {arguments for _, arguments in got.calls} == {'{"x": [1], "y": "a"}'}


def test_a_schema_that_nothing_satisfies(tmp_path: Path) -> None:
    base = Base(tmp_path, "hermes")
    tool = Tool("f", "", '{"properties": {"x": false}, "required": ["x"]}')
    with pytest.raises(GrammarInvalid):
        base.compile(base.asked(ToolChoice("required"), tools=(tool,)))


HUGE = '{"type": "integer", "minimum": 1' + "0" * 30 + ', "maximum": 2' + "0" * 30 + "}"


def test_a_bound_of_the_answers_schema_that_would_be_cut_is_refused(base: Base) -> None:
    with pytest.raises(GrammarInvalid, match="a bound that cannot be enforced: minimum 1000"):
        base.compile(base.asked(ToolChoice(), HUGE))


def test_a_bound_of_a_tools_schema_is_the_callers_to_check(base: Base) -> None:
    """Also when something in it reads like a schema of the answer's."""
    tools = (
        Tool("big", "", '{"properties": {"x": {"type": "integer", "minimum": 0, "maximum": 1' + "0" * 30 + "}}}"),
        Tool('%json {"minimum": 1e30}', "", '{"properties": {"%json {\\"minimum\\": 1e30}": {"type": "string"}}}'),
    )
    base.compile(base.asked(ToolChoice("required"), tools=tools))
    base.compile(base.asked(ToolChoice(), '{"type": "integer", "maximum": 5}', tools=tools))
