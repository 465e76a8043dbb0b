"""Brings adapters up to host memory for the engine: the event loop's side of `adapter.Loads`.

    engine thread --(call_soon_threadsafe)--> queue > worker: tiers.fetch > parse (thread) > deliver --> engine thread

A start ends with `LoadArrived`, whose bytes stay leased until `release`, with `LoadFailed` or, once nobody waits for it
any more, with `LoadStopped`; a warm-up fetches and lets go at once. The queue of starts is bounded by the engine's
leases; warm-ups beyond `max_warm` (wishes: MAX_WISHES) are dropped, since they only save time. Storage's errors become
failures here and nowhere else.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from runtime.adapter import MAX_LEASES, Way
from runtime.protocol import AdapterRef, Failure, TierVisit
from storage.errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge, StorageError
from storage.fetched import Fetched
from storage.packed import Packed, read_packed
from storage.tier_records import Purpose, Resident, TierName, TierStats

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0
PIN_RETRY_S = 30.0
MAX_WISHES = 10_000  # as many as a warm-up list may name


class AdapterTiers(Protocol):
    """What the loader needs of `storage.tiers.Tiers`."""

    async def fetch(
        self, digest: str, object_key: str, size_bytes: int, purpose: Purpose = "request", *, anew: bool = False
    ) -> Fetched:
        """The whole file in memory, held until released."""
        ...

    async def forget(self, digest: str) -> None:
        """Drops the file from every tier."""
        ...

    async def keep(self, digest: str, object_key: str, size_bytes: int) -> None:
        """Holds the file in memory."""
        ...

    def unkeep(self, digest: str) -> None:
        """Lets go of it."""
        ...

    @property
    def kept(self) -> frozenset[str]:
        """What is held."""
        ...

    async def refill(self) -> int:
        """Brings what was used last from disk to memory."""
        ...

    def resident(self, digest: str) -> Literal["memory", "disk"] | None:
        """The highest tier that holds the whole file now."""
        ...

    def stats(self) -> dict[TierName, TierStats]:
        """Counters of each tier."""
        ...

    def residents(self) -> list[Resident]:
        """Every file in memory or on disk."""
        ...


@dataclass(frozen=True, slots=True)
class LoadArrived:
    """The adapter is in host memory, leased until `AdapterLoader.release`."""

    digest: str
    packed: Packed
    way: Way


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The adapter could not be brought."""

    digest: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class LoadStopped:
    """It is not brought any more, because nobody waits for it."""

    digest: str


@dataclass(frozen=True, slots=True)
class LoadWarmed:
    """The adapter is in the memory tier, without a lease."""

    digest: str
    way: Way


LoadResult = LoadArrived | LoadFailed | LoadStopped | LoadWarmed


