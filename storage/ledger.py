"""Who takes how many bytes of a budget, who is in use, and who goes first. Decisions only: no files, no clock.

    absent --add--> pinned <--pin / unpin--> idle --evicted or removed--> absent

Pinned entries are never evicted; `used_bytes` never exceeds `max_bytes`. The order of eviction is a policy with three
methods (`Lru` here): it is told which keys are idle and names the next victim.
"""

from collections import OrderedDict


class Lru:
    """The key that has been idle longest goes first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str, size_bytes: int) -> None:
        """`key`, of this size, is idle from now on."""
        self._keys[key] = None

    def remove(self, key: str) -> None:
        """`key` is no longer idle."""
        del self._keys[key]

    def victim(self) -> str:
        """The idle key that should go next; it stays until `remove`."""
        return next(iter(self._keys))


class _Entry:
    __slots__ = ("doomed", "pins", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.pins = 1
        self.doomed = False


class Ledger:
    """One tier's entries. Keys that a method speaks of must be there (`in`), except where it says otherwise."""

    def __init__(self, max_bytes: int, policy: Lru | None = None) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.pinned_bytes = 0
        self.evictions = 0
        self._policy = policy or Lru()
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def size(self, key: str) -> int:
        """The entry's bytes."""
        return self._entries[key].size_bytes

    def pins(self, key: str) -> int:
        """How many users the entry has; 0 for a key that is not there."""
        entry = self._entries.get(key)
        return entry.pins if entry else 0

    def fits(self, size_bytes: int) -> bool:
        """Whether `add` would find room now."""
        return self.pinned_bytes + size_bytes <= self.max_bytes

    def add(self, key: str, size_bytes: int) -> list[str] | None:
        """A new entry with one pin. Returns the keys evicted for it; None, changing nothing, when it does not fit."""
        assert key not in self._entries
        if not self.fits(size_bytes):
            return None
        evicted = []
        while self.used_bytes + size_bytes > self.max_bytes:
            evicted.append(self._policy.victim())
            self.evictions += 1
            self.remove(evicted[-1])
        self._entries[key] = _Entry(size_bytes)
        self.used_bytes += size_bytes
        self.pinned_bytes += size_bytes
        return evicted

    def pin(self, key: str) -> None:
        """One more user."""
        entry = self._entries[key]
        if not entry.pins:
            self._policy.remove(key)
            self.pinned_bytes += entry.size_bytes
        entry.pins += 1

    def unpin(self, key: str) -> bool:
        """One user fewer. True when that removed the entry, because it was doomed."""
        entry = self._entries[key]
        assert entry.pins > 0
        if entry.pins == 1 and entry.doomed:
            self.remove(key)
            return True
        entry.pins -= 1
        if not entry.pins:
            self._policy.add(key, entry.size_bytes)
            self.pinned_bytes -= entry.size_bytes
        return False

    def doom(self, key: str) -> bool:
        """Removes the entry with its last pin. True when that is now; a key that is not there is False."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        if entry.pins:
            entry.doomed = True
            return False
        self.remove(key)
        return True

    def remove(self, key: str) -> None:
        """Forgets the entry at once, pinned or not."""
        entry = self._entries.pop(key)
        self.used_bytes -= entry.size_bytes
        if entry.pins:
            self.pinned_bytes -= entry.size_bytes
        else:
            self._policy.remove(key)
