"""What the adapter tiers hand out: the legs of a way up, counters, and the hold on a file in memory."""

from types import TracebackType
from typing import Literal

import msgspec

from storage.memory_tier import MemoryTier

TierName = Literal["object", "disk", "memory"]


class Visit(msgspec.Struct, frozen=True):
    """One leg: the bytes are in `tier` now, and getting there took `seconds`.

    The first leg is the tier where they were found (for `object`: until its first bytes), the last is `memory`.
    """

    tier: TierName
    seconds: float
    size_bytes: int


class TierStats(msgspec.Struct, frozen=True):
    """Since the start, but for `entries` and `used_bytes`, which are now. For `object`, `used_bytes` is what came down.

    `failures` are bad files, failed downloads and removals; `refused` are files that the tier had no room for.
    """

    entries: int = 0
    used_bytes: int = 0
    max_bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
    refused: int = 0


class Fetched:
    """A packed file held in memory until `release`, or the end of a `with`. The bytes are shared: do not write."""

    def __init__(self, tier: MemoryTier, digest: str, data: memoryview, visits: tuple[Visit, ...]) -> None:
        self.digest = digest
        self.visits = visits
        self._tier = tier
        self._data: memoryview | None = data

    @property
    def data(self) -> memoryview:
        """The whole file. Raises ValueError after `release`."""
        if self._data is None:
            raise ValueError(f"adapter {self.digest} was released")
        return self._data

    def release(self) -> None:
        """Lets the bytes be evicted; views of them must not be used any more. May be called again."""
        if self._data is not None:
            self._data = None
            self._tier.unpin(self.digest)

    def __enter__(self) -> "Fetched":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
