"""An object store in memory whose reads the test lets through, fails or counts. For schedules, not for storing."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable
from hashlib import sha256

from storage.errors import ObjectMissing
from storage.objects.base import check_key


class GatedObjects:
    """`ObjectStore`. Reads of a key in `held` stop before their last chunk until `let(key)`."""

    def __init__(self, chunk_bytes: int = 64) -> None:
        self.data: dict[str, bytes] = {}
        self.failures: dict[str, Exception] = {}  # raised in the middle of a read
        self.spoilt_reads: Counter[str] = Counter()  # so many reads of a key give a wrong last byte
        self.held: set[str] = set()
        self.reads: Counter[str] = Counter()
        self.open_reads: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.waiting: dict[str, asyncio.Event] = {}  # set while a read stands before its gate
        self._gates: dict[str, asyncio.Event] = {}
        self._chunk_bytes = chunk_bytes

    def add(self, data: bytes) -> tuple[str, str, int]:
        """Stores `data` and returns what `Tiers.fetch` wants: digest, key, size."""
        digest = sha256(data).hexdigest()
        self.data[f"packed/{digest}"] = data
        return digest, f"packed/{digest}", len(data)

    def hold(self, key: str) -> asyncio.Event:
        """From now on reads of `key` wait; the event is set when one does."""
        if key not in self.held:
            self.held.add(key)
            self._gates[key] = asyncio.Event()
            self.waiting[key] = asyncio.Event()
        return self.waiting[key]

    def let(self, key: str) -> None:
        """Lets reads of `key` go on."""
        self.held.discard(key)
        self._gates[key].set()

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        self.data[check_key(key)] = b"".join([chunk async for chunk in data])
        return len(self.data[key])

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self.reads[check_key(key)] += 1
        self.open_reads[key] += 1
        self.most_at_once[key] = max(self.most_at_once[key], self.open_reads[key])
        try:
            if key not in self.data:
                raise ObjectMissing(key)
            data = self.data[key][start:][:length]
            half = len(data) // 2
            for offset in range(0, half, self._chunk_bytes):
                yield data[offset : min(half, offset + self._chunk_bytes)]
            if key in self.held:
                self.waiting[key].set()
                await self._gates[key].wait()
            if key in self.failures:
                raise self.failures[key]
            if self.spoilt_reads[key] > 0:
                self.spoilt_reads[key] -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            yield data[half:]
        finally:
            self.open_reads[key] -= 1

    async def size(self, key: str) -> int:
        return len(self.data[key])

    async def delete(self, key: str) -> None:
        self.data.pop(key, None)

    async def aclose(self) -> None:
        pass
