"""Eight sequences in one batch, beside transformers' `generate` (with PEFT's `adapter_names` where there are adapters).

batch8.<workload>        greedy, prompts of 32 random tokens; decode rate from the step at which all sequences have
                         answered to the last one: prefill is excluded on every side
batch8.<workload>.cost   our base-only batch of the same rounds over this batch: what the adapters cost

mixed: eight adapters of rank 16. identical: one for all. zipf: 4, 2, 1, 1 rows of four. ranks: eight of ranks 4 to 64.
"""

from collections.abc import Callable
from typing import Final

from infra.bench.case import NAMES, PROMPT_TOKENS, Case, Effort
from infra.bench.children import Child, Measured
from infra.bench.rounds import play, rate_row
from infra.bench.rows import Row
from infra.bench.shapes import DISTINCT, RANKS
from infra.bench.stage import Stage

MIXED_TARGET: Final = 8.0
COST_TARGET: Final = 1.5
BASE_ONLY: Final = "ours, base only"

WORKLOADS: Final[dict[str, list[str | None]]] = {
    "base": [None] * 8,
    "mixed": NAMES,
    "identical": [NAMES[0]] * 8,
    "zipf": [NAMES[0]] * 4 + [NAMES[1]] * 2 + [NAMES[2], NAMES[3]],
    "ranks": [adapter.name for adapter in RANKS],
}


def batch8(workload: str) -> Case:
    """The case of this workload."""
    adapters = WORKLOADS[workload]
    peer = "transformers" if workload == "base" else "transformers + PEFT"

    def case(stage: Stage, effort: Effort) -> list[Row]:
        def peer_child() -> Child:
            if workload == "base":
                return stage.transformers()
            return stage.peft(RANKS if workload == "ranks" else DISTINCT)

        def side(child: Callable[[], Child], names: list[str | None]) -> Callable[[], Measured]:
            return lambda: child().batch(stage.prompts(len(names), PROMPT_TOKENS), names, effort.tokens)

        sides = {"ours": side(stage.ours, adapters), peer: side(peer_child, adapters)}
        if workload != "base":
            sides[BASE_ONLY] = side(stage.ours, WORKLOADS["base"])
        rounds = play(sides, effort.rounds)
        metric = f"{stage.prefix}.batch8.{workload}"
        target = MIXED_TARGET if workload == "mixed" else None
        rows = [rate_row(metric, rounds, peer, at_least=target, note=stage.held_note)]
        if workload != "base":
            cost = rounds.ratio(BASE_ONLY, "ours", lambda item: item.rate)
            base_rate = rounds.median(BASE_ONLY, lambda item: item.rate)
            rows.append(
                Row(
                    metric=f"{metric}.cost",
                    value=cost,
                    unit="x base batch",
                    target=f"<= {COST_TARGET:g}x",
                    holds=None if cost is None else rounds.judged(cost <= COST_TARGET),
                    note="; ".join([f"base batch {base_rate or 0:.4g} tokens/s", *rounds.remarks("ours", BASE_ONLY)]),
                )
            )
        return rows

    return case
