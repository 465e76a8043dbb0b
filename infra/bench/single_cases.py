"""One sequence, beside llama.cpp on the same weights as GGUF, and beside what memory allows.

single.same       are they the same model? Greedy tokens in f32 of transformers (+ PEFT) and of llama.cpp beside ours,
                  without and with an adapter (fp32 only; the GGUF files of other types come from the same converter)
single.base       decode tokens/s without an adapter: after a prompt of 32 tokens, the first token excluded
single.adapter    the same with one of rank 16
single.floor      the share of the memory floor (`memory_child.py`) that single.base reaches: of weights as we hold them
ttft.<n>          seconds from a prompt of n tokens to the first token, without an adapter
"""

from collections.abc import Callable
from typing import Final

from infra.bench.case import NAMES, PROMPT_TOKENS, Case, Effort
from infra.bench.children import Child, ChildFailed, Measured
from infra.bench.rounds import Rounds, play, rate_row
from infra.bench.rows import Row
from infra.bench.shapes import DISTINCT
from infra.bench.stage import Stage

SAME_PROMPTS: Final = 3
SAME_TOKENS: Final = 48
Measure = Callable[[], Measured]


def _llama(stage: Stage, kind: str, adapter: str | None, prompt_tokens: int, tokens: int) -> Measure:
    def measure() -> Measured:
        path = None if adapter is None else str(stage.gguf(kind, adapter))
        return stage.llama(kind).batch(stage.prompts(1, prompt_tokens), [path], tokens)

    return measure


def same(stage: Stage, effort: Effort) -> list[Row]:
    """The proof that sides compute the same; `effort` does not matter."""
    if stage.dtype != "float32":
        return []
    prompts = stage.prompts(SAME_PROMPTS, PROMPT_TOKENS)

    def answers(child: Child, adapters: list[str | None]) -> list[list[int]]:
        return [child.batch([p], [name], SAME_TOKENS).answers[0] for name in adapters for p in prompts]

    def peft() -> list[list[int]]:
        return answers(stage.peft(DISTINCT), [None, NAMES[0]])

    def llama() -> list[list[int]]:
        return answers(stage.llama("f32", exact=True), [None, str(stage.gguf("f32", NAMES[0]))])

    ours, rows = answers(stage.ours(), [None, NAMES[0]]), []
    total = sum(map(len, ours))
    for peer, ask in (("transformers + PEFT", peft), ("llama.cpp f32", llama)):
        try:
            found = ask()
        except ChildFailed as error:
            rows.append(_equal(stage, peer, total, None, str(error)))
        else:
            equal = sum(_common(one, two) for one, two in zip(ours, found, strict=True))
            rows.append(_equal(stage, peer, total, equal, f"{len(ours)} answers, counted up to the first difference"))
    return rows


def _common(one: list[int], two: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))


def _equal(stage: Stage, peer: str, total: int, equal: int | None, note: str) -> Row:
    return Row(
        metric=f"{stage.prefix}.single.same",
        value=total,
        unit="tokens equal",
        peer=peer,
        peer_value=equal,
        ratio=None if equal is None else equal / total,
        target="all",
        holds=None if equal is None else equal == total,
        note=note,
    )


def single(adapter: str | None) -> Case:
    """One sequence with this adapter, or none."""

    def case(stage: Stage, effort: Effort) -> list[Row]:
        def ours() -> Measured:
            return stage.ours().batch(stage.prompts(1, PROMPT_TOKENS), [adapter], effort.tokens)

        kinds = stage.gguf_kinds
        peers = {f"llama.cpp {kind}": _llama(stage, kind, adapter, PROMPT_TOKENS, effort.tokens) for kind in kinds}
        rounds = play({"ours": ours, **peers}, effort.rounds)
        metric = f"{stage.prefix}.single.{'base' if adapter is None else 'adapter'}"
        return [rate_row(metric, rounds, peer, at_least=1.0, note=stage.held_note) for peer in peers]

    return case


def floor(stage: Stage, effort: Effort) -> list[Row]:
    """How close decoding comes to reading the weights once per token."""
    weight_bytes = stage.weight_bytes
    rounds = play(
        {
            "ours": lambda: stage.ours().batch(stage.prompts(1, PROMPT_TOKENS), [None], effort.tokens),
            "memory floor": lambda: stage.memory(weight_bytes).batch([], [], effort.tokens),
        },
        effort.rounds,
    )
    speed = (rounds.median("memory floor", lambda item: item.rate) or 0) * weight_bytes / 1e9
    read = f"{weight_bytes / 1e6:.0f} MB of weights a token, plain reads at {speed:.1f} GB/s"
    note = "; ".join(filter(None, (stage.held_note, read)))
    return [rate_row(f"{stage.prefix}.single.floor", rounds, "memory floor", note=note)]


def ttft(prompt_tokens: int) -> Case:
    """Time to the first token of a prompt of this length."""

    def case(stage: Stage, effort: Effort) -> list[Row]:
        def side(child: Callable[[], Child]) -> Measure:
            return lambda: child().batch(stage.prompts(1, prompt_tokens), [None], 2)

        kind = stage.gguf_kinds[0]
        peers: dict[str, Measure] = {
            f"llama.cpp {kind}": _llama(stage, kind, None, prompt_tokens, 2),
            "transformers": side(stage.transformers),
        }
        rounds = play({"ours": side(stage.ours), **peers}, effort.rounds)
        metric = f"{stage.prefix}.ttft.{prompt_tokens}"
        return [_first_row(metric, rounds, peer, stage.held_note) for peer in peers]

    return case


def _first_row(metric: str, rounds: Rounds[Measured], peer: str, note: str) -> Row:
    def first_ms(item: Measured) -> float:
        return 1e3 * item.first_s

    spread = f"rounds {rounds.spread('ours', first_ms)}, peer {rounds.spread(peer, first_ms)}"
    return Row(
        metric=metric,
        value=rounds.median("ours", first_ms),
        unit="ms",
        peer=peer,
        peer_value=rounds.median(peer, first_ms),
        ratio=rounds.ratio(peer, "ours", first_ms),
        note="; ".join([*filter(None, (note, spread)), *rounds.remarks("ours", peer)]),
    )
