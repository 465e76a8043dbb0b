"""One account's waiting sequences: a line for each adapter, and which of them starts next.

Lower `priority` starts earlier; among equals the adapters take turns by served tokens, and within one the first comes
first. Every STARTS_PER_ELDER-th start is made as though nobody had given a priority, so an account orders its work as
it likes and still starves none of it: with one adapter, a sequence that finds k older ones starts among the next
(k + 1) * STARTS_PER_ELDER of its account, whatever comes after it; with several, they share those starts by served
tokens. Whichever starts takes the oldest seat (`running.py`), so that nothing of this moves an account's turn.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runtime.sequence import Sequence

STARTS_PER_ELDER: Final = 8

Digest = str | None


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.number


def _age(sequence: Sequence) -> int:
    return sequence.number


def _seat(sequence: Sequence) -> int:
    return sequence.seat


@dataclass(eq=False, slots=True)
class _Line:
    """The same sequences in both orders."""

    by_rank: list[Sequence] = field(default_factory=list)
    by_age: list[Sequence] = field(default_factory=list)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.by_rank, sequence, key=_rank)
        bisect.insort(self.by_age, sequence, key=_age)

    def remove(self, sequence: Sequence) -> None:
        """Raises KeyError."""
        index = bisect.bisect_left(self.by_age, sequence.number, key=_age)
        if index == len(self.by_age) or self.by_age[index] is not sequence:
            raise KeyError(sequence.number)
        del self.by_age[index]
        del self.by_rank[bisect.bisect_left(self.by_rank, _rank(sequence), key=_rank)]


class AccountQueue:
    """`size` sequences, never zero for longer than a call of the owner lasts; `weight` is the account's share."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.size = 0
        self._lines: dict[Digest, _Line] = {}
        self._seats: list[Sequence] = []
        self._starts = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._lines

    @property
    def digests(self) -> list[Digest]:
        """The adapters that something waits with; None for the base."""
        return list(self._lines)

    @property
    def sequences(self) -> list[Sequence]:
        """All of them."""
        return [sequence for line in self._lines.values() for sequence in line.by_age]

    @property
    def oldest(self) -> int:
        """The oldest seat."""
        return self._seats[0].seat

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; the account's weight is that of the latest."""
        self._lines.setdefault(sequence.digest, _Line()).add(sequence)
        bisect.insort(self._seats, sequence, key=_seat)
        self.weight = sequence.weight
        self.size += 1

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands. Raises KeyError when it does not wait."""
        line = self._lines[sequence.digest]
        line.remove(sequence)
        del self._seats[bisect.bisect_left(self._seats, sequence.seat, key=_seat)]
        self.size -= 1
        if not line.by_age:
            del self._lines[sequence.digest]

    def start(self, sequence: Sequence) -> None:
        """Takes out a sequence whose turn has come. Raises KeyError when it does not wait."""
        elder = self._seats[0]
        self.remove(sequence)
        if elder is not sequence:
            del self._seats[0]
            elder.seat, sequence.seat = sequence.seat, elder.seat
            bisect.insort(self._seats, elder, key=_seat)
        self._starts += 1

    def next(self, admissible: Callable[[Digest], bool], served: Callable[[Digest], float]) -> Sequence | None:
        """The one that starts next; None while no adapter is there. `served` counts the tokens of an adapter."""
        lines = [line for digest, line in self._lines.items() if admissible(digest)]
        if (self._starts + 1) % STARTS_PER_ELDER == 0:
            elders = (line.by_age[0] for line in lines)
            return min(elders, key=lambda head: (served(head.digest), head.number), default=None)
        heads = (line.by_rank[0] for line in lines)
        return min(heads, key=lambda head: (head.priority, served(head.digest), head.number), default=None)

    def adapters_in_turn(self) -> list[Sequence]:
        """One sequence of each line in the order in which adapters should come: the oldest's first, so that none
        is put off for ever, then by priority."""
        elder = min(self._lines.values(), key=lambda line: line.by_age[0].number)
        others = sorted((line.by_rank[0] for line in self._lines.values() if line is not elder), key=_rank)
        return [elder.by_age[0], *others]

    def newest_fresh(self) -> Sequence | None:
        """What is turned away first: of those whose answer has not begun the last in rank."""
        return max((item for item in self.sequences if item.admitted_at is None), key=_rank, default=None)
