"""An object's bytes on their way down: several ranges at once, retried where it broke, within a budget of retries.

Large objects come in parts, a few of them at a time, and are handed on in order; small ones in one stream. A part that
breaks off goes on from the byte that it had reached, after a pause that grows and is drawn at random, so that many
runtimes do not come back in step. Retries of everybody together are bounded by a share of the downloads: when a
store is down, asking it more often helps nobody. Whether the bytes are the right ones is for the caller to check.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

from storage.errors import ObjectCorrupt, StorageUnavailable
from storage.objects.base import ObjectStore

PART_BYTES: Final = 4 * 1024 * 1024
MAX_PARTS_AT_ONCE: Final = 8  # of all downloads together: what bounds their memory
ATTEMPTS: Final = 5
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0
LEAST_BYTES_PER_S: Final = 128 * 1024
PATIENCE_S: Final = 60.0

Bytes = bytes | bytearray


class RetryBudget:
    """Each download earns a part of a retry; a few are there from the beginning. State: what is left."""

    def __init__(self, earned_per_download: float = 0.2, at_first: float = 10.0) -> None:
        self._earned, self._most = earned_per_download, at_first
        self._left = at_first
        self.spent = 0
        self.refused = 0

    def earn(self) -> None:
        """A download begins."""
        self._left = min(self._most, self._left + self._earned)

    def spend(self) -> bool:
        """Whether there may be one more retry."""
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        self.spent += 1
        return True


class Downloads:
    """Every download of one process. `parallel` 1: no ranges, for a store that is a folder."""

    def __init__(
        self,
        objects: ObjectStore,
        *,
        parallel: int = 4,
        part_bytes: int = PART_BYTES,
        budget: RetryBudget | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._objects, self._parallel, self._part_bytes = objects, parallel, part_bytes
        self._sleep, self._draw = sleep, draw
        self.budget = budget or RetryBudget()
        self._parts = asyncio.Semaphore(MAX_PARTS_AT_ONCE)

    async def chunks(self, key: str, size_bytes: int) -> AsyncGenerator[Bytes, None]:
        """The object's bytes in order, exactly `size_bytes` of them.

        Raises ObjectMissing, StorageUnavailable (also when it comes too slowly), ObjectCorrupt when it has another
        length.
        """
        self.budget.earn()
        deadline = asyncio.get_running_loop().time() + PATIENCE_S + size_bytes / LEAST_BYTES_PER_S
        in_parts = self._parallel > 1 and size_bytes > self._part_bytes
        source = self._in_parts(key, size_bytes) if in_parts else self._range(key, 0, size_bytes, last=True)
        async with aclosing(source) as chunks:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise StorageUnavailable(f"object {key}: {size_bytes} bytes did not come in time") from error
                yield chunk

    async def _in_parts(self, key: str, size_bytes: int) -> AsyncGenerator[Bytes, None]:
        starts = deque(range(0, size_bytes, self._part_bytes))
        coming: deque[asyncio.Task[bytearray]] = deque()
        try:
            while starts or coming:
                while starts and len(coming) < self._parallel:
                    if coming and self._parts.locked():
                        break  # the first part of every download gets a place; more only where there are some
                    await self._parts.acquire()
                    start = starts.popleft()
                    length = min(self._part_bytes, size_bytes - start)
                    coming.append(asyncio.create_task(self._part(key, start, length), name=f"part of {key}"))
                part = await coming[0]
                coming.popleft()
                self._parts.release()
                yield part
        finally:
            for task in coming:
                task.cancel()
            if coming:
                await asyncio.wait(coming)
            for task in coming:
                self._parts.release()
                if not task.cancelled():
                    task.exception()  # the first failure was told; the others are the same

    async def _part(self, key: str, start: int, length: int) -> bytearray:
        part = bytearray()
        async with aclosing(self._range(key, start, length, last=False)) as chunks:
            async for chunk in chunks:
                part += chunk
        return part

    async def _range(self, key: str, start: int, length: int, *, last: bool) -> AsyncGenerator[Bytes, None]:
        """`length` bytes from `start`, taken up again where they broke off. `last`: nothing may come after them."""
        came, failures = 0, 0
        while True:
            wanted = None if last else length - came
            try:
                async with aclosing(self._objects.get(key, start=start + came, length=wanted)) as chunks:
                    async for chunk in chunks:
                        came += len(chunk)
                        if came > length:
                            raise ObjectCorrupt(f"object {key} is longer than {start + length} bytes")
                        yield chunk
            except StorageUnavailable:
                failures += 1
                if failures >= ATTEMPTS or not self.budget.spend():
                    raise
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
                await self._sleep(pause * (0.5 + 0.5 * self._draw()))
                continue
            if came < length:
                raise ObjectCorrupt(f"object {key} has {start + came} bytes, not {start + length}")
            return
