"""What a model of noise says under a grammar: always valid, and the same whatever runs beside it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.grammars.masks import StepMasks
from runtime.protocol import Grammar
from tests.gateway.text.folders import metaspace
from tests.runtime.grammars.talking import EOS, Talker, make_talker

PERSON = Grammar(
    "json_schema",
    json.dumps({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 200}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def talker(folder: Path) -> Talker:
    return Talker(folder)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "bc", "gull", "ü", 'q"'])
    leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
                  st.integers(-500, 500), st.integers(0, 900)),
        st.builds(lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
                  st.integers(0, 3), st.integers(0, 4)),
        st.sampled_from([{"type": "string", "pattern": "^[a-f]{2,4}(x|yz)?$"}, {"type": "string", "format": "date"}]),
        st.builds(lambda values: {"enum": values},
                  st.lists(st.sampled_from(["red", "blue", 7, None, True, "x y", [1], {"k": 2}]), min_size=1,
                           max_size=4)),
        st.just({"const": {"deep": [1, "two"]}}),
    )  # fmt: skip

    def deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        arrays = st.builds(
            lambda items, low, size: {"type": "array", "items": items, "minItems": low, "maxItems": low + size},
            inner, st.integers(0, 2), st.integers(0, 2),
        )  # fmt: skip
        objects = st.dictionaries(names, inner, max_size=3).flatmap(
            lambda properties: st.sets(st.sampled_from(sorted(properties) or ["a"])).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "additionalProperties": False,
                    "required": sorted(required & properties.keys()),
                }
            )
        )
        return st.one_of(arrays, objects, st.lists(inner, min_size=1, max_size=3).map(lambda any_: {"anyOf": any_}))

    return st.recursive(leaves, deeper, max_leaves=6)


@given(asked=st.lists(schemas(), min_size=1, max_size=4), greedy=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_finished_answer_satisfies_its_schema(talker: Talker, asked: list[dict[str, Any]], greedy: bool) -> None:
    talker.outputs.clear()
    for number, schema in enumerate(asked, 1):
        talker.ask(number, Grammar("json_schema", json.dumps(schema)), temperature=0.0 if greedy else 1.5)
    talker.run()
    for number, schema in enumerate(asked, 1):
        last = talker.last(number)
        assert last.failure is None
        if last.finish_reason == "stop":
            jsonschema.validate(json.loads(talker.text(number)), schema)
        else:
            assert last.completion_tokens == 200


def test_answers_do_end(talker: Talker) -> None:
    """Or the property above would say nothing."""
    talker.outputs.clear()
    for number in range(1, 41):
        talker.ask(number, PERSON)
    talker.run()
    assert sum(talker.last(number).finish_reason == "stop" for number in range(1, 41)) >= 35


def test_without_the_mask_nothing_is_valid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what keeps answers valid is the mask, not the model."""
    monkeypatch.setattr(StepMasks, "apply", lambda self, logits: None)
    talker = Talker(folder)
    for number in range(1, 9):
        talker.ask(number, PERSON)
    talker.run()
    for number in range(1, 9):
        failure = talker.last(number).failure
        assert failure is not None
        assert failure.kind == "grammar"


def test_a_tokenizer_with_byte_fallback(tmp_path: Path) -> None:
    talker = Talker(make_talker(tmp_path, metaspace))
    for number in range(1, 9):
        talker.ask(number, PERSON)
    talker.run()
    ended = [number for number in range(1, 9) if talker.last(number).finish_reason == "stop"]
    assert ended
    for number in ended:
        jsonschema.validate(json.loads(talker.text(number)), json.loads(PERSON.source))


WISHES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1, "repetition_penalty": 1.7, "frequency_penalty": 1.0, "presence_penalty": -1.0},
    {"temperature": 2.0, "logit_bias": tuple((word, 100.0) for word in range(60)), "ignore_eos": True},
]


@pytest.mark.parametrize("wish", WISHES)
def test_whatever_the_sampling(talker: Talker, wish: dict[str, Any]) -> None:
    talker.outputs.clear()
    for number in range(1, 7):
        talker.ask(number, PERSON, **wish)
    talker.run()
    for number in range(1, 7):
        if talker.last(number).finish_reason == "stop":
            jsonschema.validate(json.loads(talker.text(number)), json.loads(PERSON.source))
    assert {talker.last(number).failure for number in range(1, 7)} == {None}


def test_an_end_token_ends_what_may_go_on_even_with_ignore_eos(talker: Talker) -> None:
    """After "12" another digit may follow, or the end; a biased end token is taken at the first chance."""
    for number, eos in enumerate(EOS, 1):
        talker.outputs.clear()
        talker.ask(number, Grammar("json_schema", '{"type": "integer", "minimum": 10}'), ignore_eos=True,
                   logit_bias=((eos, 100.0),))  # fmt: skip
        talker.run()
        assert talker.last(number).finish_reason == "stop"
        assert eos not in talker.tokens(number)
        assert int(talker.text(number)) >= 10


