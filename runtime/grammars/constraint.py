"""What a sequence may still say, as the decisions and the engine see it. No torch, no clock, no grammar library.

    OPEN ──take(token)──> OPEN | done (only the end may follow) | problem (nothing fits any more)

A constraint follows its sequence: it takes every sampled token once, on the engine thread, and keeps its place over a
preemption, for recomputing keys and values says nothing new. `masks.py` asks what may come next.
"""

from typing import Protocol


class Constraint(Protocol):
    """One sequence's place in its grammar."""

    @property
    def done(self) -> bool:
        """The answer is complete and nothing but an end token may follow."""
        ...

    @property
    def problem(self) -> str | None:
        """Why no continuation can be found, a clause for the caller; then the sequence must end."""
        ...

    def take(self, token: int) -> None:
        """The sequence said this; never raises, an impossible token becomes the `problem`."""
        ...


class Prepared(Protocol):
    """A grammar that compiled, for any number of sequences."""

    @property
    def worn(self) -> bool:
        """It has been used for long; compile it anew for those who come."""
        ...

    def start(self) -> Constraint:
        """A new sequence's place, at the beginning."""
        ...
