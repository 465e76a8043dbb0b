"""How many bytes of request bodies may be in memory at once, over all callers. What does not fit is refused, counted.

Without it, many callers with bodies just below the limit of one would fill the memory together. A body takes its
announced length from before it is read until its answer is complete; one that announces none takes as much as has come
so far. An account may hold at most as much as it leaves free: however many bodies one account stalls half-way, there
is room for the others.
"""

from types import TracebackType
from typing import Final, Self

from gateway.errors import OverCapacity

FIRST_BYTES: Final = 16 * 1024  # what a body of unknown length takes at first


class BodyHold:
    """What one body holds of the budget, from entering on until it is left."""

    def __init__(self, budget: "BodyBudget", account_id: str, first_bytes: int, max_body_bytes: int) -> None:
        self._budget = budget
        self._account_id = account_id
        self._first_bytes = first_bytes
        self._max_body_bytes = max_body_bytes
        self.held_bytes = 0

    def __enter__(self) -> Self:
        self.cover(self._first_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give_back(self._account_id, self.held_bytes)

    def cover(self, num_bytes: int) -> None:
        """Call with the number of bytes that have come so far. Raises OverCapacity."""
        if num_bytes > self.held_bytes:
            more = max(num_bytes, min(2 * self.held_bytes, self._max_body_bytes)) - self.held_bytes
            self._budget.take(self._account_id, more, self.held_bytes)
            self.held_bytes += more


class BodyBudget:
    """`used_bytes` and `refused` may be read at any time. One event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.refused = 0
        self._held: dict[str, int] = {}

    def reserve(self, account_id: str, announced: str | None, max_body_bytes: int) -> BodyHold:
        """For the bytes of one body. `announced` is its Content-Length. Entering it raises OverCapacity.

        A body is let in when nothing else is held, or a budget below the limit of one body would let none in.
        """
        known = announced is not None and announced.isascii() and announced.isdigit() and len(announced) < 19
        first_bytes = min(int(announced) if known and announced else FIRST_BYTES, max_body_bytes)
        return BodyHold(self, account_id, first_bytes, max_body_bytes)

    def take(self, account_id: str, num_bytes: int, own_bytes: int = 0) -> None:
        """`num_bytes` more for a body that holds `own_bytes`. Raises OverCapacity when it is not the only one and the
        account would have more than it leaves free."""
        held = self._held.get(account_id, 0)
        if self.used_bytes > own_bytes and held + num_bytes > self.max_bytes - self.used_bytes:
            self.refused += 1
            raise OverCapacity("too much is being sent at the moment; try again", retry_after_s=1)
        self._held[account_id] = held + num_bytes
        self.used_bytes += num_bytes

    def give_back(self, account_id: str, num_bytes: int) -> None:
        """What `take` took."""
        self.used_bytes -= num_bytes
        left = self._held.get(account_id, 0) - num_bytes
        if left > 0:
            self._held[account_id] = left
        else:
            self._held.pop(account_id, None)