def test_a_complete_answer_ends_without_another_step(talker: Talker) -> None:
    talker.outputs.clear()
    talker.ask(1, Grammar("json_schema", '{"const": true}'), max_tokens=200)
    talker.run()
    assert (talker.text(1), talker.last(1).finish_reason) == ("true", "stop")
    assert talker.last(1).token_ids  # the last token of the answer itself ended it
    assert talker.last(1).completion_tokens == len(talker.tokens(1))


def test_a_lark_grammar_with_special_tokens_and_json(talker: Talker) -> None:
    """As tool calls are written: control tokens by name or number around an object."""
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}},
                         "required": ["n"], "additionalProperties": False})  # fmt: skip
    talker.outputs.clear()
    talker.ask(1, Grammar("lark", f'start: [INST] obj "\\n" <[3]> \nobj: %json {schema}\n'.replace("[INST]", "<[2]>")))
    talker.ask(2, Grammar("lark", f"start: <s> obj </s>\nobj: %json {schema}\n".replace("</s>", "<[2]>")))
    talker.run()
    first = talker.tokens(1)
    assert first[0] == 2
    assert json.loads(talker.words.decode(first[1:]))["n"] <= 99
    assert talker.tokens(2)[0] == 0
    assert talker.tokens(2)[-1] == 2
    assert [talker.last(number).finish_reason for number in (1, 2)] == ["stop", "stop"]


def test_text_is_the_same_alone_in_company_and_after_preemption(folder: Path) -> None:
    grammar = Grammar("json_schema", '{"type": "array", "items": {"type": "string"}, "minItems": 3}')
    asked: list[tuple[Grammar | None, dict[str, Any]]] = [
        (grammar, {"temperature": 1.1}), (None, {"temperature": 0.8}), (PERSON, {}), (None, {"temperature": 0.0}),
        (grammar, {"temperature": 0.0}),
    ]  # fmt: skip
    alone: dict[int, list[int]] = {}
    for number, (what, wish) in enumerate(asked, 1):
        talker = Talker(folder)
        talker.ask(number, what, max_tokens=100, **wish)
        talker.run()
        alone[number] = talker.tokens(number)
    for limits in ({"num_blocks": 256}, {"num_blocks": 13}, {"num_blocks": 40, "step_tokens": 16}):
        talker = Talker(folder, **limits)
        for number, (what, wish) in enumerate(asked, 1):
            talker.ask(number, what, max_tokens=100, **wish)
        talker.run()
        assert {number: talker.tokens(number) for number in alone} == alone
        assert (talker.engine.stats().preemptions > 0) == (limits["num_blocks"] == 13)


def test_rows_without_a_grammar_keep_their_logits_to_the_bit(folder: Path) -> None:
    """Log-probabilities show every bit: a free row beside constrained ones has those that it has among free ones."""
    seen = []
    for grammar in (None, PERSON):
        talker = Talker(folder)
        talker.ask(1, None, max_tokens=20, top_logprobs=5)
        for number in range(2, 6):
            talker.ask(number, grammar, max_tokens=20, ignore_eos=True)
        while not talker.outputs[1] or talker.last(1).finish_reason is None:
            talker.step()
        seen.append([score for output in talker.outputs[1][:8] for score in output.scores])
    assert seen[0] == seen[1]


def test_log_probabilities_are_those_among_the_allowed_words(talker: Talker) -> None:
    talker.outputs.clear()
    talker.ask(1, Grammar("json_schema", '{"enum": ["red", "blue"]}'), top_logprobs=20)
    talker.run()
    scores = [score for output in talker.outputs[1] for score in output.scores]
    assert len(scores) == len(talker.tokens(1))
    for score, token in zip(scores, talker.tokens(1), strict=True):
        assert 1 <= len(score.top) <= 6
        assert dict(score.top)[token] == pytest.approx(score.logprob)
        assert all(value > -9999.0 for _, value in score.top)


def test_a_dead_end_is_a_failure_of_its_own_row(talker: Talker) -> None:
    talker.outputs.clear()
    for number, grammar in enumerate([None, PERSON], 1):
        talker.ask(number, grammar, max_tokens=20)
    talker.ask(3, Grammar("lark", 'start: "a" | "b"'))
    constraint = talker.engine._answers.live[1, 3].constraint
    assert constraint is not None
    constraint.take(2)  # what it can never take
    talker.run()
    failure = talker.last(3).failure
    assert failure is not None
    assert failure.kind == "grammar"
    assert {talker.last(number).failure for number in (1, 2)} == {None}
    assert talker.engine.num_live == 0
