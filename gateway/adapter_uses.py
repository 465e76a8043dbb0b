"""Who uses which adapter just now: from the moment an answer begins to its last byte, counted per version and object.

A deletion closes a version first, in the same turn of the loop in which it looks whether anybody uses it: a request
that was resolved before and begins after is told that the adapter is gone, so nobody is served by halves. Whoever
removes objects waits here for their last user. How often and when a version was last used is kept until it is written
down.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cachetools import LRUCache

from gateway.errors import FinetuneNotFound
from gateway.messages import ResolvedAdapter
from gateway.names import printable

# Closed versions matter only to requests between two lines of the pipeline; this many cannot be there.
MAX_CLOSED: Final = 10_000

Place = tuple[str, int]  # finetune id, version


class AdapterUses:
    """Belongs to one event loop. `now` is the wall clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._places: Counter[Place] = Counter()
        self._objects: Counter[str] = Counter()
        self._closed: LRUCache[Place, None] = LRUCache(MAX_CLOSED)
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._unwritten: dict[Place, tuple[int, float]] = {}

    @contextmanager
    def hold(self, adapter: ResolvedAdapter, request_id: str) -> Iterator[None]:
        """The adapter is in use inside. Raises FinetuneNotFound when it was deleted since it was resolved."""
        place, key = (adapter.finetune_id, adapter.version), adapter.object_key
        if place in self._closed:
            raise FinetuneNotFound(
                f"AiError: AiError: Finetune {printable(adapter.name)} not found ({request_id})", param="lora"
            )
        self._places[place] += 1
        self._objects[key] += 1
        requests, _ = self._unwritten.get(place, (0, 0.0))
        self._unwritten[place] = (requests + 1, self._now())
        try:
            yield
        finally:
            self._places[place] -= 1
            self._objects[key] -= 1
            if not self._places[place]:
                del self._places[place]
            if not self._objects[key]:
                del self._objects[key]
                for waiter in self._waiting.pop(key, ()):
                    if not waiter.done():
                        waiter.set_result(None)

    def count(self, finetune_id: str, numbers: tuple[int, ...]) -> int:
        """Answers under way with one of these versions."""
        return sum(self._places[finetune_id, number] for number in numbers)

    def close(self, finetune_id: str, numbers: tuple[int, ...]) -> None:
        """Nobody begins with these versions any more."""
        for number in numbers:
            self._closed[finetune_id, number] = None

    def reopen(self, finetune_id: str, numbers: tuple[int, ...]) -> None:
        """The deletion did not happen."""
        for number in numbers:
            self._closed.pop((finetune_id, number), None)

    def uses_object(self, key: str) -> bool:
        """Whether an answer under way may still read this object."""
        return key in self._objects

    async def unused(self, key: str) -> None:
        """Waits until no answer may read the object."""
        while key in self._objects:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(key, []).append(waiter)
            try:
                await waiter
            finally:
                if waiter in (others := self._waiting.get(key, [])):
                    others.remove(waiter)

    def unwritten(self, finetune_id: str, number: int) -> tuple[int, float]:
        """(requests, time of the last) that are not written down yet; (0, 0.0) for none."""
        return self._unwritten.get((finetune_id, number), (0, 0.0))

    def take_unwritten(self) -> dict[Place, tuple[int, float]]:
        """What is to be written down; it counts as written."""
        taken, self._unwritten = self._unwritten, {}
        return taken

    def put_back(self, taken: dict[Place, tuple[int, float]]) -> None:
        """It could not be written down."""
        for place, (requests, at) in taken.items():
            later, later_at = self._unwritten.get(place, (0, 0.0))
            self._unwritten[place] = (requests + later, max(at, later_at))
