"""What the adapter tiers tell: the legs of a way up, counters and load times. Records only."""

from bisect import bisect_left
from typing import Final, Literal

from storage.records import Struct

TierName = Literal["object", "disk", "memory"]

# Why a file is fetched. request: somebody needs it. soon: for a request that is about to come, which counts as what it
# would have found. wish: to be there when somebody needs it; it counts as nobody's request.
Purpose = Literal["request", "soon", "wish"]

# Seconds; the last count of a histogram is of all that took longer.
BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Visit(Struct, frozen=True):
    """One leg: the bytes are in `tier` now, and getting there took `seconds`.

    The first leg is the tier where they were found (for `object`: until its first bytes), the last is `memory`. What
    comes down goes to disk and memory at once: `disk` is the time that it took to come, `memory` what was left then.
    """

    tier: TierName
    seconds: float
    size_bytes: int


class LoadTimes(Struct, frozen=True):
    """A histogram over `BOUNDS_S`, and sums."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    count: int = 0
    seconds: float = 0.0
    size_bytes: int = 0


class Histogram:
    """Collects `LoadTimes`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._seconds = 0.0
        self._bytes = 0

    def add(self, seconds: float, size_bytes: int) -> None:
        """One more load."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._seconds += seconds
        self._bytes += size_bytes

    def snapshot(self) -> LoadTimes:
        """So far."""
        return LoadTimes(tuple(self._counts), sum(self._counts), self._seconds, self._bytes)


class TierStats(Struct, frozen=True):
    """Since the start, but for `entries` and `used_bytes`, which are now. For `object`, `used_bytes` is what came down.

    hits: what was there, or on its way already for another request. failures: bad files, failed downloads and
    removals. refused: files that the tier had no room for, or would not make room for. quarantined: files put aside
    because they were not what their name says. retries: of parts of downloads.
    negative_hits: answers "not there" or "damaged" given without asking again. loads: times from asking to having, of
    what came from this tier.
    """

    entries: int = 0
    used_bytes: int = 0
    max_bytes: int = 0
    pinned_bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
    refused: int = 0
    quarantined: int = 0
    retries: int = 0
    negative_hits: int = 0
    loads: LoadTimes = LoadTimes()


class Resident(Struct, frozen=True):
    """One adapter in the tiers. `uses`: how often it was asked for since it came to memory."""

    digest: str
    size_bytes: int
    in_memory: bool
    on_disk: bool
    kept: bool
    uses: int
