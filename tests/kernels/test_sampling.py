"""Sampling on the device: the rules, the numbers, and the kernels in the interpreter."""

import math
from typing import Any

import pytest
import torch

from kernels.philox import philox_reference, philox_uniform, philox_uniform_reference
from kernels.sampling import SamplingRows, sample, shares_reference
from kernels.triton_jit import Pointer, jit, tl
from runtime.protocol import SamplingParams
from runtime.sampler import distribution
from tests.kernels.interpreter_memory import InterpreterMemory
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


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((1 << 64) - 1, (1 << 128) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0_A4093822,
            0x03707344_13198A2E_85A308D3_243F6A88,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(key: int, counter: int, words: tuple[int, ...]) -> None:
    assert philox_reference(key, counter) == words
    number = (words[0] << 21 | words[1] >> 11) / 2.0**53
    assert philox_uniform_reference(key, counter) == number


@jit
def _uniform_kernel(seeds: Pointer, positions: Pointer, numbers: Pointer) -> None:
    at = tl.program_id(0)
    tl.store(numbers + at, philox_uniform(tl.load(seeds + at), tl.load(positions + at)))


def test_the_kernel_draws_the_same_numbers(interpreter: InterpreterMemory) -> None:
    seeds, positions = [0, 1, -1, 1 << 40, -(1 << 63), (1 << 63) - 1], [0, 1, 2, 3, 1 << 20, (1 << 31) - 1]
    numbers = torch.zeros(6, dtype=torch.float64)
    _uniform_kernel[(6,)](torch.tensor(seeds), torch.tensor(positions, dtype=torch.int32), numbers)
    expected = [philox_uniform_reference(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    assert numbers.tolist() == expected


def test_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    draws, bins = 20_000, 50
    for numbers in (
        [philox_uniform_reference(3, position) for position in range(draws)],
        [philox_uniform_reference(seed, 17) for seed in range(draws)],
    ):
        counts = torch.histc(torch.tensor(numbers, dtype=torch.float64), bins, 0.0, 1.0)
        statistic = float(((counts - draws / bins) ** 2 / (draws / bins)).sum())
        assert statistic < 85.4  # 99.9 % quantile, 49 degrees of freedom
        assert 0.0 <= min(numbers) < max(numbers) < 1.0


@pytest.mark.parametrize("vocab", [7, 300])
def test_the_rules_are_those_of_the_runtime(vocab: int) -> None:
    scores = random_logits(1, vocab, torch.float32, "cpu")[0]
    for rule in RULES:
        if not rule.temperature:
            continue
        params = SamplingParams(top_k=rule.top_k, top_p=rule.top_p, min_p=rule.min_p)
        relative = torch.nn.functional.threshold((scores - scores.max()) / rule.temperature, -87.0, -math.inf)
        theirs = distribution(relative.unsqueeze(0), [params])[0, :vocab].double()
        ours = shares_reference(scores, rule.temperature, rule.top_k, rule.top_p, rule.min_p)
        assert torch.equal(ours > 0, theirs > 0), rule
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("vocab", "spread"), [(5, 3.0), (130, 3.0), (4096, 3.0), (5001, 0.5), (9000, 3.0)])
def test_every_rule(interpreter: InterpreterMemory, dtype: torch.dtype, vocab: int, spread: float) -> None:
    rules_trial(vocab, dtype, "cpu", spread=spread)
    assert interpreter.launches == 2


def test_a_nucleus_beyond_the_best_groups(interpreter: InterpreterMemory) -> None:
    """A nearly flat distribution over more groups than are looked at first."""
    rules = [Rule(1.0, top_p=0.9), Rule(1.0, top_k=8000), Rule(1.0, top_k=8000, top_p=0.7), Rule(1.0, min_p=0.2)]
    rows = rows_of(rules, "cpu", seeds=[3, 4, 5, 6], positions=[0, 0, 0, 0])
    logits = random_logits(4, 12_000, torch.float32, "cpu", spread=0.3)
    assert_drawn_by_the_rules(logits, rows, sample(logits, rows))


def test_a_better_word_behind_groups_that_tie(interpreter: InterpreterMemory) -> None:
    """More groups tie than are looked at first; the best word is in one that is left out, and the last one is next."""
    logits = torch.full((3, 12_000), -5.0)
    logits[:, ::128] = 0.0
    logits[:, 90 * 128 + 7] = 1.0
    logits[:, 11_999] = 0.5
    rows = rows_of(
        [Rule(1.0, top_k=1), Rule(1.0, top_p=0.01), Rule(1.0, top_k=2)], "cpu", seeds=[1, 2, 3], positions=[0] * 3
    )
    tokens = sample(logits, rows)
    assert tokens[:2].tolist() == [90 * 128 + 7] * 2
    assert_drawn_by_the_rules(logits, rows, tokens)


def test_chunks_without_a_word(interpreter: InterpreterMemory) -> None:
    """A grammar forbids most words; the few that are left are found at once, whatever their number."""
    logits = random_logits(len(RULES), 9000, torch.float32, "cpu")
    logits[:, :4096] = -math.inf
    logits[:, 4100:8992] = -math.inf
    rows = rows_of(RULES, "cpu", seeds=list(range(len(RULES))), positions=[9] * len(RULES))
    assert_drawn_by_the_rules(logits, rows, sample(logits, rows))
    # Nothing but the survey and the few groups was read; `far` would have read rows once a bit.
    assert interpreter.loaded_bytes["logits"] < 4 * len(RULES) * 9000 * 4


@pytest.mark.parametrize("vocab", [200, 9000])
def test_ties_at_an_edge_are_all_kept(interpreter: InterpreterMemory, vocab: int) -> None:
    ties_trial(vocab, torch.float16, "cpu")


def test_a_token_does_not_depend_on_the_batch(interpreter: InterpreterMemory) -> None:
    mates_trial(300, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("rule", "draws"), [(Rule(), 300), (Rule(0.7, top_k=5, top_p=0.9), 80), (Rule(1.0, min_p=0.2), 100)], ids=str
)
def test_shares_are_kept(interpreter: InterpreterMemory, rule: Rule, draws: int) -> None:
    chi_square_trial(rule, draws, "cpu", rows_per_call=draws)


def test_the_reference_keeps_the_shares() -> None:
    for rule in (Rule(), Rule(0.5), Rule(1.0, top_k=3), Rule(1.0, top_p=0.8), Rule(1.0, min_p=0.2)):
        chi_square_trial(rule, 2000, "cpu", rows_per_call=500)


@pytest.mark.parametrize("kernel", [False, True])
def test_rows_without_a_best_word(kernel: bool, request: pytest.FixtureRequest) -> None:
    if kernel:
        request.getfixturevalue("interpreter")
    logits = random_logits(6, 5000, torch.float32, "cpu")
    logits[1, 4500] = math.nan
    logits[2, 3] = math.inf
    logits[3] = -math.inf
    logits[4, :4999] = -math.inf
    for rule in (Rule(0.0), Rule(1.0), Rule(1.0, top_p=0.5)):
        tokens = sample(logits, rows_of([rule] * 6, "cpu", seeds=[1] * 6, positions=[1] * 6)).tolist()
        assert [token < 0 for token in tokens] == [False, True, True, True, False, False]
        assert tokens[4] == 4999


@pytest.mark.parametrize("kernel", [False, True])
def test_the_first_of_equal_words_is_the_greedy_one(kernel: bool, request: pytest.FixtureRequest) -> None:
    if kernel:
        request.getfixturevalue("interpreter")
    logits = torch.zeros(3, 9000)
    logits[0, [4097, 8999]] = 1.0
    logits[1, [8192, 8193]] = 1.0
    rows = rows_of([Rule(0.0)] * 3, "cpu", seeds=[1] * 3, positions=[1] * 3)
    assert sample(logits, rows).tolist() == [4097, 8192, 0]


def test_the_reference_draws_by_the_rules() -> None:
    rules_trial(300, torch.float32, "cpu")
    ties_trial(200, torch.float32, "cpu")


def test_nothing_to_do_is_no_launch(interpreter: InterpreterMemory) -> None:
    assert sample(torch.zeros(0, 9), rows_of([], "cpu", seeds=[], positions=[])).shape == (0,)
    assert interpreter.launches == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"temperature": torch.ones(2).half()}, "temperature"),
        ({"top_k": torch.ones(2).long()}, "top_k"),
        ({"top_p": torch.ones(3)}, "top_p"),
        ({"min_p": torch.ones(4)[::2]}, "min_p"),
        ({"seeds": torch.ones(2).int()}, "seeds"),
        ({"positions": torch.ones(2).long()}, "positions"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    rows: SamplingRows = rows_of([Rule()] * 2, "cpu", seeds=[1, 2], positions=[1, 2])._replace(**changed)
    with pytest.raises(ValueError, match=f"sample: {said}"):
        sample(torch.zeros(2, 9), rows)


@pytest.mark.parametrize(
    "logits", [torch.zeros(9), torch.zeros(2, 0), torch.zeros(2, 9).double(), torch.zeros(9, 2).T], ids=str
)
def test_logits_that_do_not_fit_are_refused(logits: torch.Tensor) -> None:
    rows = rows_of([Rule()] * 2, "cpu", seeds=[1, 2], positions=[1, 2])
    with pytest.raises(ValueError, match="sample: logits"):
        sample(logits, rows)
