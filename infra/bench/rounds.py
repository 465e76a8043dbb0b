"""Interleaved rounds: ours, peer, ours, peer ... so that a slow spell of the machine hits both sides.

A side is a name and a function that measures once. A side that fails leaves the rounds, and its reason goes into the
row; the others go on. A round during which other processes used more than `DISTURBED` of the CPUs is played again, up
to `count` times more in all and not after `PATIENCE_S`; the least disturbed `count` rounds count, and the row says how
disturbed they were. No target is judged by rounds of which others had more than `UNFIT`.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from infra.bench.children import ChildFailed
from infra.bench.rows import Row

DISTURBED: Final = 0.08
UNFIT: Final = 0.25
PATIENCE_S: Final = 90.0


class Watched(Protocol):
    """A measurement, `children.Measured` or `children.Load`."""

    @property
    def others(self) -> float: ...

    @property
    def rate(self) -> float: ...

    @property
    def cpu_ms(self) -> float: ...


W = TypeVar("W", bound=Watched)


@dataclass
class Rounds(Generic[W]):
    """`kept` are rounds, each with what every side measured; `failed` says why a side is missing."""

    kept: list[dict[str, W]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, side: str) -> list[W]:
        """What this side measured, round by round."""
        return [found[side] for found in self.kept if side in found]

    def median(self, side: str, figure: Callable[[W], float]) -> float | None:
        """Over the rounds; None when the side failed."""
        found = self.of(side)
        return statistics.median(map(figure, found)) if found else None

    def ratio(self, side: str, other: str, figure: Callable[[W], float]) -> float | None:
        """Median over rounds of side / other within a round."""
        pairs = list(zip(self.of(side), self.of(other), strict=False))
        return statistics.median(figure(one) / figure(two) for one, two in pairs) if pairs else None

    def spread(self, side: str, figure: Callable[[W], float]) -> str:
        """The lowest and the highest round."""
        values = [figure(item) for item in self.of(side)]
        return f"{min(values):.4g} to {max(values):.4g}" if values else "-"

    def judged(self, holds: bool | None) -> bool | None:
        """The verdict on a target, or None when the machine was too busy for one."""
        return holds if self._worst <= UNFIT else None

    @property
    def _worst(self) -> float:
        return max((_disturbance(found) for found in self.kept), default=0.0)

    def remarks(self, *sides: str) -> list[str]:
        """Disturbance, and why sides are missing."""
        busy = [f"others used up to {self._worst:.0%} of the CPUs"] if self._worst > DISTURBED else []
        busy += ["too busy to judge"] if self._worst > UNFIT else []
        return [*busy, *(self.failed[side] for side in sides if side in self.failed)]


def play(sides: Mapping[str, Callable[[], W]], count: int, clock: Callable[[], float] = time.monotonic) -> Rounds[W]:
    """One round to warm up, which is thrown away, then rounds of every side in turn, of which `count` are kept."""
    rounds, began = Rounds[W](), clock()
    _round(rounds, sides)
    played: list[dict[str, W]] = []
    while sum(_disturbance(found) <= DISTURBED for found in played) < count:
        if len(played) >= 2 * count or (len(played) >= count and clock() - began > PATIENCE_S):
            break
        found = _round(rounds, sides)
        if not found:
            break
        played.append(found)
    quiet = sorted(range(len(played)), key=lambda number: _disturbance(played[number]))[:count]
    rounds.kept = [played[number] for number in sorted(quiet)]
    return rounds


def _round(rounds: Rounds[W], sides: Mapping[str, Callable[[], W]]) -> dict[str, W]:
    found = {}
    for name, side in sides.items():
        if name not in rounds.failed:
            try:
                found[name] = side()
            except ChildFailed as error:
                rounds.failed[name] = str(error)
    return found


def _disturbance(found: Mapping[str, Watched]) -> float:
    return max(item.others for item in found.values())


def rate_row(metric: str, rounds: Rounds[W], peer: str, *, at_least: float | None = None, note: str = "") -> Row:
    """Tokens per second of the side "ours" beside a peer's; `at_least` is the target for the ratio."""
    ratio = rounds.ratio("ours", peer, lambda item: item.rate)
    cpu = [rounds.median(side, lambda item: item.cpu_ms) for side in ("ours", peer)]
    notes = [
        f"rounds {rounds.spread('ours', lambda item: item.rate)}, peer {rounds.spread(peer, lambda item: item.rate)}",
        "CPU ms/token " + " vs ".join("-" if value is None else f"{value:.2f}" for value in cpu),
        *rounds.remarks("ours", peer),
    ]
    return Row(
        metric=metric,
        value=rounds.median("ours", lambda item: item.rate),
        unit="tokens/s",
        peer=peer,
        peer_value=rounds.median(peer, lambda item: item.rate),
        ratio=ratio,
        target=None if at_least is None else f">= {at_least:g}x",
        holds=None if at_least is None or ratio is None else rounds.judged(ratio >= at_least),
        note="; ".join([*([note] if note else []), *notes]),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the (sorted) values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
