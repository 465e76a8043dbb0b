"""The memory tier: whole packed files in host memory, within a byte budget.

Room is taken before the bytes arrive, so the budget holds at every moment. Whoever finds no room waits in arrival
order until users let go of theirs; a large file is not overtaken by small ones. Downloads take room ahead of their
bytes only up to a share, so that a slow store does not push out what is hot. One event loop, no locks.
"""

import asyncio
from collections import deque
from contextlib import suppress

from storage.ledger import GIANTS_SHARE, Ledger
from storage.policies import EvictionPolicy

AHEAD_SHARE = 0.5


class MemoryTier:
    """`reserve` then `land` (or `cancel`); `pin` and `unpin` for every user after that."""

    def __init__(
        self, max_bytes: int, policy: EvictionPolicy | None = None, giants_share: float = GIANTS_SHARE
    ) -> None:
        self.ledger = Ledger(max_bytes, policy, giants_share)
        self._ahead: dict[str, int] = {}
        self._data: dict[str, memoryview] = {}
        self._waiting: deque[tuple[asyncio.Future[None], str, int]] = deque()

    def __contains__(self, digest: str) -> bool:
        return digest in self._data

    async def reserve(self, digest: str, size_bytes: int) -> None:
        """Takes room for a file that fits the budget, waiting for it if need be. The caller then owns one pin."""
        if not self._waiting and self._take(digest, size_bytes):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (turn, digest, size_bytes)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.cancel(digest)
            else:
                with suppress(ValueError):  # `_wake` may have dropped it already
                    self._waiting.remove(place)
                self._wake()
            raise

    def reserve_ahead(self, digest: str, size_bytes: int) -> bool:
        """The same for bytes that are still to come; False, without waiting, when there is no room to spare."""
        if self._waiting or sum(self._ahead.values()) + size_bytes > self.ledger.max_bytes * AHEAD_SHARE:
            return False
        if not self._take(digest, size_bytes):
            return False
        self._ahead[digest] = size_bytes
        return True

    def land(self, digest: str, data: memoryview, pins: int) -> None:
        """The reserved file is here and has `pins` users, who take the place of the reservation."""
        self._ahead.pop(digest, None)
        self._data[digest] = data
        for _ in range(pins - 1):
            self.ledger.pin(digest)
        if not pins:
            self.unpin(digest)

    def cancel(self, digest: str) -> None:
        """Gives back room that was reserved and will not be used."""
        self._ahead.pop(digest, None)
        self.ledger.remove(digest)
        self._wake()

    def pin(self, digest: str, *, asked: bool = True) -> memoryview:
        """One more user of a file that is here; `asked`: who counts as a request for it."""
        self.ledger.pin(digest, asked=asked)
        return self._data[digest]

    def unpin(self, digest: str) -> None:
        """One user fewer."""
        if self.ledger.unpin(digest):
            del self._data[digest]
        self._wake()

    def doom(self, digest: str) -> None:
        """The file goes with its last user, or now if it has none."""
        if self.ledger.doom(digest):
            del self._data[digest]
            self._wake()

    def _take(self, digest: str, size_bytes: int) -> bool:
        evicted = self.ledger.add(digest, size_bytes)
        if evicted is None:
            return False
        for victim in evicted:
            del self._data[victim]
        return True

    def _wake(self) -> None:
        while self._waiting:
            turn, digest, size_bytes = self._waiting[0]
            if turn.done():  # cancelled; its owner will find itself gone
                self._waiting.popleft()
            elif self._take(digest, size_bytes):
                self._waiting.popleft()
                turn.set_result(None)
            else:
                return