class AdapterLoader:
    """`run` owns the workers; the other methods are called on its event loop. `deliver` takes the results there."""

    def __init__(
        self,
        tiers: AdapterTiers,
        deliver: Callable[[LoadResult], None],
        *,
        num_workers: int = MAX_LEASES,
        num_warmers: int = 2,
        max_warm: int = 256,
        refill: bool = False,
    ) -> None:
        """`refill`: from the start on, memory is filled in the background with what was used last."""
        self._tiers, self._deliver, self._refill = tiers, deliver, refill
        self._num_workers, self._num_warmers, self._max_warm = num_workers, num_warmers, max_warm
        self._starts: deque[AdapterRef | LoadStopped | str] = deque()
        self._fetches: dict[str, asyncio.Timeout] = {}  # of starts
        self._warming: dict[str, asyncio.Timeout] = {}  # of warm-ups for a request
        self._warm: dict[str, tuple[AdapterRef, bool]] = {}
        self._work = asyncio.Semaphore(0)
        self._warm_work = asyncio.Semaphore(0)
        self._leases: dict[str, Fetched] = {}
        self._pins: dict[str, AdapterRef] = {}
        self._pins_changed = asyncio.Event()
        self.num_dropped = 0

    async def run(self) -> None:
        """Works until cancelled; then every lease is given back."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._num_workers):
                    tasks.create_task(self._serve_starts())
                for _ in range(self._num_warmers):
                    tasks.create_task(self._serve_warmups())
                tasks.create_task(self._serve_pins())
                if self._refill:
                    tasks.create_task(self._fill_again())
        finally:
            for digest in list(self._leases):
                self.release(digest)

    def start(self, adapter: AdapterRef) -> None:
        """See `adapter.Loads.start`."""
        self._starts.append(adapter)
        self._work.release()

    def stop(self, digest: str) -> None:
        """See `adapter.Loads.stop`."""
        if self._warm.get(digest, (None, False))[1]:
            del self._warm[digest]
        for fetches in (self._fetches, self._warming):
            if (limit := fetches.pop(digest, None)) is not None:
                limit.reschedule(0)  # over, as from now
        for place, work in enumerate(self._starts):
            if isinstance(work, AdapterRef) and work.digest == digest:
                self._starts[place] = LoadStopped(digest)

    def forget(self, digest: str) -> None:
        """See `adapter.Loads.forget`."""
        self._starts.append(digest)
        self._work.release()

    def warm(self, adapter: AdapterRef, *, soon: bool = True) -> None:
        """See `adapter.Loads.warm`. `soon`: a request for it is on its way; else somebody wishes it to be there."""
        if (queued := self._warm.get(adapter.digest)) is not None:
            self._warm[adapter.digest] = adapter, soon and queued[1]
            return
        if soon and adapter.digest in self._warming:
            return
        if len(self._warm) >= (self._max_warm if soon else MAX_WISHES):
            self.num_dropped += 1
            return
        self._warm[adapter.digest] = adapter, soon
        self._warm_work.release()

    def release(self, digest: str) -> None:
        """See `adapter.Loads.release`."""
        self._leases.pop(digest).release()

    def pin(self, adapters: Iterable[AdapterRef]) -> None:
        """From now on these are kept in memory, and no others. What cannot be had now is tried again."""
        self._pins = {adapter.digest: adapter for adapter in adapters}
        self._pins_changed.set()

    async def _serve_starts(self) -> None:
        while True:
            await self._work.acquire()
            work = self._starts.popleft()
            match work:
                case str():
                    await self._drop(work)
                case LoadStopped():
                    self._deliver(work)
                case _:
                    self._deliver(await self._load(work))

    async def _serve_warmups(self) -> None:
        while True:
            await self._warm_work.acquire()
            if not self._warm:
                continue  # stopped meanwhile
            adapter, soon = next(iter(self._warm.values()))
            del self._warm[adapter.digest]
            try:
                # A wish is its own reason: it goes on whoever leaves.
                fetched = await self._fetch(adapter, "soon" if soon else "wish", self._warming if soon else {})
            except (StorageError, ValueError) as error:
                # Whoever really needs the adapter gets the failure from a start.
                logger.info("adapter %s was not warmed: %s", adapter.digest, error)
                continue
            if fetched is not None:
                with fetched:
                    way = _way(fetched)
                self._deliver(LoadWarmed(adapter.digest, way))

    async def _load(self, adapter: AdapterRef) -> LoadResult:
        try:
            fetched = await self._fetch(adapter, "request", self._fetches)
            if fetched is None:
                return LoadStopped(adapter.digest)
            try:
                packed = await asyncio.to_thread(read_packed, fetched.data)
            except BaseException:
                fetched.release()
                raise
        except (StorageError, ValueError) as error:
            logger.warning("adapter %s: %s", adapter.digest, error)
            return LoadFailed(adapter.digest, _failure(error))
        self._leases[adapter.digest] = fetched
        return LoadArrived(adapter.digest, packed, _way(fetched))

    async def _fetch(
        self, adapter: AdapterRef, purpose: Purpose, stoppable: dict[str, asyncio.Timeout]
    ) -> Fetched | None:
        """None when it was stopped. Raises what the tiers raise."""
        # Only whoever brings a new object says so: every other wish would undo what is known to be missing.
        anew = purpose == "wish"
        try:
            async with asyncio.timeout(None) as limit:
                stoppable[adapter.digest] = limit
                try:
                    return await self._tiers.fetch(
                        adapter.digest, adapter.object_key, adapter.size_bytes, purpose, anew=anew
                    )
                finally:
                    if stoppable.get(adapter.digest) is limit:
                        del stoppable[adapter.digest]
        except TimeoutError:
            if not limit.expired():
                raise
            return None

    async def _serve_pins(self) -> None:
        while True:
            complete = True
            self._pins_changed.clear()
            wanted = dict(self._pins)
            for digest in self._tiers.kept - wanted.keys():
                self._tiers.unkeep(digest)
            for digest, adapter in wanted.items():
                try:
                    await self._tiers.keep(digest, adapter.object_key, adapter.size_bytes)
                except (StorageError, ValueError) as error:
                    complete = False
                    logger.warning("adapter %s is not pinned: %s", digest, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if complete else PIN_RETRY_S):
                    await self._pins_changed.wait()

    async def _fill_again(self) -> None:
        try:
            brought = await self._tiers.refill()
        except StorageError as error:
            logger.warning("memory was not filled again from the disk: %s", error)
        else:
            logger.info("memory has %d adapters again from the disk", brought)

    async def _drop(self, digest: str) -> None:
        try:
            await self._tiers.forget(digest)
        except (StorageError, ValueError) as error:
            logger.warning("adapter %s was not forgotten everywhere: %s", digest, error)


class ThreadLoads:
    """`adapter.Loads` for the engine thread: hands every call to the loader's event loop."""

    def __init__(self, loader: AdapterLoader, loop: asyncio.AbstractEventLoop) -> None:
        self._loader, self._loop = loader, loop

    def start(self, adapter: AdapterRef) -> None:
        """See `adapter.Loads.start`."""
        self._loop.call_soon_threadsafe(self._loader.start, adapter)

    def stop(self, digest: str) -> None:
        """See `adapter.Loads.stop`."""
        self._loop.call_soon_threadsafe(self._loader.stop, digest)

    def warm(self, adapter: AdapterRef) -> None:
        """See `adapter.Loads.warm`."""
        self._loop.call_soon_threadsafe(self._loader.warm, adapter)

    def release(self, digest: str) -> None:
        """See `adapter.Loads.release`."""
        self._loop.call_soon_threadsafe(self._loader.release, digest)

    def forget(self, digest: str) -> None:
        """See `adapter.Loads.forget`."""
        self._loop.call_soon_threadsafe(self._loader.forget, digest)


def _way(fetched: Fetched) -> Way:
    visits = tuple(TierVisit(visit.tier, visit.seconds, visit.size_bytes) for visit in fetched.visits)
    return Way(visits, visits[0].tier) if visits else Way()


def _failure(error: StorageError | ValueError) -> Failure:
    """Storage's words stay in our log: they name keys and places that callers need not know."""
    if isinstance(error, ObjectMissing):
        return Failure("adapter_missing", "the adapter's file is not in the object store")
    if isinstance(error, ObjectCorrupt):
        return Failure("adapter_corrupt", "the adapter's file is damaged")
    if isinstance(error, ObjectTooLarge):
        return Failure("adapter_too_large", "the adapter is larger than this runtime's memory tier")
    if isinstance(error, StorageError):
        return Failure("adapter_unavailable", "the adapter's file cannot be read just now", RETRY_AFTER_S)
    return Failure("internal", "the adapter's reference cannot be used")
