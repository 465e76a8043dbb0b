"""A shortlist keeps the words that the long way keeps, with their weights, or says that it cannot tell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.protocol import SamplingParams
from runtime.sampler import distribution
from runtime.shortlist import WORDS, shortlist

wishes = st.builds(
    SamplingParams,
    temperature=st.just(1.0),
    top_k=st.sampled_from([0, 1, 2, 40, WORDS - 1, WORDS, WORDS + 1, 500]),
    top_p=st.sampled_from([0.0, 0.001, 0.4, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


def scores_of(rows: int, vocab: int, spread: float, steps: float, seed: int) -> torch.Tensor:
    """`steps` above 0 rounds to a grid, so that words tie; a fifth of the words cannot be said at all."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((rows, vocab), generator=generator) * spread
    if steps:
        scores = (scores / steps).round() * steps
    scores[:, 1:].masked_fill_(torch.rand((rows, vocab - 1), generator=generator) < 0.2, float("-inf"))
    return scores - scores.max(-1, keepdim=True).values


@settings(max_examples=300, deadline=None)
@given(
    asked=st.lists(wishes.filter(lambda wish: wish.top_k > 0 or wish.top_p < 1), min_size=1, max_size=4),
    vocab=st.sampled_from([2, 23, WORDS, WORDS + 1, 700]),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    steps=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_what_is_decided_is_what_the_long_way_says(
    asked: list[SamplingParams], vocab: int, spread: float, steps: float, seed: int
) -> None:
    scores = scores_of(len(asked), vocab, spread, steps, seed)
    found, wanted = shortlist(scores, asked), distribution(scores, asked)
    for words, weights, decided, long_way in zip(*found, wanted, strict=True):
        assert words.tolist() == sorted(words.tolist())
        if decided:
            mine = torch.zeros_like(long_way).index_copy_(0, words, weights)
            disagree = (mine > 0) != (long_way > 0)
            # A word exactly on the edge of the mass is kept or lost by the last bit of a sum.
            assert int(disagree.sum()) <= 1
            assert torch.equal(mine[~disagree], long_way[~disagree])


@pytest.mark.parametrize("sampling", [SamplingParams(top_k=40), SamplingParams(top_p=0.9), SamplingParams(top_p=0.0)])
def test_a_peaked_row_is_decided(sampling: SamplingParams) -> None:
    assert bool(shortlist(scores_of(5, 5000, 8.0, 0.0, 1), [sampling] * 5).decided.all())


def test_a_flat_row_and_ties_without_an_end_are_left_open() -> None:
    nucleus, best = SamplingParams(top_p=0.9), SamplingParams(top_k=3)
    flat = torch.zeros(1, 500)
    assert shortlist(flat, [nucleus]).decided.tolist() == [False]
    tied = torch.full((1, 500), -2.0)
    tied[0, 7] = 0.0
    assert shortlist(tied, [best]).decided.tolist() == [False]


def test_a_top_k_that_ends_with_the_list_is_left_open() -> None:
    """Whether the next word ties with the last one is not known, so neither is the mass that top_p takes a share of."""
    scores = scores_of(1, 700, 1.0, 0.0, 0)
    assert shortlist(scores, [SamplingParams(top_k=WORDS, top_p=0.4)]).decided.tolist() == [False]
    assert shortlist(scores, [SamplingParams(top_k=WORDS - 1, top_p=0.4)]).decided.tolist() == [True]


def test_ties_within_the_list_are_all_kept() -> None:
    scores = torch.full((1, 500), -9.0)
    scores[0, [4, 9, 100, 101, 102]] = torch.tensor([-1.0, 0.0, -2.0, -2.0, -2.0])
    found = shortlist(scores, [SamplingParams(top_k=3)])
    assert found.decided.tolist() == [True]
    assert found.words[found.weights > 0].tolist() == [4, 9, 100, 101, 102]


def test_words_that_cannot_be_said_do_not_tie() -> None:
    masked = torch.tensor([[0.0, -1.0, *[float("-inf")] * 300]])
    assert shortlist(masked, [SamplingParams(top_k=3)]).decided.tolist() == [True]
