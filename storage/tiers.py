"""Packed adapters on their way up: object store -> local disk -> host memory. The device is the runtime's.

    absent > fetching > host                        (`Tiers.state`; what comes down goes to memory and disk at once)
    absent > fetching > disk > reading > host       (when memory has no room to spare)

One owner task per digest brings a file up; everyone who asks meanwhile waits for that task. A waiter who leaves stops
the task only if nobody else waits. A failure reaches all its waiters; that an object is missing or damaged is
remembered for a short while, anything else is tried anew at once. Every byte that reaches memory has been checked
against the digest on that very way. The disk is a cache and may fail: a bad file is put aside and fetched again once,
and a disk that takes nothing is passed by (counted as `refused`).

Belongs to one event loop; `Fetched.release` too is called there.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final, Literal

from cachetools import TTLCache

from storage.buffers import Allocate, Recycled
from storage.disk_tier import DiskTier, DiskWrite
from storage.downloads import Downloads
from storage.errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge, StorageError, StorageUnavailable
from storage.fetched import Fetched
from storage.ledger import GIANTS_SHARE
from storage.memory_tier import MemoryTier
from storage.objects.base import ObjectStore, check_key
from storage.packed_folder import is_digest
from storage.policies import PolicyName, make_policy
from storage.threads import Threads, finish
from storage.tier_load import Load, Sink, State
from storage.tier_records import Histogram, Purpose, Resident, TierName, TierStats, Visit

__all__ = ["Fetched", "TierName", "TierStats", "Tiers", "Visit"]

MAX_LOADS: Final = 1024  # digests on their way up at once; more are refused
MAX_DOWNLOADS: Final = 8
MAX_NEGATIVE: Final = 10_000
KEPT_SHARE: Final = 0.5


class Tiers:
    """`open`, then `fetch` and `forget` from any task, then `aclose`."""

    def __init__(
        self,
        objects: ObjectStore,
        directory: Path,
        *,
        memory_bytes: int,
        disk_bytes: int,
        memory_policy: PolicyName = "lru",
        disk_policy: PolicyName = "lru",
        giants_share: float = GIANTS_SHARE,
        negative_ttl_s: float = 5.0,
        downloads: Downloads | None = None,
        allocate: Allocate | None = None,
        clock: Callable[[], float] = perf_counter,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        """`downloads`: how objects come; by default in plain streams. `allocate`: by default pages, those of evicted
        files again, all within the budget. `timer` is that of the negative answers.
        """
        allocate = allocate or Recycled(memory_bytes).allocate
        self._downloads = downloads or Downloads(objects, parallel=1)
        self._memory = MemoryTier(memory_bytes, make_policy(memory_policy, memory_bytes), giants_share)
        self._disk = DiskTier(
            directory,
            disk_bytes,
            policy=make_policy(disk_policy, disk_bytes),
            giants_share=giants_share,
            allocate=allocate,
        )
        self._allocate, self._clock = allocate, clock
        self._threads = Threads(4, "adapter-bytes")
        self._at_once = asyncio.Semaphore(MAX_DOWNLOADS)
        self._loads: dict[str, Load] = {}
        self._kept: dict[str, Fetched] = {}
        self._came_ahead: set[str] = set()  # brought for requests that have not come yet
        self._negative: TTLCache[str, StorageError] = TTLCache(MAX_NEGATIVE, max(negative_ttl_s, 1e-9), timer)
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._times: dict[TierName, Histogram] = {"object": Histogram(), "disk": Histogram()}

    async def open(self) -> None:
        """Finds what is on disk already. Raises StorageUnavailable, StorageFull."""
        await self._disk.open()

    async def fetch(
        self, digest: str, object_key: str, size_bytes: int, purpose: Purpose = "request", *, anew: bool = False
    ) -> Fetched:
        """The packed file with this digest, in memory and pinned until released.

        `anew`: the object may have come since it was last missed. Raises ObjectTooLarge when it can never fit in
        memory, ObjectMissing, ObjectCorrupt, StorageUnavailable; ValueError for a digest, key or size that is none.
        """
        if not is_digest(digest) or size_bytes < 1:
            raise ValueError(f"not a packed file: digest {digest!r} of {size_bytes} bytes")
        check_key(object_key)
        room = self._memory.ledger.max_bytes - sum(len(kept.data) for kept in self._kept.values())
        if size_bytes > room and digest not in self._kept:
            raise ObjectTooLarge(
                f"adapter {digest} takes {size_bytes} bytes; the memory tier has {room} beside what is pinned "
                "(tiers.memory_bytes)"
            )
        if anew:
            self._negative.pop(digest, None)
        counted = purpose != "request"
        while True:
            if self._closed:
                raise StorageUnavailable("the adapter tiers are closed")
            if digest in self._memory:
                came_for_this = purpose == "request" and digest in self._came_ahead
                if not counted:
                    self._counts["memory misses" if came_for_this else "memory hits"] += 1
                    self._came_ahead.discard(digest)
                data = self._memory.pin(digest, asked=purpose == "request" and not came_for_this)
                return Fetched(self._memory, digest, data, (Visit("memory", 0.0, len(data)),))
            load = self._loads.get(digest)
            if not counted:
                counted = True
                on_its_way = load is not None and not load.task.done() and "request" in load.purposes
                self._counts["memory hits" if on_its_way else "memory misses"] += 1
            if load is None or load.task.done():
                if (known := self._negative.get(digest)) is not None:
                    self._counts["negative hits"] += 1
                    raise type(known)(*known.args)
                load = self._start(digest, object_key, size_bytes)
            if not load.abandoned and load.data is None:
                load.object_key = load.object_key or object_key
                load.purposes.add(purpose)
                return await self._join(load)
            await asyncio.wait((load.task,))  # it is stopping, or writing to disk what memory has lost already

    async def keep(self, digest: str, object_key: str, size_bytes: int) -> None:
        """Holds the file in memory until `unkeep`. At most half of memory can be kept. Raises what `fetch` raises."""
        if digest in self._kept:
            return
        kept = sum(len(other.data) for other in self._kept.values())
        if kept + size_bytes > self._memory.ledger.max_bytes * KEPT_SHARE:
            raise ObjectTooLarge(
                f"adapter {digest} of {size_bytes} bytes cannot be pinned: {kept} bytes are, and at most half of "
                f"{self._memory.ledger.max_bytes} can be (tiers.memory_bytes)"
            )
        fetched = await self.fetch(digest, object_key, size_bytes, "wish")
        if digest in self._kept:
            fetched.release()
        else:
            self._kept[digest] = fetched

    def unkeep(self, digest: str) -> None:
        """Lets go of what `keep` holds; without it nothing happens."""
        kept = self._kept.pop(digest, None)
        if kept is not None:
            kept.release()

    @property
    def kept(self) -> frozenset[str]:
        """What is held by `keep`."""
        return frozenset(self._kept)

    async def forget(self, digest: str) -> None:
        """Drops the file from memory and disk, each as soon as nobody uses it."""
        self._negative.pop(digest, None)
        load = self._loads.get(digest)
        if load is not None:
            load.doomed = True
        self.unkeep(digest)
        self._memory.doom(digest)
        await self._disk.doom(digest)

    async def refill(self) -> int:
        """Brings what was used last from the disk to memory while there is room; returns how many files.

        One at a time, and none while requests bring their own. For the time after a start.
        """
        brought = 0
        for digest in reversed(self._disk.digests):
            while self._loads:
                await asyncio.wait([load.task for load in self._loads.values()])
            if self._closed or digest in self._memory or digest not in self._disk:
                continue
            size_bytes = self._disk.ledger.size(digest)
            if not self._memory.ledger.has_room(size_bytes):
                break
            load = self._start(digest, None, size_bytes)
            await asyncio.wait((load.task,))
            brought += load.data is not None
        return brought

    def resident(self, digest: str) -> Literal["memory", "disk"] | None:
        """The highest tier that holds the whole file now."""
        if digest in self._memory:
            return "memory"
        return "disk" if digest in self._disk else None

    def state(self, digest: str) -> State:
        """Where the file is on its way up."""
        load = self._loads.get(digest)
        if digest in self._memory:
            return "host"
        if load is not None and load.state not in ("absent", "host"):
            return load.state
        return "disk" if digest in self._disk else "absent"

    def residents(self) -> list[Resident]:
        """Every file in memory or on disk."""
        memory, disk = self._memory.ledger, self._disk.ledger
        found = dict.fromkeys([*(each for each in memory.keys if each in self._memory), *self._disk.digests])
        return [
            Resident(
                digest=digest,
                size_bytes=(memory if digest in memory else disk).size(digest),
                in_memory=digest in self._memory,
                on_disk=digest in self._disk,
                kept=digest in self._kept,
                uses=memory.uses(digest),
            )
            for digest in found
        ]

    def stats(self) -> dict[TierName, TierStats]:
        """Counters of each tier."""
        memory, disk, count = self._memory.ledger, self._disk.ledger, self._counts
        return {
            "memory": TierStats(
                entries=len(memory),
                used_bytes=memory.used_bytes,
                max_bytes=memory.max_bytes,
                pinned_bytes=sum(len(kept.data) for kept in self._kept.values()),
                hits=count["memory hits"],
                misses=count["memory misses"],
                evictions=memory.evictions,
            ),
            "disk": TierStats(
                entries=len(self._disk.digests),
                used_bytes=disk.used_bytes,
                max_bytes=disk.max_bytes,
                hits=count["disk hits"],
                misses=count["disk misses"],
                evictions=disk.evictions,
                failures=count["disk failures"] + self._disk.failures,
                refused=self._disk.refused,
                quarantined=self._disk.quarantined,
                loads=self._times["disk"].snapshot(),
            ),
            "object": TierStats(
                used_bytes=count["object bytes"],
                hits=count["object hits"],
                misses=count["object misses"],
                failures=count["object failures"],
                refused=count["object refused"],
                retries=self._downloads.budget.spent,
                negative_hits=count["negative hits"],
                loads=self._times["object"].snapshot(),
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
        for digest in list(self._kept):
            self.unkeep(digest)
        await self._threads.aclose()
        await self._disk.aclose()

    def _start(self, digest: str, object_key: str | None, size_bytes: int) -> Load:
        if len(self._loads) >= MAX_LOADS:
            self._counts["object refused"] += 1
            raise StorageUnavailable(f"{MAX_LOADS} adapters are on their way already")
        load = Load(digest, object_key, size_bytes)
        load.task = asyncio.create_task(self._bring(load), name=f"load {digest[:12]}")  # owned by `_loads`
        self._loads[digest] = load
        load.task.add_done_callback(lambda task: self._ended(load, task))
        return load

    def _ended(self, load: Load, task: asyncio.Task[None]) -> None:
        if self._loads.get(load.digest) is load:
            del self._loads[load.digest]
        load.ended(task)

    async def _join(self, load: Load) -> Fetched:
        load.waiters += 1
        try:
            await asyncio.wait((load.landed,))
        except asyncio.CancelledError:
            load.waiters -= 1
            if load.data is not None:
                self._memory.unpin(load.digest)
            elif not load.waiters:
                load.abandoned = True
                load.task.cancel()
            raise
        if load.data is None:
            raise load.failure() from load.landed.exception()
        return Fetched(self._memory, load.digest, load.data, tuple(load.visits))

    async def _bring(self, load: Load) -> None:
        """The owner task: up to memory, pinned once for each waiter; or raises what all waiters get."""
        try:
            await self._find(load)
        except (ObjectMissing, ObjectCorrupt) as error:
            if load.object_key is not None and not load.doomed:
                self._negative[load.digest] = error
            raise
        finally:
            if load.reserved and load.data is None:
                self._memory.cancel(load.digest)

    async def _find(self, load: Load) -> None:
        """From the disk, else from the object store; what is wrong once is fetched again."""
        spoiled, missed = 0, False
        while True:
            try:
                if await self._disk.pin(load.digest):
                    self._counts["disk hits"] += not missed
                    load.visits = [Visit("disk", 0.0, load.size_bytes)]
                else:
                    self._counts["disk misses"] += not missed
                    missed = True
                    async with self._disk.claim(load.digest) as alone:
                        # Another process that ended bringing it may have left it on the disk.
                        if not alone or not await self._download(load):
                            continue
                        if load.data is not None:
                            return
                await self._read(load)
                return
            except ObjectCorrupt:
                spoiled += 1
                if spoiled > 1 or load.object_key is None:
                    raise

    async def _download(self, load: Load) -> bool:
        """To memory, and then to disk as well; or to disk alone, where it stays pinned. False: it must be tried again,
        with room in memory or without the disk.
        """
        if load.object_key is None:
            raise ObjectMissing(f"adapter {load.digest} is not on disk any more")
        load.state = "fetching"
        async with self._at_once:
            load.reserved = load.reserved or self._memory.reserve_ahead(load.digest, load.size_bytes)
            write = None if load.without_disk else await self._disk.begin(load.digest, load.size_bytes)
            if load.reserved or write is not None:
                sink = await self._receive(load, load.object_key, write)
                return await self._publish(load, sink)
        load.without_disk = True
        await self._memory.reserve(load.digest, load.size_bytes)
        load.reserved = True
        return False

    async def _receive(self, load: Load, object_key: str, write: DiskWrite | None) -> Sink:
        """All bytes, checked; in memory, if there is room, they have landed. Without success nothing is on disk."""
        corrupt, done = False, False
        try:
            data = await self._threads.run(self._allocate, load.size_bytes) if load.reserved else None
            sink, began = Sink(load, data, write, self._threads, self._clock), self._clock()
            await self._stream(load, object_key, sink)
            ended = self._clock()
            first = sink.first_bytes_at or ended
            self._times["object"].add(ended - began, load.size_bytes)
            load.visits = [Visit("object", first - began, load.size_bytes)]
            if write is not None and not sink.write_failed:
                load.visits.append(Visit("disk", ended - first, load.size_bytes))
                first = ended
            if data is not None:
                load.visits.append(Visit("memory", self._clock() - first, load.size_bytes))
                self._land(load, data)
            done = True
            return sink
        except ObjectCorrupt:
            corrupt = True
            raise
        finally:
            if write is not None and not done:
                await write.abandon(corrupt=corrupt)

    async def _publish(self, load: Load, sink: Sink) -> bool:
        """The file gets its name on disk. False when it is neither there nor in memory."""
        if sink.write is None:
            return True
        if sink.write_failed:
            await sink.write.abandon()
            self._disk.refused += 1
        if sink.write_failed or not await sink.write.publish(sink.data):
            load.without_disk = True
            return sink.data is not None
        if sink.data is not None:
            await self._disk.unpin(load.digest)
            if load.doomed:
                await self._disk.doom(load.digest)
        return True

    async def _stream(self, load: Load, object_key: str, sink: Sink) -> None:
        """Everything into the sink, checked. Raises the errors of storage."""
        try:
            try:
                async with aclosing(self._downloads.chunks(object_key, load.size_bytes)) as chunks:
                    async for chunk in chunks:
                        self._counts["object bytes"] += len(chunk)
                        await sink.take(chunk)
            finally:
                await sink.settle()
            sink.check()
        except ObjectMissing:
            self._counts["object misses"] += 1
            raise
        except StorageError:
            self._counts["object failures"] += 1
            raise
        self._counts["object hits"] += 1

    async def _read(self, load: Load) -> None:
        """From a pinned file on disk to memory. Raises ObjectCorrupt when the file was bad; it is gone then."""
        dropped = False
        try:
            load.state = "disk"
            if not load.reserved:
                await self._memory.reserve(load.digest, load.size_bytes)
                load.reserved = True
            load.state, began = "reading", self._clock()
            try:
                data = await self._disk.read(load.digest)
            except (ObjectCorrupt, StorageUnavailable) as error:
                dropped = True
                self._counts["disk failures"] += 1
                await self._disk.drop(load.digest)
                raise ObjectCorrupt(f"adapter {load.digest} cannot be read from the disk: {error}") from error
            seconds = self._clock() - began
            self._times["disk"].add(seconds, load.size_bytes)
            load.visits.append(Visit("memory", seconds, load.size_bytes))
            self._land(load, data)
        finally:
            if not dropped:
                await self._disk.unpin(load.digest)
                if load.doomed:
                    await self._disk.doom(load.digest)

    def _land(self, load: Load, data: memoryview) -> None:
        load.state = "host"
        load.landed.set_result(data)
        self._memory.land(load.digest, data, load.waiters)
        if load.purposes == {"soon"}:
            self._came_ahead = {each for each in self._came_ahead if each in self._memory} | {load.digest}
        if load.doomed:
            self._memory.doom(load.digest)
