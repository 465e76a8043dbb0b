"""Filters and biases against a plain float64 oracle and against transformers' own processors; draws by chi-square."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.batch import BASE_SLOT, Row
from runtime.protocol import SamplingParams
from runtime.sampler import Logits, distribution, sample
from runtime.shortlist import Shortlist, shortlist

torch.set_num_threads(1)

VOCAB = 23


def row(sampling: SamplingParams, seed: int = 1, history: tuple[int, ...] = (0, 1), prompt_tokens: int = 1) -> Row:
    return Row(5, (0,), 0, (0,), BASE_SLOT, True, sampling, history, prompt_tokens, seed)


def expected(logits: list[float], wanted: SamplingParams, history: tuple[int, ...], prompt_tokens: int) -> list[float]:
    """The header of `sampler.py`, word by word, in Python floats."""
    scores = list(logits)
    for token, bias in wanted.logit_bias:
        scores[token] += bias
    for token in set(history):
        factor = wanted.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token, count in Counter(history[prompt_tokens:]).items():
        scores[token] -= count * wanted.frequency_penalty + wanted.presence_penalty
    scores = [score / wanted.temperature for score in scores]
    if wanted.top_k:
        kth = sorted(scores, reverse=True)[min(wanted.top_k, len(scores)) - 1]
        scores = [score if score >= kth else -math.inf for score in scores]
    if wanted.top_p < 1:
        total, least = 0.0, math.inf
        for score, share in sorted(zip(scores, softmax(scores), strict=True), reverse=True):
            if total >= wanted.top_p:
                break
            total, least = total + share, score
        scores = [score if score >= least else -math.inf for score in scores]
    best = max(softmax(scores))
    kept = [s if p >= wanted.min_p * best else -math.inf for s, p in zip(scores, softmax(scores), strict=True)]
    return softmax(kept)


def softmax(scores: list[float]) -> list[float]:
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def undecided(scores: torch.Tensor, samplings: Any) -> Shortlist:
    """A shortlist that leaves every row open."""
    return shortlist(scores, samplings)._replace(decided=torch.zeros(len(samplings), dtype=torch.bool))


def found(logits: list[float], wanted: SamplingParams, history: tuple[int, ...], prompt_tokens: int) -> torch.Tensor:
    """The distribution behind `sample`, caught where the long way draws from it."""
    caught: list[torch.Tensor] = []

    def catch(scores: torch.Tensor, samplings: Any) -> torch.Tensor:
        caught.append(distribution(scores, samplings))
        return caught[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.sampler.distribution", catch)
        patch.setattr("runtime.sampler.shortlist", undecided)
        (token,) = sample(Logits(torch.tensor([logits])), [row(wanted, history=history, prompt_tokens=prompt_tokens)])
    weights = caught[0][0].double()
    assert weights[token] > 0
    assert not weights[len(logits) :].any()
    return weights[: len(logits)] / weights.sum()


biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=4)
wishes = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5),
    top_k=st.sampled_from([0, 1, 2, 5, 50]),
    top_p=st.sampled_from([0.001, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    logit_bias=st.just(()) | biases.map(lambda entries: tuple(entries.items())),
)
histories = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12).map(tuple)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), wishes, histories, st.data())
def test_the_distribution_is_the_oracles(
    seed: int, wanted: SamplingParams, history: tuple[int, ...], data: st.DataObject
) -> None:
    prompt_tokens = data.draw(st.integers(1, len(history)))
    logits = (torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3).tolist()
    oracle = torch.tensor(expected(logits, wanted, history, prompt_tokens), dtype=torch.float64)
    mine = found(logits, wanted, history, prompt_tokens)
    # A word exactly on the edge of a filter is kept or lost by the last bit; everything else must agree.
    assume(torch.equal(mine > 0, oracle > 0) or not on_an_edge(logits, wanted, history, prompt_tokens))
    torch.testing.assert_close(mine, oracle, rtol=2e-4, atol=1e-7)


def on_an_edge(logits: list[float], wanted: SamplingParams, history: tuple[int, ...], prompt_tokens: int) -> bool:
    """Whether a filter moved by a hair keeps another set of words."""
    kept = set()
    for hair in (-1e-5, 0.0, 1e-5):
        moved = {
            "top_p": wanted.top_p if wanted.top_p == 1.0 else wanted.top_p + hair,
            "min_p": max(0.0, wanted.min_p * (1 + hair)),
        }
        other = SamplingParams(**{**{f: getattr(wanted, f) for f in wanted.__struct_fields__}, **moved})
        kept.add(tuple(p > 0 for p in expected(logits, other, history, prompt_tokens)))
    noisy = [logit + 1e-6 * (index % 2) for index, logit in enumerate(logits)]
    kept.add(tuple(p > 0 for p in expected(noisy, wanted, history, prompt_tokens)))
    return len(kept) > 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "wanted",
    [
        SamplingParams(temperature=0.7, top_k=7),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=0.9, min_p=0.07),
        SamplingParams(temperature=1.0, repetition_penalty=1.4),
        SamplingParams(temperature=1.0, logit_bias=((3, 4.5), (8, -100.0))),
        SamplingParams(temperature=1.5, top_k=9, top_p=0.85, min_p=0.1, repetition_penalty=1.2, logit_bias=((2, 2.0),)),
    ],
)
def test_transformers_keeps_the_same_words_with_the_same_chances(wanted: SamplingParams, seed: int) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    history = (1, 4, 9, 4, 2)
    processors = LogitsProcessorList()
    if wanted.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in wanted.logit_bias]))
    if wanted.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(wanted.repetition_penalty))
    processors.append(TemperatureLogitsWarper(wanted.temperature))
    if wanted.top_k:
        processors.append(TopKLogitsWarper(wanted.top_k))
    if wanted.top_p < 1:
        processors.append(TopPLogitsWarper(wanted.top_p))
    if wanted.min_p > 0:
        processors.append(MinPLogitsWarper(wanted.min_p))
    theirs = processors(torch.tensor([history]), logits.clone())[0].double().softmax(-1)
    mine = found(logits[0].tolist(), wanted, history, 3)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "wanted",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.7, top_k=9, top_p=0.9),
        SamplingParams(temperature=0.8, min_p=0.05, logit_bias=((4, 1.5),)),
    ],
)
def test_draws_pass_a_chi_square_test(wanted: SamplingParams) -> None:
    draws = 4000
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))
    shares = expected(logits.tolist(), wanted, (0, 1), 1)
    rows = [row(wanted, seed=seed) for seed in range(draws)]
    counts = Counter(sample(Logits(logits.expand(draws, -1)), rows))
    assert all(shares[token] > 0 for token in counts)
    words = [token for token in range(VOCAB) if shares[token] * draws >= 5]
    statistic = sum((counts[token] - draws * shares[token]) ** 2 / (draws * shares[token]) for token in words)
    freedom = len(words) - 1
    # Wilson and Hilferty: the cube root of a chi-square is nearly normal. Four standard deviations: 3 in 100,000.
    normal = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert abs(normal) < 4


def test_a_bias_forces_and_bans_greedy_or_not() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0]]).expand(3, -1)
    for temperature in (0.0, 1.0):
        rows = [
            row(SamplingParams(temperature=temperature, logit_bias=bias), history=(0,))
            for bias in (((2, 100.0),), ((0, -100.0), (2, -100.0)), ())
        ]
        assert sample(Logits(logits), rows)[:2] == [2, 1]
        assert temperature or sample(Logits(logits), rows)[2] == 0
    assert torch.equal(logits[0], torch.tensor([9.0, 1.0, 0.0]))


def test_a_filter_of_one_row_stays_in_that_row() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[:, 7] = 2.0
    wanted = SamplingParams(temperature=1.0)
    narrow = SamplingParams(temperature=1.0, min_p=1.0)
    seen = {tuple(sample(Logits(logits), [row(wanted, seed=seed), row(narrow, seed=seed)])) for seed in range(200)}
    assert {pair[1] for pair in seen} == {7}
    assert len({pair[0] for pair in seen}) > 10


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
@pytest.mark.parametrize("mass", [0.001, 0.5, 0.95, 0.9999, 1.0])
def test_a_large_vocabulary_is_cut_as_if_it_were_sorted(spread: float, mass: float) -> None:
    """A flat distribution needs far more words than are looked at first; rows of one chunk need different numbers."""
    vocab = 20_000
    scores = torch.randn(3, vocab, generator=torch.Generator().manual_seed(5)) * torch.tensor([[spread], [4.0], [0.0]])
    scores = scores - scores.max(-1, keepdim=True).values
    samplings = [SamplingParams(temperature=1.0, top_p=mass), SamplingParams(temperature=1.0, top_p=0.9, top_k=50)]
    kept = distribution(scores, [*samplings, SamplingParams(temperature=1.0)])[:, :vocab] > 0
    for line, found, wanted in zip(scores, kept, samplings, strict=False):
        ordered = line.double().sort(descending=True).values
        if wanted.top_k:
            ordered = ordered[: wanted.top_k]
        shares = ordered.softmax(-1)
        count = int((shares.cumsum(-1) - shares < wanted.top_p - 1e-9).sum()) if wanted.top_p < 1 else vocab
        assert torch.equal(found, line.double() >= ordered[max(count, 1) - 1])
    assert bool(kept[2].all())


def test_rows_that_are_cut_and_rows_that_are_not_come_back_in_their_order() -> None:
    wishes = [SamplingParams(temperature=t, top_k=k) for t in (0.0, 1.0) for k in (0, 1, 0, 1)] * 3
    logits = torch.eye(len(wishes), VOCAB + 1) * 50
    assert sample(Logits(logits), [row(wish) for wish in wishes]) == [min(i, VOCAB + 1) for i in range(len(wishes))]


@pytest.mark.parametrize("mass", [0.3, 0.55, 0.7, 0.9])
def test_ties_at_the_edge_of_top_k_share_in_the_mass_of_top_p(mass: float) -> None:
    logits = [math.log(share) for share in (0.4, 0.2, 0.2, 0.2)]
    wanted = SamplingParams(temperature=1.0, top_k=2, top_p=mass)
    oracle = expected(logits, wanted, (0,), 1)
    assert found(logits, wanted, (0,), 1).tolist() == pytest.approx(oracle, abs=1e-6)
    assert sum(share > 0 for share in oracle) == (1 if mass < 0.4 else 4)
