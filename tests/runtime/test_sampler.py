"""Draws follow the distribution that the parameters describe, and depend on seed and position alone."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import BASE_SLOT, Row
from runtime.errors import LogitsInvalid
from runtime.protocol import SamplingParams
from runtime.sampler import Logits, sample, uniform


def row(
    sampling: SamplingParams,
    *,
    seed: int = 1,
    history: tuple[int, ...] = (0, 1),
    prompt_tokens: int = 1,
    ident: int = 5,
) -> Row:
    return Row(ident, (0,), 0, (0,), BASE_SLOT, True, sampling, history, prompt_tokens, seed)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def frequencies(logits: torch.Tensor, sampling: SamplingParams, draws: int = 1500) -> dict[int, float]:
    rows = [row(sampling, seed=seed) for seed in range(draws)]
    counts = Counter(sample(Logits(logits.expand(draws, -1)), rows))
    return {token: count / draws for token, count in sorted(counts.items())}


def close(found: dict[int, float], expected: dict[int, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[key] - expected[key]) < 0.05 for key in expected)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(temperature=1.0), {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
        (SamplingParams(temperature=0.5), {0: 0.725, 1: 0.181, 2: 0.065, 3: 0.029}),
        (SamplingParams(temperature=1.0, top_k=2), {0: 2 / 3, 1: 1 / 3}),
        (SamplingParams(temperature=1.0, top_k=99), {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
        (SamplingParams(temperature=1.0, top_p=0.75), {0: 2 / 3, 1: 1 / 3}),
        (SamplingParams(temperature=1.0, top_p=0.76), {0: 0.556, 1: 0.278, 2: 0.167}),
        (SamplingParams(temperature=1.0, top_p=0.0), {0: 1.0}),
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.8), {0: 2 / 3, 1: 1 / 3}),  # p over what k left: 0.56, 0.28
        (SamplingParams(temperature=5.0, top_k=1), {0: 1.0}),
        (SamplingParams(temperature=0.0, top_k=3, top_p=0.5), {0: 1.0}),
        (SamplingParams(temperature=1e-4), {0: 1.0}),
    ],
)
def test_draws_follow_the_distribution(sampling: SamplingParams, expected: dict[int, float]) -> None:
    # Just off the exact shares, so that 0.75 is inside two words in fp32 too.
    assert close(frequencies(logits_of(0.5, 0.2501, 0.15, 0.0999), sampling), expected)


def test_tokens_without_probability_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert close(frequencies(logits, SamplingParams(temperature=1.0)), {1: 0.5, 3: 0.5})


def test_a_draw_of_zero_takes_the_first_word_that_has_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for draw, token in ((0.0, 1), (0.5, 2), (1 - 2.0**-53, 2), (1.0, 2)):  # 1.0: what rounding may make of the product
        monkeypatch.setattr("runtime.sampler.uniform", lambda _seed, _position, draw=draw: draw)
        assert sample(Logits(logits), [row(SamplingParams(temperature=1.0))]) == [token]


def test_all_words_that_tie_at_the_edge_are_kept() -> None:
    logits = logits_of(0.4, 0.2, 0.2, 0.2)
    assert frequencies(logits, SamplingParams(temperature=1.0, top_k=2)).keys() == {0, 1, 2, 3}


def test_penalties() -> None:
    """Token 2 stands in the prompt, token 3 twice and token 4 once in the answer."""
    logits = torch.tensor([[0.0, 1.0, 4.0, 4.0, -4.0]])
    history = (2, 3, 3, 4)

    def greedy(**penalties: Any) -> int:
        params = SamplingParams(temperature=0.0, **penalties)
        return sample(Logits(logits.clone()), [row(params, history=history, prompt_tokens=1)])[0]

    assert greedy() == 2
    assert greedy(repetition_penalty=3.9) == 2  # 4 / 3.9 > 1
    assert greedy(repetition_penalty=4.1) == 1
    assert greedy(frequency_penalty=5.0) == 2  # the prompt does not count
    assert greedy(presence_penalty=-0.5) == 3
    assert greedy(frequency_penalty=-4.3) == 3
    assert greedy(frequency_penalty=-4.1, presence_penalty=9.0) == 2  # 3: 4 + 8.2 - 9 = 3.2
    assert greedy(repetition_penalty=0.5) == 2  # below 1 it rewards: 8, 8, -2
    lower = torch.tensor([[-3.5, -3.0, -9.0, -9.0, -2.0]])
    assert sample(Logits(lower), [row(SamplingParams(temperature=0.0, repetition_penalty=1.6), history=history)]) == [1]
    assert greedy(repetition_penalty=0.0) == 2  # the public range starts at 0; nothing becomes infinite


def test_penalties_of_one_row_stay_in_that_row() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(3, -1).contiguous()
    plain, punished = SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, repetition_penalty=9.0)
    before = logits.clone()
    rows = [row(plain, history=(2,)), row(punished, history=(2,)), row(plain, history=(2,))]
    assert sample(Logits(logits), rows) == [2, 1, 2]
    assert torch.equal(logits, before)


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 2.0]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(params, st.integers(-(2**70), 2**70)), min_size=1, max_size=20), st.randoms())
def test_a_draw_does_not_depend_on_the_batch(jobs: list[tuple[SamplingParams, int]], order: object) -> None:
    generator = torch.Generator().manual_seed(len(jobs))
    logits = torch.randn(len(jobs), 40, generator=generator) * 3
    rows = [row(sampling, seed=seed, history=(3, 9, 9, 1)) for sampling, seed in jobs]
    alone = [sample(Logits(logits[i : i + 1]), [rows[i]])[0] for i in range(len(jobs))]
    indices = list(range(len(jobs)))
    order.shuffle(indices)  # type: ignore[attr-defined]
    together = sample(Logits(logits[indices]), [rows[i] for i in indices])
    assert together == [alone[i] for i in indices]


def test_seed_and_position_both_matter() -> None:
    logits, sampling = torch.zeros(1, 1000), SamplingParams(temperature=1.0)
    draws = {
        (seed, length): sample(Logits(logits), [row(sampling, seed=seed, history=(0,) * length)])[0]
        for seed, length in itertools.product(range(4), range(1, 5))
    }
    assert len(set(draws.values())) > 12
    assert sample(Logits(logits), [row(sampling, seed=2, history=(7,) * 3)])[0] == draws[2, 3]


def test_uniform_numbers_are_uniform() -> None:
    values = torch.tensor([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert 0.0 <= float(values.min()) < float(values.max()) < 1.0
    assert torch.histc(values, 10, 0.0, 1.0).sub(1000).abs().max() < 150
    assert uniform(1, 23) != uniform(12, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_are_named(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 7)
    logits[1, 4] = bad
    logits[2] = -torch.inf
    rows = [row(SamplingParams(temperature=temperature), ident=ident) for ident in (10, 20, 30)]
    with pytest.raises(LogitsInvalid) as caught:
        sample(Logits(logits), rows)
    assert caught.value.sequence_ids == (20, 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_of_logits_is_sampled(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0]], dtype=dtype)
    assert sample(Logits(logits), [row(SamplingParams(temperature=0.0))]) == [1]
