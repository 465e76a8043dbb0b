"""Masks on logits: exactly the forbidden words of exactly the constrained rows, in every dtype and odd vocabulary."""

import json
from pathlib import Path

import pytest
import torch

from runtime.batch import BASE_SLOT, Row
from runtime.errors import GrammarStuck, RunnerMisused
from runtime.grammars.compiler import Compiled, GrammarCompiler, Masks
from runtime.grammars.masks import StepMasks
from runtime.protocol import Grammar, SamplingParams
from tests.gateway.text.folders import byte_level
from tests.runtime.grammars.hands import Made, lark


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.json"


def compiled(tokenizer: Path, words: int, value: object) -> Compiled:
    return GrammarCompiler(tokenizer, words, (1,)).compile(Grammar("json_schema", json.dumps(value)))


def row(number: int, constraint: object) -> Row:
    return Row(number, (1,), 0, (0,), BASE_SLOT, True, SamplingParams(), (1,), 1, 0, constraint)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("words", [318, 319, 320, 331, 352, 400])
@pytest.mark.parametrize("which", ["all", "some"])
def test_forbidden_words_and_no_others(tokenizer: Path, dtype: torch.dtype, words: int, which: str) -> None:
    grammar = compiled(tokenizer, words, {"enum": [True, "x", 7]})
    rows = [row(number, grammar.start() if which == "all" or number % 2 else None) for number in range(4)]
    before = torch.randn(4, words, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits = before.clone()
    masks = StepMasks.of(rows, words, Masks())
    assert masks is not None
    masks.apply(logits)
    allowed = torch.from_numpy(Masks().allowed_words([grammar.start()], words)[0].copy())
    assert 3 <= int(allowed.sum()) < 20
    for number, one in enumerate(rows):
        if one.constraint is None:
            assert torch.equal(logits[number], before[number])
        else:
            assert torch.equal(logits[number][allowed], before[number][allowed])
            assert bool((logits[number][~allowed] == -torch.inf).all())


def test_rows_that_are_stuck_are_named_and_the_others_are_not(tokenizer: Path) -> None:
    grammar = compiled(tokenizer, 400, {"type": "object"})
    stuck = grammar.start()
    stuck.take(5)
    with pytest.raises(GrammarStuck) as caught:
        StepMasks.of([row(1, grammar.start()), row(2, stuck), row(3, None)], 400, Masks())
    assert list(caught.value.reasons) == [2]


def test_a_word_beyond_the_models_vocabulary_does_not_count(tokenizer: Path) -> None:
    """A tokenizer with more words than the model: the only way on is a word that the model cannot say."""
    constraint = GrammarCompiler(tokenizer, 300, (1,)).compile(lark("start: <[310]>")).start()
    with pytest.raises(GrammarStuck) as caught:
        StepMasks.of([row(1, constraint)], 300, Masks())
    assert "no token of this model" in caught.value.reasons[1]


def test_nothing_to_do_and_somebody_elses_constraint(tokenizer: Path) -> None:
    assert StepMasks.of([row(1, None)], 400, Masks()) is None
    with pytest.raises(RunnerMisused):
        StepMasks.of([row(1, Made(lark("x")))], 400, Masks())
