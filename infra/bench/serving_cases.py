"""Many callers: through a real runtime process and its socket, and what the engine itself costs per step.

served.<n>        n callers in a closed loop (`service_child.py`), prompts of 32 tokens, adapters in turn: none, then
                  the eight of rank 16. Tokens/s of the whole, prefill included; p50 of the time to the first token;
                  p50 and p99 of the time between tokens. No peer serves unlike adapters in one batch on a CPU.
overhead.32       a decode step of 32 rows over eight adapters: `Engine.step` minus the runner's `execute`, and the part
                  of `execute` that builds tensors from records (`engine_child.py`)
"""

import statistics
from typing import Final

from infra.bench.case import NAMES, PROMPT_TOKENS, Case, Effort
from infra.bench.children import ChildFailed, Load
from infra.bench.rounds import percentile, play
from infra.bench.rows import Row
from infra.bench.stage import Stage

OVERHEAD_TARGET_MS: Final = 0.3
OVERHEAD_ROWS: Final = 32
REQUESTS_EACH: Final = 2
NO_PEER: Final = "no peer serves unlike adapters in one batch here"


def served(concurrency: int) -> Case:
    """The closed loop with so many callers."""

    def case(stage: Stage, effort: Effort) -> list[Row]:
        count = max(4, REQUESTS_EACH * concurrency)
        turn: list[str | None] = [None, *NAMES]
        adapters = [turn[number % len(turn)] for number in range(count)]

        def ours() -> Load:
            prompts = stage.prompts(count, PROMPT_TOKENS)
            return stage.service().load(prompts, adapters, effort.tokens, concurrency)

        rounds = play({"ours": ours}, effort.rounds)
        loads = rounds.of("ours")
        said = [*filter(None, (stage.held_note,)), NO_PEER, f"{count} requests of {effort.tokens} tokens"]
        note = "; ".join([*said, *rounds.remarks("ours")])
        metric = f"{stage.prefix}.served.{concurrency}"
        rows = [Row(metric=metric, value=rounds.median("ours", lambda item: item.rate), unit="tokens/s", note=note)]
        if not loads:
            return rows
        first = [1e3 * seconds for load in loads for seconds in load.first_s]
        gaps = [1e3 * seconds for load in loads for seconds in load.gaps_s]
        figures = {
            "first_p50": percentile(first, 0.5),
            "between_p50": percentile(gaps, 0.5),
            "between_p99": percentile(gaps, 0.99),
            "cpu_per_token": rounds.median("ours", lambda item: item.cpu_ms),
        }
        return rows + [Row(metric=f"{metric}.{name}", value=value, unit="ms") for name, value in figures.items()]

    return case


def overhead(stage: Stage, effort: Effort) -> list[Row]:
    """What a step of 32 rows costs outside the model."""
    adapters = [NAMES[number % len(NAMES)] for number in range(OVERHEAD_ROWS)]
    metric = f"{stage.prefix}.overhead.{OVERHEAD_ROWS}"
    found: dict[str, list[float]] = {}
    try:
        for number in range(effort.rounds + 1):
            prompts = stage.prompts(OVERHEAD_ROWS, PROMPT_TOKENS)
            measured = stage.ours().ask("overhead", prompts=prompts, adapters=adapters, tokens=effort.tokens)
            for name, values in measured.items():
                if number:  # the first one warms up
                    found.setdefault(name, []).extend(values)
    except ChildFailed as error:
        return [Row(metric=metric, value=None, unit="ms", note=str(error))]
    engine, build, step = (statistics.median(found[name]) for name in ("engine_ms", "build_ms", "step_ms"))
    p99 = percentile(found["engine_ms"], 0.99)
    return [
        Row(
            metric=metric,
            value=engine,
            unit="ms",
            target=f"< {OVERHEAD_TARGET_MS:g} ms",
            holds=engine < OVERHEAD_TARGET_MS,
            note=f"scheduler, books, outputs: step - execute; p99 {p99:.2f} ms; whole step {step:.1f} ms",
        ),
        Row(metric=f"{metric}.build", value=build, unit="ms", note="records to tensors, inside execute"),
    ]
