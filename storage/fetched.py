"""The hold on a file in memory."""

from types import TracebackType

from storage.memory_tier import MemoryTier
from storage.tier_records import Visit


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
