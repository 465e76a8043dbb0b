"""Sampling at full vocabularies on the device."""

import pytest
import torch

from kernels.sampling import sample
from kernels.token_scores import token_scores
from tests.kernels.replay import captured
from tests.kernels.sampling_trials import (
    RULES,
    Rule,
    assert_drawn_by_the_rules,
    chi_square_trial,
    mates_trial,
    random_logits,
    rows_of,
    rules_trial,
    ties_trial,
)

DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DRAWS, ROWS, REPEATS, WORDS = 20_000, 512, 20, 128_256


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "spread"), [(32_000, 3.0), (128_256, 3.0), (256_000, 2.0), (50_257, 0.3), (5, 3.0)])
def test_every_rule(dtype: str, vocab: int, spread: float) -> None:
    rules_trial(vocab, DTYPES[dtype], DEVICE, spread=spread, repeats=4)


@pytest.mark.parametrize("vocab", [200, 32_000, 128_256])
def test_ties_at_an_edge_are_all_kept(vocab: int) -> None:
    ties_trial(vocab, DTYPES["bf16"], DEVICE)


@pytest.mark.parametrize("vocab", [32_000, 128_256])
def test_a_token_does_not_depend_on_the_batch_or_the_run(vocab: int) -> None:
    mates_trial(vocab, DTYPES["bf16"], DEVICE)


@pytest.mark.parametrize("rule", [Rule(), Rule(0.5), Rule(1.0, top_k=3), Rule(1.0, top_p=0.8), Rule(1.0, min_p=0.2)])
def test_shares_are_kept(rule: Rule) -> None:
    chi_square_trial(rule, DRAWS, DEVICE, rows_per_call=DRAWS // 10)


def test_a_nucleus_beyond_the_best_groups() -> None:
    rules = [
        Rule(1.0, top_p=0.95),
        Rule(1.0, top_k=WORDS // 6),
        Rule(1.0, top_k=WORDS // 6, top_p=0.7),
        Rule(1.0, min_p=0.2),
    ]
    rows = rows_of(rules, DEVICE, seeds=[3, 4, 5, 6], positions=[0, 0, 0, 0])
    logits = random_logits(4, WORDS, torch.float32, DEVICE, spread=0.3)
    assert_drawn_by_the_rules(logits, rows, sample(logits, rows))


def test_many_rows_at_once() -> None:
    count = ROWS
    rules = [RULES[at % len(RULES)] for at in range(count)]
    rows = rows_of(rules, DEVICE, seeds=list(range(count)), positions=list(range(count)))
    logits = random_logits(count, 32_000, DTYPES["bf16"], DEVICE)
    tokens = sample(logits, rows)
    for _ in range(REPEATS):
        assert torch.equal(sample(logits, rows), tokens)


def test_scores_in_a_graph() -> None:
    logits = random_logits(8, 32_000, DTYPES["bf16"], DEVICE)
    tokens = logits.argmax(-1)
    replay = captured(lambda: token_scores(logits, tokens, 20).values, DEVICE)
    logits.add_(torch.randn_like(logits))
    assert torch.equal(replay(), token_scores(logits, tokens, 20).values)


def test_tiny_steps() -> None:
    """Few programs, for the sanitizer."""
    rules_trial(300, DTYPES["bf16"], DEVICE)
