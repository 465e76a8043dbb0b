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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("vocab", "spread"), [(32_000, 3.0), (128_256, 3.0), (256_000, 2.0), (50_257, 0.3), (5, 3.0)])
def test_every_rule(dtype: torch.dtype, vocab: int, spread: float) -> None:
    rules_trial(vocab, dtype, "cuda", spread=spread, repeats=4)


@pytest.mark.parametrize("vocab", [200, 32_000, 128_256])
def test_ties_at_an_edge_are_all_kept(vocab: int) -> None:
    ties_trial(vocab, torch.bfloat16, "cuda")


@pytest.mark.parametrize("vocab", [32_000, 128_256])
def test_a_token_does_not_depend_on_the_batch_or_the_run(vocab: int) -> None:
    mates_trial(vocab, torch.bfloat16, "cuda")


@pytest.mark.parametrize("rule", [Rule(), Rule(0.5), Rule(1.0, top_k=3), Rule(1.0, top_p=0.8), Rule(1.0, min_p=0.2)])
def test_shares_are_kept(rule: Rule) -> None:
    chi_square_trial(rule, 20_000, "cuda", rows_per_call=2000)


def test_a_nucleus_beyond_the_best_groups() -> None:
    rules = [Rule(1.0, top_p=0.95), Rule(1.0, top_k=20_000), Rule(1.0, top_k=20_000, top_p=0.7), Rule(1.0, min_p=0.2)]
    rows = rows_of(rules, "cuda", seeds=[3, 4, 5, 6], positions=[0, 0, 0, 0])
    logits = random_logits(4, 128_256, torch.float32, "cuda", spread=0.3)
    assert_drawn_by_the_rules(logits, rows, sample(logits, rows))


def test_many_rows_at_once() -> None:
    count = 512
    rules = [RULES[at % len(RULES)] for at in range(count)]
    rows = rows_of(rules, "cuda", seeds=list(range(count)), positions=list(range(count)))
    logits = random_logits(count, 32_000, torch.bfloat16, "cuda")
    tokens = sample(logits, rows)
    for _ in range(20):
        assert torch.equal(sample(logits, rows), tokens)


def test_scores_in_a_graph() -> None:
    logits = random_logits(8, 32_000, torch.bfloat16, "cuda")
    tokens = logits.argmax(-1)
    replay = captured(lambda: token_scores(logits, tokens, 20).values, "cuda")
    logits.add_(torch.randn_like(logits))
    assert torch.equal(replay(), token_scores(logits, tokens, 20).values)
