"""From a grammar to the words that it allows: the tokenizer's numbers, what wears, what is remembered of a failure."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from runtime.errors import GrammarInvalid
from runtime.grammars import compiler as module
from runtime.grammars.compiler import Compiled, GrammarCompiler, Masks, MatcherConstraint
from runtime.protocol import Grammar
from tests.gateway.text.folders import SPECIAL, byte_level

WORDS = 400


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.json"


def made(tokenizer: Path, value: object, words: int = WORDS, ends: tuple[int, ...] = (1,)) -> Compiled:
    return GrammarCompiler(tokenizer, words, ends).compile(Grammar("json_schema", json.dumps(value)))


def allowed(constraint: MatcherConstraint, words: int = WORDS) -> list[int]:
    return [int(word) for word in np.flatnonzero(Masks().allowed_words([constraint], words)[0])]


def say(constraint: MatcherConstraint, tokenizer: Path, text: str) -> None:
    """Byte by byte: each is a word."""
    words = Tokenizer.from_file(str(tokenizer)).get_vocab()
    for char in text:
        constraint.take(words[char])


@pytest.mark.parametrize(
    ("words", "ends", "expected"),
    [
        (WORDS, (1,), {1}),
        (WORDS, (3, 1), {1, 3}),
        (WORDS, (1, 399, 10**6), {1}),  # the tokenizer has no such words
        (WORDS, (), {1}),  # the tokenizer's own guess
        (300, (1,), {1}),  # fewer words than the tokenizer
    ],
)
def test_only_the_end_may_follow_a_number_that_has_no_more_room(
    tokenizer: Path, words: int, ends: tuple[int, ...], expected: set[int]
) -> None:
    constraint = made(tokenizer, {"enum": [1, 12]}, words, ends).start()
    say(constraint, tokenizer, "1")
    assert not constraint.done
    assert expected < set(allowed(constraint, words))
    say(constraint, tokenizer, "2")
    assert constraint.done
    assert set(allowed(constraint, words)) == expected
    assert constraint.problem is None


def test_no_special_token_is_ever_text(tokenizer: Path) -> None:
    constraint = made(tokenizer, {"type": "string"}).start()
    say(constraint, tokenizer, '"')
    assert len(allowed(constraint)) > 150
    assert not set(allowed(constraint)) & set(range(len(SPECIAL)))
    assert max(allowed(constraint)) < 330, "words that the tokenizer does not have"


def test_a_token_that_cannot_be_is_the_end_of_it(tokenizer: Path) -> None:
    constraint = made(tokenizer, {"type": "object"}).start()
    say(constraint, tokenizer, "[")
    assert constraint.problem is not None
    assert not constraint.done
    again = constraint.problem
    say(constraint, tokenizer, "{")
    assert constraint.problem == again


def test_rows_do_not_share_their_places(tokenizer: Path) -> None:
    compiled = made(tokenizer, {"enum": ["ab", "cd"]})
    one, two = compiled.start(), compiled.start()
    say(one, tokenizer, '"a')
    many = [one, *(compiled.start() for _ in range(9)), two]
    masks = Masks().allowed_words(many, WORDS)
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks, np.stack([Masks(threads=0).allowed_words([row], WORDS)[0] for row in many]))


def test_a_grammar_wears_by_tokens(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORN_TOKENS", 5)
    compiled = made(tokenizer, {"const": "abc"})
    for _ in range(2):
        assert not compiled.worn
        say(compiled.start(), tokenizer, '"ab')
    assert compiled.worn


def test_copies_share_the_automaton_so_one_that_is_used_up_is_replaced(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap that `worn` is for. The day this fails the library has changed, and `worn` may go."""
    monkeypatch.setattr(module, "_MAX_LEXER_STATES", 300)
    compiler = GrammarCompiler(tokenizer, WORDS, (1,))
    grammar = Grammar("json_schema", json.dumps({"type": "string", "pattern": "^(.*a.{20}).*b.{30}$"}))
    compiled = compiler.compile(grammar)
    greedy = compiled.start()
    for number in range(300):
        words = allowed(greedy)
        if greedy.problem is not None:
            break
        greedy.take(words[number % len(words)])
    assert greedy.problem is not None
    assert "states" in greedy.problem
    assert compiled.worn
    late = compiled.start()
    allowed(late)
    late.take(allowed(late)[0])
    allowed(late)
    assert late.problem is not None
    fresh = compiler.compile(grammar).start()
    fresh.take(allowed(fresh)[0])
    assert allowed(fresh)
    assert fresh.problem is None


def test_blanks_are_bounded(tokenizer: Path) -> None:
    constraint = made(tokenizer, {"type": "array"}).start()
    say(constraint, tokenizer, "[" + "Ġ" * 32)
    assert constraint.problem is None
    say(constraint, tokenizer, "Ġ")
    assert constraint.problem is not None


def test_a_guidance_of_the_callers_own_is_ignored(tokenizer: Path) -> None:
    constraint = made(tokenizer, {"type": "array", "x-guidance": {"whitespace_pattern": "x"}}).start()
    say(constraint, tokenizer, "[x")
    assert constraint.problem is not None


def test_a_source_over_the_bound_is_refused(tokenizer: Path) -> None:
    with pytest.raises(GrammarInvalid, match="longer than"):
        made(tokenizer, {"enum": ["ä" * 150_000]})
