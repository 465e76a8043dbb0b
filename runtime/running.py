"""The sequences that hold blocks, in the order of their seats, and which of them gives way when there is no room.

A seat is an age among the sequences of all accounts: the newest seat gives way, the oldest never for another. Which of
an account's sequences leaves with a seat is that account's own affair: the one of the lowest priority, among equals
the newest. It exchanges seats with the one that stays, so that priorities move nothing between accounts. A sequence
yields so twice; after that it counts as no less than the others, so that a stream of better ones cannot throw it out
for ever.
"""

import bisect
from collections import Counter
from collections.abc import Iterator
from typing import Final

from runtime.sequence import Sequence

MOST_YIELDS: Final = 2


class Running:
    """Oldest seat first."""

    def __init__(self) -> None:
        self._seats: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seats)

    def add(self, sequence: Sequence) -> None:
        """The sequence starts, or starts again, in its seat."""
        bisect.insort(self._seats, sequence, key=lambda item: item.seat)

    def remove(self, sequence: Sequence) -> None:
        """Raises ValueError when it does not run."""
        self._seats.remove(sequence)

    @property
    def accounts(self) -> frozenset[str]:
        """Those that run something."""
        return frozenset(sequence.account_id for sequence in self._seats)

    def crowded(self) -> str | None:
        """The account that runs most for its weight, and more than one sequence; None when there is none."""
        rows: Counter[str] = Counter()
        shares: dict[str, float] = {}
        for sequence in self._seats:
            rows[sequence.account_id] += 1
            shares[sequence.account_id] = rows[sequence.account_id] / sequence.weight
        return max((account for account in rows if rows[account] > 1), key=shares.__getitem__, default=None)

    def take_newest(self) -> Sequence:
        """Removes and returns what gives way for the growth of others, or for itself."""
        return self.take_from(self._seats[-1].account_id)

    def take_from(self, account_id: str) -> Sequence:
        """Removes and returns what gives way of this account. Raises ValueError when it runs nothing."""
        own = [sequence for sequence in self._seats if sequence.account_id == account_id]
        best = min(sequence.priority for sequence in own)
        leaver = max(own, key=lambda item: (best if item.num_yields >= MOST_YIELDS else item.priority, item.number))
        self._seats.remove(leaver)
        newest = own[-1]
        if newest is not leaver:
            self._seats.remove(newest)
            newest.seat, leaver.seat = leaver.seat, newest.seat
            leaver.num_yields += 1
            self.add(newest)
        return leaver
