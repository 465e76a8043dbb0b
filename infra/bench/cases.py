"""What is measured in process, case by case. A case takes a stage and says its rows.

batch8.*   Eight greedy sequences at once, prompts of 32 random tokens, answers of `tokens` tokens; decode rate from the
           step at which all have answered to the last one (prefill excluded on every side). The peer is transformers'
           `generate` on the same prompts, with PEFT's `adapter_names` where there are adapters. `.cost` is our own
           base-only batch, measured in the same rounds, over this batch.
           mixed: eight adapters of rank 16. identical: one for all rows. zipf: rows 4, 2, 1, 1 over four adapters.
           ranks: eight adapters of ranks 4 to 64.
single.*   One sequence, without and with an adapter of rank 16, beside llama.cpp on the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from infra.bench.children import Child, Measured
from infra.bench.rounds import Side, play, rate_row
from infra.bench.rows import Row
from infra.bench.shapes import DISTINCT, RANKS
from infra.bench.stage import GGUF_KINDS, Stage

PROMPT_TOKENS: Final = 32
MIXED_TARGET: Final = 8.0
COST_TARGET: Final = 1.5


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 5
    tokens: int = 64


Case = Callable[[Stage, Effort], list[Row]]

_NAMES: Final[list[str | None]] = [adapter.name for adapter in DISTINCT]
WORKLOADS: Final[dict[str, list[str | None]]] = {
    "base": [None] * 8,
    "mixed": [*_NAMES],
    "identical": [_NAMES[0]] * 8,
    "zipf": [_NAMES[0]] * 4 + [_NAMES[1]] * 2 + [_NAMES[2], _NAMES[3]],
    "ranks": [adapter.name for adapter in RANKS],
}


def batch8(workload: str) -> Case:
    """A case of this workload."""
    adapters = WORKLOADS[workload]

    def case(stage: Stage, effort: Effort) -> list[Row]:
        def peer() -> Child:
            return (
                stage.transformers() if workload == "base" else stage.peft(RANKS if workload == "ranks" else DISTINCT)
            )

        def side(child: Callable[[], Child], names: list[str | None]) -> Side:
            return lambda: child().batch(stage.prompts(len(names), PROMPT_TOKENS), names, effort.tokens)

        name = "transformers" if workload == "base" else "transformers + PEFT"
        sides = {"ours": side(stage.ours, adapters), name: side(peer, adapters)}
        if workload != "base":
            sides["ours, base only"] = side(stage.ours, WORKLOADS["base"])
        rounds = play(sides, effort.rounds)
        metric = f"{stage.prefix}.batch8.{workload}"
        target = MIXED_TARGET if workload == "mixed" else None
        rows = [rate_row(metric, rounds, "ours", name, at_least=target)]
        cost = rounds.ratio("ours, base only", "ours", lambda item: item.rate)
        if workload != "base":
            rows.append(
                Row(
                    metric=f"{metric}.cost",
                    value=cost,
                    unit="x base batch",
                    target=f"<= {COST_TARGET:g}x",
                    holds=None if cost is None else cost <= COST_TARGET,
                    note=f"base batch {rounds.median('ours, base only', lambda item: item.rate) or 0:.4g} tokens/s",
                )
            )
        return rows

    return case


def single(adapter: str | None) -> Case:
    """One sequence, with this adapter."""

    def case(stage: Stage, effort: Effort) -> list[Row]:
        def llama(kind: str) -> Side:
            def measure() -> Measured:
                path = None if adapter is None else str(stage.gguf(kind, adapter))
                return stage.llama(kind).batch(stage.prompts(1, PROMPT_TOKENS), [path], effort.tokens)

            return measure

        sides: dict[str, Side] = {
            "ours": lambda: stage.ours().batch(stage.prompts(1, PROMPT_TOKENS), [adapter], effort.tokens)
        }
        sides |= {f"llama.cpp {kind}": llama(kind) for kind in GGUF_KINDS[stage.dtype]}
        rounds = play(sides, effort.rounds)
        metric = f"{stage.prefix}.single.{'base' if adapter is None else 'adapter'}"
        return [rate_row(metric, rounds, "ours", peer, at_least=1.0) for peer in sides if peer != "ours"]

    return case


CASES: Final[dict[str, Case]] = {
    "batch8.base": batch8("base"),
    "batch8.mixed": batch8("mixed"),
    "batch8.identical": batch8("identical"),
    "batch8.zipf": batch8("zipf"),
    "batch8.ranks": batch8("ranks"),
    "single.base": single(None),
    "single.adapter": single(_NAMES[0]),
}
