"""The device pool of rank rows: who owns which rows. No torch: the rows themselves live in the runner.

    rows  0        8            24   32                                  num_rows
          | slot 0 | slot 1     | -- | slot 2 ...

An adapter owns one contiguous range of rows, the same in every layer and projection, so mixed ranks waste only the
rounding to `granule`. A slot is that range plus a small number for batches to name it, and counts the running
sequences that use it. Fragmentation cannot block an adapter that fits the pool: `window` finds the range whose present
owners are cheapest to lose, gaps included. What an owner costs is the caller's decision (`residency.py`).
"""

import bisect
import heapq
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Slot:
    """Rows offset .. offset + rows - 1. `last_used` orders slots by their latest acquire or release."""

    number: int
    digest: str
    offset: int
    rows: int
    references: int = 0
    last_used: int = 0

    @property
    def end(self) -> int:
        """The first row after the range."""
        return self.offset + self.rows


@dataclass(frozen=True, slots=True)
class Window:
    """A range that would fit, and the slots that lie in it now."""

    offset: int
    rows: int
    owners: tuple[Slot, ...]

    def overlaps(self, offset: int, rows: int) -> bool:
        """True when the two ranges share a row."""
        return offset < self.offset + self.rows and self.offset < offset + rows


class SlotPool:
    """Ranges of a pool of `num_rows` rank rows; slot numbers are below `max_slots`. The engine thread owns it."""

    def __init__(self, num_rows: int, granule: int = 8) -> None:
        if num_rows < 1 or granule < 1:
            raise ValueError(f"a pool of {num_rows} rows in granules of {granule}")
        self.num_rows = num_rows
        self._granule = min(granule, num_rows)
        self._by_offset: list[Slot] = []
        self._by_digest: dict[str, Slot] = {}
        self.max_slots = -(-num_rows // self._granule)
        self._numbers = list(range(self.max_slots))
        self._uses = 0

    def __len__(self) -> int:
        return len(self._by_offset)

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    @property
    def rows_used(self) -> int:
        """Rows that have an owner."""
        return sum(slot.rows for slot in self._by_offset)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots in the order of their rows."""
        return tuple(self._by_offset)

    def rows_for(self, rank: int) -> int | None:
        """Rows that an adapter of this rank takes; None when the whole pool is too small."""
        if rank > self.num_rows:
            return None
        return min(-(-rank // self._granule) * self._granule, self.num_rows)

    def window(self, rows: int, cost: Callable[[Slot], float | None], reserved: Window | None = None) -> Window | None:
        """The cheapest range of `rows` rows; an owner's cost is None when it must stay.

        A range costs what its dearest owner costs, a free one least; among equals the lowest offset wins. Ranges that
        touch `reserved` are left out. None when there is no such range.
        """
        # A range may be shifted down to the end of the owner before it without meeting a new owner, so these starts
        # are enough.
        starts = {0, *(slot.end for slot in self._by_offset)}
        if reserved is not None:
            starts.add(reserved.offset + reserved.rows)
        best: Window | None = None
        best_cost = 0.0
        for start in sorted(starts):
            if start + rows > self.num_rows:
                break
            if reserved is not None and reserved.overlaps(start, rows):
                continue
            owners = self._owners(start, start + rows)
            prices = [price for price in map(cost, owners) if price is not None]
            if len(prices) < len(owners):
                continue
            dearest = max(prices, default=-1.0)
            if best is None or dearest < best_cost:
                best, best_cost = Window(start, rows, owners), dearest
        return best

    def take(self, digest: str, window: Window) -> Slot:
        """Gives the window's rows, all free by now, to an adapter. Raises ValueError when they are not."""
        if digest in self._by_digest or self._owners(window.offset, window.offset + window.rows):
            raise ValueError(f"rows {window.offset} .. {window.offset + window.rows - 1} cannot go to {digest}")
        self._uses += 1
        slot = Slot(heapq.heappop(self._numbers), digest, window.offset, window.rows, last_used=self._uses)
        bisect.insort(self._by_offset, slot, key=lambda item: item.offset)
        self._by_digest[digest] = slot
        return slot

    def give_back(self, slot: Slot) -> None:
        """Frees the rows. Raises ValueError while a sequence uses the slot, or when it is not in the pool."""
        if slot.references or self._by_digest.get(slot.digest) is not slot:
            raise ValueError(f"slot {slot.number} has {slot.references} references, or is free already")
        del self._by_digest[slot.digest]
        self._by_offset.remove(slot)
        heapq.heappush(self._numbers, slot.number)

    def acquire(self, slot: Slot) -> None:
        """One more running sequence uses the slot."""
        self._uses += 1
        slot.last_used = self._uses
        slot.references += 1

    def release(self, slot: Slot) -> None:
        """One running sequence less. Raises ValueError when there was none."""
        if slot.references == 0:
            raise ValueError(f"slot {slot.number} is not in use")
        self._uses += 1
        slot.last_used = self._uses
        slot.references -= 1

    def _owners(self, start: int, end: int) -> tuple[Slot, ...]:
        """The slots that have a row in start .. end - 1."""
        first = bisect.bisect_right(self._by_offset, start, key=lambda slot: slot.end)
        last = bisect.bisect_left(self._by_offset, end, key=lambda slot: slot.offset)
        return tuple(self._by_offset[first:last])
