"""Draws against the rules in float64, on any device: few small rows in the interpreter, full vocabularies on a GPU."""

from collections import Counter
from dataclasses import dataclass

import torch

from kernels.philox import philox_uniform_reference
from kernels.sampling import SamplingRows, sample, shares_reference
from tests.kernels.padded import padded
from tests.kernels.replay import captured


@dataclass(frozen=True)
class Rule:
    """Of a row; the defaults filter nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


# What a caller may send, and what it may come to.
RULES = [
    Rule(),
    Rule(0.6),
    Rule(0.0),
    Rule(5.0),
    Rule(0.7, top_k=1),
    Rule(1.0, top_k=40),
    Rule(1.0, top_p=0.9),
    Rule(1.3, top_p=0.999),
    Rule(0.8, top_p=0.0),
    Rule(1.0, min_p=0.05),
    Rule(1.0, min_p=1.0),
    Rule(1.5, top_k=50, top_p=0.5, min_p=0.01),
    Rule(1.0, top_k=100_000_000),
    Rule(2.0, top_k=700, top_p=0.97),
    Rule(0.05, top_p=0.5),
    Rule(1e-4, top_k=3),
]


def rows_of(rules: list[Rule], device: str, *, seeds: list[int], positions: list[int]) -> SamplingRows:
    """One row a rule."""

    def column(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return padded(torch.tensor(values, dtype=dtype, device=device))

    return SamplingRows(
        column([rule.temperature for rule in rules], torch.float32),
        column([rule.top_k for rule in rules], torch.int32),
        column([rule.top_p for rule in rules], torch.float32),
        column([rule.min_p for rule in rules], torch.float32),
        column(seeds, torch.int64),
        column(positions, torch.int32),
    )


def random_logits(rows: int, vocab: int, dtype: torch.dtype, device: str, *, spread: float = 3.0) -> torch.Tensor:
    """Rows with a gap of NaN behind each."""
    generator = torch.Generator(device).manual_seed(vocab)
    values = torch.randn((rows, vocab), generator=generator, device=device) * spread
    return padded(values.to(dtype), gap=16)


def assert_drawn_by_the_rules(logits: torch.Tensor, rows: SamplingRows, tokens: torch.Tensor) -> None:
    """Each token's share holds the row's number, but for what sums in fp32 are off by."""
    for scores, token, temperature, top_k, top_p, min_p, seed, position in zip(
        logits, tokens.tolist(), *(column.tolist() for column in rows), strict=True
    ):
        if temperature < 1e-5:
            assert token == int(scores.float().argmax())
            continue
        upto = shares_reference(scores, temperature, top_k, top_p, min_p).cumsum(-1)
        upto = upto / upto[-1]
        before, after = float(upto[token - 1]) if token else 0.0, float(upto[token])
        number = philox_uniform_reference(seed, position)
        rule = Rule(temperature, top_k, top_p, min_p)
        assert before < after, (rule, token, "is not kept")
        assert before - 1e-5 <= number <= after + 1e-5, (rule, token, before, number, after)


def rules_trial(vocab: int, dtype: torch.dtype, device: str, *, spread: float = 3.0, repeats: int = 1) -> None:
    """Every rule on rows of its own."""
    rules = RULES * repeats
    rows = rows_of(
        rules, device, seeds=[(-1) ** at * at * 0x9E3779B97F4A7 for at in range(len(rules))],
        positions=[7 * at for at in range(len(rules))],
    )  # fmt: skip
    logits = random_logits(len(rules), vocab, dtype, device, spread=spread)
    tokens = sample(logits, rows)
    assert tokens.dtype == torch.int64
    assert_drawn_by_the_rules(logits, rows, tokens)


def ties_trial(vocab: int, dtype: torch.dtype, device: str) -> None:
    """Few different logits, so that many words tie wherever a filter cuts."""
    rules = [Rule(1.0, top_k=3), Rule(1.0, top_k=vocab - 1), Rule(1.0, top_p=0.37), Rule(2.0, top_k=9, top_p=0.37)]
    rows = rows_of(rules, device, seeds=[11, 12, 13, 14], positions=[1, 2, 3, 4])
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(0, 3, (len(rules), vocab), generator=generator).to(device).to(dtype)
    assert_drawn_by_the_rules(logits, rows, sample(logits, rows))


def mates_trial(vocab: int, dtype: torch.dtype, device: str) -> None:
    """A row gets the same token alone, in another order, and in a replay."""
    count = len(RULES)
    seeds, positions = [5 * at - 7 for at in range(count)], [at % 4 for at in range(count)]
    logits = random_logits(count, vocab, dtype, device)
    rows = rows_of(RULES, device, seeds=seeds, positions=positions)
    tokens = sample(logits, rows)
    turned = torch.arange(count - 1, -1, -1, device=device)
    assert torch.equal(sample(logits[turned], SamplingRows(*(column[turned] for column in rows))), tokens[turned])
    for at in (0, 5, 11):
        alone = SamplingRows(*(column[at : at + 1] for column in rows))
        assert torch.equal(sample(logits[at : at + 1], alone), tokens[at : at + 1])
    replay = captured(lambda: sample(logits, rows), device)
    for step in range(3):
        rows.positions.add_(step)
        assert torch.equal(replay(), sample(logits, rows))
    assert not torch.equal(replay(), tokens)


def chi_square_trial(rule: Rule, draws: int, device: str, *, rows_per_call: int) -> None:
    """Draws at many positions of a few seeds have the shares of the rules; a fixed outcome, as seeds are fixed."""
    scores = torch.tensor([0.5, -9.0, 1.2, 0.0, -1.0, 2.0, float("-inf"), 1.9, -0.3, 0.9], device=device)
    shares = shares_reference(scores, rule.temperature, rule.top_k, rule.top_p, rule.min_p)
    shares = shares / shares.sum()
    counted = Counter[int]()
    for start in range(0, draws, rows_per_call):
        seeds = [1 + at % 3 for at in range(rows_per_call)]
        positions = [start + at for at in range(rows_per_call)]
        rows = rows_of([rule] * rows_per_call, device, seeds=seeds, positions=positions)
        counted.update(sample(scores.expand(rows_per_call, -1).contiguous(), rows).tolist())
    assert all(float(shares[word]) > 0 for word in counted)
    often = [(counted[word], draws * share) for word, share in enumerate(shares.tolist()) if draws * share >= 5]
    statistic = sum((found - expected) ** 2 / expected for found, expected in often)
    # The 99.9 % quantile for up to nine degrees of freedom.
    assert statistic < 27.9, (rule, statistic, counted)
