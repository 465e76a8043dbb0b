"""Which idle entry of a full tier goes next: four policies behind one Protocol. Decisions only: no files, no clock.

    lru      idle longest
    lfu      asked for least often, with ageing: a newcomer begins at the value of the last one that went, so that what
             was popular long ago does not stay for ever
    gdsf     the same per byte (greedy dual size frequency): a large one must be asked for more often to stay
    s3-fifo  newcomers pass through a small queue (a tenth of the bytes) and stay only if asked for again; those that
             went are remembered for a while, and go straight to the main queue when they come back

The server's ledgers and the simulator (`simulation.py`) run these same classes.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, Protocol, get_args

PolicyName = Literal["lru", "lfu", "gdsf", "s3-fifo"]
POLICIES: Final[tuple[PolicyName, ...]] = get_args(PolicyName)
SMALL_SHARE: Final = 0.1
MAX_FREQUENCY: Final = 3
TO_MAIN: Final = 2  # so often a newcomer must be asked for again to stay


class EvictionPolicy(Protocol):
    """Told what happens to every key of one tier. A key is in use from `enter` or `use` until `idle`."""

    def enter(self, key: str, size_bytes: int) -> None:
        """`key`, of this size, is there from now on, and in use."""
        ...

    def use(self, key: str, *, asked: bool = True) -> None:
        """`key` is in use again; `asked`: because somebody asked for it once more."""
        ...

    def idle(self, key: str) -> None:
        """Nobody uses `key` any more."""
        ...

    def leave(self, key: str) -> None:
        """`key` is gone: it was named by `victim` just before, or removed by somebody's will."""
        ...

    def victim(self) -> str:
        """The idle key that should go next; it stays until `leave`. Raises LookupError when all are in use."""
        ...


def make_policy(name: PolicyName, max_bytes: int) -> EvictionPolicy:
    """A policy for a tier of this budget."""
    match name:
        case "lru":
            return Lru()
        case "lfu":
            return Aged(lambda uses, size_bytes: float(uses))
        case "gdsf":
            return Aged(lambda uses, size_bytes: uses / size_bytes)
        case "s3-fifo":
            return S3Fifo(max_bytes)


class Lru:
    """The key that has been idle longest goes first."""

    def __init__(self) -> None:
        self._idle: OrderedDict[str, None] = OrderedDict()

    def enter(self, key: str, size_bytes: int) -> None:
        """See `EvictionPolicy.enter`."""

    def use(self, key: str, *, asked: bool = True) -> None:
        """See `EvictionPolicy.use`."""
        self._idle.pop(key, None)

    def idle(self, key: str) -> None:
        """See `EvictionPolicy.idle`."""
        self._idle[key] = None

    def leave(self, key: str) -> None:
        """See `EvictionPolicy.leave`."""
        self._idle.pop(key, None)

    def victim(self) -> str:
        """See `EvictionPolicy.victim`."""
        try:
            return next(iter(self._idle))
        except StopIteration:
            raise LookupError("every entry is in use") from None


class _Key:
    __slots__ = ("name", "placed", "priority", "size_bytes", "ticket", "uses")

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name, self.size_bytes, self.uses, self.priority = name, size_bytes, 0, 0.0
        self.ticket = 0  # grows whenever it becomes idle; 0 while it is in use, and when it has gone
        self.placed = False  # it stands in the heap


class Aged:
    """Priority = age when it was last asked for + worth(uses, bytes); the age is the priority of the last that went.

    Keys stand in a heap, each once, where they were when they came to it. Priorities only grow, so whoever is at the
    top and has been used since is put back where it belongs; whoever is there with its present ticket is the least.
    """

    def __init__(self, worth: Callable[[int, int], float]) -> None:
        self._worth = worth
        self._age = 0.0
        self._keys: dict[str, _Key] = {}
        self._heap: list[tuple[float, int, _Key]] = []
        self._tickets = itertools.count(1)

    def enter(self, key: str, size_bytes: int) -> None:
        """See `EvictionPolicy.enter`."""
        self._keys[key] = entered = _Key(key, size_bytes)
        self._ask(entered)

    def use(self, key: str, *, asked: bool = True) -> None:
        """See `EvictionPolicy.use`."""
        used = self._keys[key]
        used.ticket = 0
        if asked:
            self._ask(used)

    def idle(self, key: str) -> None:
        """See `EvictionPolicy.idle`."""
        left = self._keys[key]
        left.ticket = next(self._tickets)
        if not left.placed:
            left.placed = True
            heapq.heappush(self._heap, (left.priority, left.ticket, left))
            if len(self._heap) > 64 + 2 * len(self._keys):
                self._tidy()

    def leave(self, key: str) -> None:
        """See `EvictionPolicy.leave`."""
        self._keys.pop(key).ticket = 0

    def victim(self) -> str:
        """See `EvictionPolicy.victim`."""
        while self._heap:
            priority, ticket, key = self._heap[0]
            if key.ticket == ticket:
                self._age = max(self._age, priority)
                return key.name
            if key.ticket:
                heapq.heapreplace(self._heap, (key.priority, key.ticket, key))
            else:
                heapq.heappop(self._heap)
                key.placed = False
        raise LookupError("every entry is in use")

    def _ask(self, key: _Key) -> None:
        key.uses += 1
        key.priority = self._age + self._worth(key.uses, key.size_bytes)

    def _tidy(self) -> None:
        """Those in use and those that have gone leave the heap."""
        for _, _, key in self._heap:
            key.placed = bool(key.ticket)
        self._heap = [(key.priority, key.ticket, key) for _, _, key in self._heap if key.ticket]
        heapq.heapify(self._heap)


