"""Who takes how many bytes of a budget, who is in use, and who goes first. Decisions only: no files, no clock.

    absent --add--> pinned <--pin / unpin--> idle --evicted or removed--> absent

Pinned entries are never evicted; `used_bytes` never exceeds `max_bytes`. Among idle entries a policy decides
(`policies.py`), with one exception: entries above `GIANT_PART` of the budget are giants, and giants that together take
more than their share go before anybody else, so that one giant does not flush a hundred small ones. What is free they
may take; a tier that can do without an entry (`must` false) does not let a giant push small ones out beyond the share.
A share of 1 treats them like everybody.
"""

from collections import OrderedDict
from typing import Final

from storage.policies import EvictionPolicy, Lru

GIANT_PART: Final = 1 / 16
GIANTS_SHARE: Final = 0.25


class _Entry:
    __slots__ = ("doomed", "giant", "pins", "size_bytes", "uses")

    def __init__(self, size_bytes: int, giant: bool) -> None:
        self.size_bytes, self.giant = size_bytes, giant
        self.pins = self.uses = 1
        self.doomed = False


class Ledger:
    """One tier's entries. Keys that a method speaks of must be there (`in`), except where it says otherwise."""

    def __init__(
        self, max_bytes: int, policy: EvictionPolicy | None = None, giants_share: float = GIANTS_SHARE
    ) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.pinned_bytes = 0
        self.evictions = 0
        self._giant_bytes = max_bytes * GIANT_PART
        self._giants_quota = max_bytes * giants_share if giants_share < 1 else float("inf")
        self._policy = policy or Lru()
        self._entries: dict[str, _Entry] = {}
        self._giants_used = 0
        self._idle_giants: OrderedDict[str, int] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> tuple[str, ...]:
        """All entries, the oldest first."""
        return tuple(self._entries)

    def size(self, key: str) -> int:
        """The entry's bytes."""
        return self._entries[key].size_bytes

    def pins(self, key: str) -> int:
        """How many users the entry has; 0 for a key that is not there."""
        entry = self._entries.get(key)
        return entry.pins if entry else 0

    def uses(self, key: str) -> int:
        """How often the entry was asked for since it came; 0 for a key that is not there."""
        entry = self._entries.get(key)
        return entry.uses if entry else 0

    def fits(self, size_bytes: int) -> bool:
        """Whether `add` would find room now, if need be by evicting everybody who is idle."""
        return self.pinned_bytes + size_bytes <= self.max_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether `add` would evict nobody."""
        return self.used_bytes + size_bytes <= self.max_bytes

    def add(self, key: str, size_bytes: int, *, must: bool = True) -> list[str] | None:
        """A new entry with one pin. Returns the keys evicted for it; None, changing nothing, when it does not fit or,
        with `must` false, when it is a giant that small ones would have to make room for.
        """
        assert key not in self._entries
        giant = size_bytes > self._giant_bytes
        if not self.fits(size_bytes) or (giant and not must and self._would_flush(size_bytes)):
            return None
        if giant:
            self._giants_used += size_bytes
        evicted = []
        while self.used_bytes + size_bytes > self.max_bytes:
            evicted.append(self._victim())
            self.evictions += 1
            self.remove(evicted[-1])
        self._entries[key] = _Entry(size_bytes, giant)
        self._policy.enter(key, size_bytes)
        self.used_bytes += size_bytes
        self.pinned_bytes += size_bytes
        return evicted

    def shed(self, key: str) -> list[str]:
        """Evicts idle entries that together have the bytes of `key`, or all there are, for a tier that is full before
        its budget is. Nobody for a giant, unless giants are like everybody.
        """
        entry, evicted = self._entries[key], []
        wanted = 0 if entry.giant and self._giants_quota <= self.max_bytes else entry.size_bytes
        while wanted > 0 and self.pinned_bytes < self.used_bytes:
            evicted.append(self._victim())
            wanted -= self.size(evicted[-1])
            self.evictions += 1
            self.remove(evicted[-1])
        return evicted

    def pin(self, key: str, *, asked: bool = True) -> None:
        """One more user; `asked`: who counts as a request for the entry."""
        entry = self._entries[key]
        if not entry.pins:
            self.pinned_bytes += entry.size_bytes
            self._idle_giants.pop(key, None)
        entry.pins += 1
        entry.uses += asked
        self._policy.use(key, asked=asked)

    def unpin(self, key: str) -> bool:
        """One user fewer. True when that removed the entry, because it was doomed."""
        entry = self._entries[key]
        assert entry.pins > 0
        if entry.pins == 1 and entry.doomed:
            self.remove(key)
            return True
        entry.pins -= 1
        if not entry.pins:
            self.pinned_bytes -= entry.size_bytes
            self._policy.idle(key)
            if entry.giant:
                self._idle_giants[key] = entry.size_bytes
        return False

    def touch(self, key: str) -> bool:
        """Asked for and let go in one moment, by an entry that nobody else uses: `pin` and `unpin` in one. False when
        there is none.
        """
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.uses += 1
        self._policy.use(key)
        self._policy.idle(key)
        if self._idle_giants and key in self._idle_giants:
            self._idle_giants.move_to_end(key)
        return True

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
        if entry.giant:
            self._giants_used -= entry.size_bytes
            self._idle_giants.pop(key, None)
        self._policy.leave(key)

    def _would_flush(self, size_bytes: int) -> bool:
        """Whether small ones would have to go for a giant, beyond the giants' share."""
        lacking = self.used_bytes + size_bytes - self.max_bytes
        return lacking > sum(self._idle_giants.values()) and self._giants_used + size_bytes > self._giants_quota

    def _victim(self) -> str:
        if self._giants_used > self._giants_quota and self._idle_giants:
            return next(iter(self._idle_giants))
        return self._policy.victim()
