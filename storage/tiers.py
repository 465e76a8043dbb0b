"""Packed adapters on their way up: object store -> local disk -> host memory. The device is the runtime's.

    absent > fetching > disk > reading > host          (`Tiers.state`)

One owner task per digest brings a file up; everyone who asks meanwhile waits for that task. A waiter who leaves stops
the task only if nobody else waits. A failure reaches all its waiters and is forgotten: the next fetch tries anew.
Every byte that reaches memory has been checked against the digest on that very way. The disk is a cache and may fail:
a bad file is fetched again once, and a disk that takes nothing is passed by (counted as `refused`).

Belongs to one event loop; `Fetched.release` too is called there.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

from storage.disk_tier import DiskTier, is_digest
from storage.errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge, StorageError, StorageUnavailable
from storage.memory_tier import MemoryTier
from storage.objects.base import ObjectStore, check_key
from storage.threads import Threads, finish
from storage.tier_records import Fetched, TierName, TierStats, Visit

__all__ = ["Fetched", "TierName", "TierStats", "Tiers", "Visit"]

MAX_LOADS: Final = 1024  # digests on their way up at once; more are refused
MAX_DOWNLOADS: Final = 8

State = Literal["absent", "fetching", "disk", "reading", "host"]


class _Load:
    """One file on its way up. `data` is set when it is in memory, with a pin for each of `waiters`."""

    def __init__(self, digest: str, object_key: str, size_bytes: int) -> None:
        self.digest = digest
        self.object_key = object_key
        self.size_bytes = size_bytes
        self.task: asyncio.Task[None]
        self.state: State = "absent"
        self.visits: list[Visit] = []
        self.waiters = 0
        self.data: memoryview | None = None
        self.abandoned = self.doomed = False
        self.first_bytes_at = 0.0


class Tiers:
    """`open`, then `fetch` and `forget` from any task, then `aclose`."""

    def __init__(
        self,
        objects: ObjectStore,
        directory: Path,
        *,
        memory_bytes: int,
        disk_bytes: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._objects = objects
        self._memory = MemoryTier(memory_bytes)
        self._disk = DiskTier(directory, disk_bytes)
        self._clock = clock
        self._threads = Threads(2, "adapter-bytes")
        self._downloads = asyncio.Semaphore(MAX_DOWNLOADS)
        self._loads: dict[str, _Load] = {}
        self._closed = False
        self._counts: Counter[str] = Counter()

    async def open(self) -> None:
        """Finds what an earlier run left on disk. Raises StorageUnavailable, StorageFull."""
        await self._disk.open()

    async def fetch(self, digest: str, object_key: str, size_bytes: int) -> Fetched:
        """The packed file with this digest, in memory and pinned until released.

        Raises ObjectTooLarge when it can never fit in memory, ObjectMissing, ObjectCorrupt, StorageUnavailable;
        ValueError for a digest, key or size that is none.
        """
        if not is_digest(digest) or size_bytes < 1:
            raise ValueError(f"not a packed file: digest {digest!r} of {size_bytes} bytes")
        check_key(object_key)
        if size_bytes > self._memory.ledger.max_bytes:
            raise ObjectTooLarge(
                f"adapter {digest} takes {size_bytes} bytes; the memory tier has {self._memory.ledger.max_bytes} "
                "(tiers.memory_bytes)"
            )
        missed = False
        while True:
            if self._closed:
                raise StorageUnavailable("the adapter tiers are closed")
            if digest in self._memory:
                self._counts["memory hits"] += 1
                data = self._memory.pin(digest)
                return Fetched(self._memory, digest, data, (Visit("memory", 0.0, len(data)),))
            if not missed:
                missed = True
                self._counts["memory misses"] += 1
            load = self._loads.get(digest)
            if load is None or load.task.done():
                load = self._start(digest, object_key, size_bytes)
            if not load.abandoned:
                return await self._join(load)
            await asyncio.wait((load.task,))  # it is stopping; then there is room for a new owner

    async def forget(self, digest: str) -> None:
        """Drops the file from memory and disk, each as soon as nobody uses it."""
        load = self._loads.get(digest)
        if load is not None:
            load.doomed = True
        self._memory.doom(digest)
        await self._disk.doom(digest)

    def resident(self, digest: str) -> Literal["memory", "disk"] | None:
        """The highest tier that holds the whole file now."""
        if digest in self._memory:
            return "memory"
        state = self.state(digest)
        return "disk" if state in ("disk", "reading") else None

    def state(self, digest: str) -> State:
        """Where the file is on its way up."""
        load = self._loads.get(digest)
        if digest in self._memory:
            return "host"
        if load is not None and load.state != "absent":
            return load.state
        return "disk" if digest in self._disk else "absent"

    def stats(self) -> dict[TierName, TierStats]:
        """Counters of each tier."""
        memory, disk, count = self._memory.ledger, self._disk.ledger, self._counts
        return {
            "memory": TierStats(
                entries=len(memory),
                used_bytes=memory.used_bytes,
                max_bytes=memory.max_bytes,
                hits=count["memory hits"],
                misses=count["memory misses"],
                evictions=memory.evictions,
            ),
            "disk": TierStats(
                entries=len(disk),
                used_bytes=disk.used_bytes,
                max_bytes=disk.max_bytes,
                hits=count["disk hits"],
                misses=count["disk misses"],
                evictions=disk.evictions,
                failures=count["disk failures"] + self._disk.failures,
                refused=self._disk.refused,
            ),
            "object": TierStats(
                used_bytes=count["object bytes"],
                hits=count["object hits"],
                misses=count["object misses"],
                failures=count["object failures"],
                refused=count["object refused"],
            ),
        }

    async def aclose(self) -> None:
        """Stops every load; their waiters get StorageUnavailable. Files on disk stay for the next start."""
        self._closed = True
        tasks = [load.task for load in self._loads.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await finish(asyncio.wait(tasks))
        await self._threads.aclose()
        await self._disk.aclose()

    def _start(self, digest: str, object_key: str, size_bytes: int) -> _Load:
        if len(self._loads) >= MAX_LOADS:
            self._counts["object refused"] += 1
            raise StorageUnavailable(f"{MAX_LOADS} adapters are on their way already")
        load = _Load(digest, object_key, size_bytes)
        load.task = asyncio.create_task(self._bring(load), name=f"load {digest[:12]}")  # owned by `_loads`
        self._loads[digest] = load
        load.task.add_done_callback(lambda task: self._ended(load, task))
        return load

    def _ended(self, load: _Load, task: asyncio.Task[None]) -> None:
        if self._loads.get(load.digest) is load:
            del self._loads[load.digest]
        if not task.cancelled():
            task.exception()  # seen, also when every waiter has gone

    async def _join(self, load: _Load) -> Fetched:
        load.waiters += 1
        try:
            await asyncio.wait((load.task,))
        except asyncio.CancelledError:
            load.waiters -= 1
            if load.data is not None:
                self._memory.unpin(load.digest)
            elif not load.waiters:
                load.abandoned = True
                load.task.cancel()
            raise
        if load.data is not None:
            return Fetched(self._memory, load.digest, load.data, tuple(load.visits))
        if load.task.cancelled():
            raise StorageUnavailable(f"adapter {load.digest} was not loaded: the tiers were closed")
        error = load.task.exception()
        assert error is not None
        if isinstance(error, StorageError):
            raise type(error)(*error.args) from error  # its own for each waiter: tracebacks grow as they are raised
        raise error

    async def _bring(self, load: _Load) -> None:
        """The owner task: up to memory, pinned once for each waiter; or raises what all waiters get."""
        for _ in range(2):
            if self._disk.pin(load.digest):
                self._counts["disk hits"] += 1
                load.visits = [Visit("disk", 0.0, load.size_bytes)]
            else:
                self._counts["disk misses"] += 1
                if not await self._download(load):
                    return await self._bypass(load)
            if await self._read(load):
                return None
            self._counts["disk failures"] += 1
        raise ObjectCorrupt(f"adapter {load.digest} came back wrong from the disk twice")

    async def _download(self, load: _Load) -> bool:
        load.state, began = "fetching", self._clock()
        async with self._downloads, aclosing(self._chunks(load)) as chunks:
            kept = await self._disk.write(load.digest, load.size_bytes, chunks)
        if kept:
            first, ended = load.first_bytes_at, self._clock()
            load.visits = [
                Visit("object", first - began, load.size_bytes),
                Visit("disk", ended - first, load.size_bytes),
            ]
        return kept

    async def _read(self, load: _Load) -> bool:
        """From a pinned file on disk to memory. False when the file was bad; it is gone then."""
        dropped, reserved = False, False
        try:
            load.state = "disk"
            await self._memory.reserve(load.digest, load.size_bytes)
            reserved = True
            load.state, began = "reading", self._clock()
            try:
                data = await self._disk.read(load.digest)
            except (ObjectCorrupt, StorageUnavailable):
                dropped = True
                await self._disk.drop(load.digest)
                return False
            load.visits.append(Visit("memory", self._clock() - began, load.size_bytes))
            reserved = False
            self._land(load, data)
        finally:
            if reserved:
                self._memory.cancel(load.digest)
            if not dropped:
                await self._disk.unpin(load.digest)
                if load.doomed:
                    await self._disk.doom(load.digest)
        return True

    async def _bypass(self, load: _Load) -> None:
        """Straight to memory, when the disk takes nothing."""
        load.state = "fetching"
        await self._memory.reserve(load.digest, load.size_bytes)
        landed = False
        try:
            data, sha, filled = await self._threads.run(bytearray, load.size_bytes), hashlib.sha256(), 0
            async with self._downloads, aclosing(self._chunks(load)) as chunks:
                began = self._clock()
                async for chunk in chunks:
                    data[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
                    await self._threads.run(sha.update, chunk)
            if sha.hexdigest() != load.digest:
                raise ObjectCorrupt(f"adapter {load.digest}: the object store gave bytes of digest {sha.hexdigest()}")
            first, ended = load.first_bytes_at, self._clock()
            load.visits = [
                Visit("object", first - began, load.size_bytes),
                Visit("memory", ended - first, load.size_bytes),
            ]
            self._land(load, memoryview(data))
            landed = True
        finally:
            if not landed:
                self._memory.cancel(load.digest)

    def _land(self, load: _Load, data: memoryview) -> None:
        load.data, load.state = data, "host"
        self._memory.land(load.digest, data, load.waiters)
        if load.doomed:
            self._memory.doom(load.digest)

    async def _chunks(self, load: _Load) -> AsyncGenerator[bytes, None]:
        """The object's bytes, exactly as many as it should have."""
        total = 0
        try:
            async with aclosing(self._objects.get(load.object_key)) as chunks:
                async for chunk in chunks:
                    load.first_bytes_at = load.first_bytes_at if total else self._clock()
                    total += len(chunk)
                    if total > load.size_bytes:
                        raise ObjectCorrupt(f"adapter {load.digest}: its object is longer than {load.size_bytes} bytes")
                    self._counts["object bytes"] += len(chunk)
                    yield chunk
            if total != load.size_bytes:
                raise ObjectCorrupt(f"adapter {load.digest}: its object has {total} bytes, not {load.size_bytes}")
        except ObjectMissing:
            self._counts["object misses"] += 1
            raise
        except StorageError:
            self._counts["object failures"] += 1
            raise
        self._counts["object hits"] += 1