class S3Fifo:
    """Two queues in order of arrival and a memory of those that went from the small one.

    A key in use at the head of its queue counts as asked for: it goes round once more.
    """

    def __init__(self, max_bytes: int) -> None:
        self._small_bytes_wanted = max_bytes * SMALL_SHARE
        self._ghost_bytes_wanted = max_bytes - self._small_bytes_wanted
        self._small: OrderedDict[str, int] = OrderedDict()
        self._main: OrderedDict[str, int] = OrderedDict()
        self._ghost: OrderedDict[str, int] = OrderedDict()
        self._small_bytes = self._ghost_bytes = 0
        self._frequency: dict[str, int] = {}
        self._in_use: set[str] = set()
        self._named: str | None = None

    def enter(self, key: str, size_bytes: int) -> None:
        """See `EvictionPolicy.enter`."""
        self._frequency[key] = 0
        self._in_use.add(key)
        if key in self._ghost:
            self._ghost_bytes -= self._ghost.pop(key)
            self._main[key] = size_bytes
        else:
            self._small[key] = size_bytes
            self._small_bytes += size_bytes

    def use(self, key: str, *, asked: bool = True) -> None:
        """See `EvictionPolicy.use`."""
        self._in_use.add(key)
        if asked:
            self._frequency[key] = min(MAX_FREQUENCY, self._frequency[key] + 1)

    def idle(self, key: str) -> None:
        """See `EvictionPolicy.idle`."""
        self._in_use.discard(key)

    def leave(self, key: str) -> None:
        """See `EvictionPolicy.leave`."""
        self._in_use.discard(key)
        del self._frequency[key]
        if key in self._main:
            del self._main[key]
        else:
            size_bytes = self._small.pop(key)
            self._small_bytes -= size_bytes
            if key == self._named:
                self._remember(key, size_bytes)
        self._named = None

    def victim(self) -> str:
        """See `EvictionPolicy.victim`."""
        if len(self._in_use) == len(self._frequency):
            raise LookupError("every entry is in use")
        while True:
            from_small = self._small and (self._small_bytes >= self._small_bytes_wanted or not self._main)
            key = self._from_small() if from_small else self._from_main()
            if key is not None:
                self._named = key
                return key

    def _from_small(self) -> str | None:
        """The head, if it was not asked for again; else it moves on and there is none yet."""
        key, size_bytes = next(iter(self._small.items()))
        if key not in self._in_use and self._frequency[key] < TO_MAIN:
            return key
        del self._small[key]
        self._small_bytes -= size_bytes
        self._main[key] = size_bytes
        self._frequency[key] = 0
        return None

    def _from_main(self) -> str | None:
        """The head, if nobody asked for it since it was there last; else it goes round."""
        key = next(iter(self._main))
        if key in self._in_use:
            self._main.move_to_end(key)
            # With everything else in use or asked for, the small queue's turn would never come.
            return self._first_idle() if all(each in self._in_use for each in self._main) else None
        if self._frequency[key] == 0:
            return key
        self._frequency[key] -= 1
        self._main.move_to_end(key)
        return None

    def _first_idle(self) -> str | None:
        return next((key for key in self._small if key not in self._in_use), None)

    def _remember(self, key: str, size_bytes: int) -> None:
        self._ghost[key] = size_bytes
        self._ghost_bytes += size_bytes
        while self._ghost_bytes > self._ghost_bytes_wanted and self._ghost:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]
