"""Interleaved rounds: ours, peer, ours, peer ... so that a slow spell of the machine hits both sides.

A side is a name and a function that measures once. A side that fails leaves the rounds, and its reason goes into the
row; the others go on.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra.bench.children import ChildFailed, Measured
from infra.bench.rows import Row

Side = Callable[[], Measured]


@dataclass
class Rounds:
    """What was measured, a list per side, and why a side is missing."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, side: str, figure: Callable[[Measured], float]) -> float | None:
        """Over the rounds; None when the side failed."""
        found = self.measured.get(side)
        return statistics.median(map(figure, found)) if found else None

    def ratio(self, side: str, other: str, figure: Callable[[Measured], float]) -> float | None:
        """Median over rounds of side / other within a round."""
        pairs = list(zip(self.measured.get(side, ()), self.measured.get(other, ()), strict=False))
        return statistics.median(figure(one) / figure(two) for one, two in pairs) if pairs else None

    def spread(self, side: str, figure: Callable[[Measured], float]) -> str:
        """The lowest and the highest round."""
        values = [figure(item) for item in self.measured.get(side, ())]
        return f"{min(values):.4g} to {max(values):.4g}" if values else "-"


def play(sides: Mapping[str, Side], count: int) -> Rounds:
    """One round to warm up, which is thrown away, then `count` rounds of every side in turn."""
    rounds = Rounds()
    for number in range(count + 1):
        for name, side in sides.items():
            if name in rounds.failed:
                continue
            try:
                found = side()
            except ChildFailed as error:
                rounds.failed[name] = str(error)
                rounds.measured.pop(name, None)
                continue
            if number:
                rounds.measured.setdefault(name, []).append(found)
    return rounds


def rate_row(
    metric: str, rounds: Rounds, ours: str, peer: str, *, at_least: float | None = None, note: str = ""
) -> Row:
    """Decode tokens per second beside a peer's; `at_least` is the target for the ratio."""
    ratio = rounds.ratio(ours, peer, lambda item: item.rate)
    cpu = (rounds.median(side, lambda item: item.cpu_ms) for side in (ours, peer))
    notes = [
        f"rounds {rounds.spread(ours, lambda item: item.rate)}, peer {rounds.spread(peer, lambda item: item.rate)}",
        "CPU ms/token " + " vs ".join("-" if value is None else f"{value:.2f}" for value in cpu),
        *(rounds.failed[side] for side in (ours, peer) if side in rounds.failed),
    ]
    return Row(
        metric=metric,
        value=rounds.median(ours, lambda item: item.rate),
        unit="tokens/s",
        peer=peer,
        peer_value=rounds.median(peer, lambda item: item.rate),
        ratio=ratio,
        target=None if at_least is None else f">= {at_least:g}x",
        holds=None if at_least is None or ratio is None else ratio >= at_least,
        note="; ".join([*([note] if note else []), *notes]),
    )
