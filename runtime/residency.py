"""Which adapters are on the device, which are on their way, and which have to leave. No torch. States: `adapter.py`.

One record per adapter, owned by the engine thread; at most `max_leases` of them hold or expect host memory, further
adapters are only warmed (brought to the memory tier, no lease). Rows come from idle adapters, least recently used
first. When an adapter has found all rows in use for `starve_after_s`, it claims a range: the owners of that range
admit no new sequences until it has it, so nobody waits for ever.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from runtime.adapter import LEASED, MAX_LEASES, USABLE, Adapter, AdapterState, Demand, Loads, Way
from runtime.batch import BASE_SLOT, CopiesBeside, Runner
from runtime.errors import AdapterInvalid, DeviceLost
from runtime.protocol import AdapterRef, AdapterStatus, Failure, Tier, TierReport, TierVisit
from runtime.slots import Slot, SlotPool, Window
from storage.packed import Packed
from storage.tier_records import Histogram, LoadTimes

logger = logging.getLogger(__name__)

MAX_WARM: Final = 4096
# Of copies begun in one step, but for the first: an adapter passes through the device's memory three times on its way,
# and a crowd that arrives at once may take a few hundredths of a large model's step, not all of it.
BESIDE_BYTES: Final = 96 * 1024**2


class Residency:
    """Owns the pool of rows and the records; the only caller of what the runner has for adapters."""

    def __init__(
        self,
        pool: SlotPool,
        runner: Runner,
        loads: Loads,
        clock: Callable[[], float],
        *,
        max_leases: int = MAX_LEASES,
        copy_bytes: int = 16 * 1024**2,
        starve_after_s: float = 2.0,
    ) -> None:
        self._pool, self._runner, self._loads, self._clock = pool, runner, loads, clock
        self._max_leases, self._copy_bytes, self._starve_after_s = max_leases, copy_bytes, starve_after_s
        self._beside = runner if isinstance(runner, CopiesBeside) else None
        self._adapters: dict[str, Adapter] = {}
        self._warm: OrderedDict[str, Way | None] = OrderedDict()
        self._claim: tuple[Adapter, Window] | None = None
        self._news: list[AdapterStatus] = []
        self._copies = Histogram()
        self.num_evictions = self.num_hits = self.num_misses = 0

    # What the scheduler asks.

    def admissible(self, digest: str | None) -> bool:
        """True when a sequence with this adapter may start now. The base (None) always may."""
        if digest is None:
            return True
        adapter = self._adapters.get(digest)
        return adapter is not None and adapter.state is AdapterState.RESIDENT

    def acquire(self, digest: str | None) -> int:
        """A sequence starts: the slot it uses. Raises KeyError unless admissible."""
        if digest is None:
            return BASE_SLOT
        if not self.admissible(digest):
            raise KeyError(digest)
        slot = self._slot(self._adapters[digest])
        self._pool.acquire(slot)
        return slot.number

    def release(self, digest: str | None) -> None:
        """A sequence that used the adapter ends or is preempted."""
        if digest is None:
            return
        adapter = self._adapters[digest]
        slot = self._slot(adapter)
        self._pool.release(slot)
        if slot.references == 0 and adapter.state is AdapterState.EVICTING:
            self._evict(adapter)

    # What the engine and the loader tell.

    def too_large(self, rank: int) -> Failure | None:
        """The failure of an adapter that no pool of this size can hold."""
        if self._pool.rows_for(rank) is not None:
            return None
        return Failure("adapter_too_large", f"rank {rank}; the pool of this runtime has {self._pool.num_rows} rows")

    def asked(self, digest: str) -> bool:
        """A sequence came that needs this adapter; True when it could start at once.

        What is on its way already for another one is no miss: it costs no load.
        """
        self.num_hits += digest in self._adapters
        self.num_misses += digest not in self._adapters
        return self.admissible(digest)

    def want(self, ref: AdapterRef) -> None:
        """Somebody waits for this adapter: its way up begins at once, or goes on."""
        adapter = self._adapters.get(ref.digest)
        if adapter is not None:
            adapter.forgotten = False
        elif sum(item.state in LEASED for item in self._adapters.values()) < self._max_leases:
            self._adapters[ref.digest] = Adapter(ref)
            self._loads.start(ref)
        elif ref.digest not in self._warm:
            self._note_warm(ref.digest, None)
            self._loads.warm(ref)

    def loaded(self, digest: str, packed: Packed, way: Way) -> Failure | None:
        """The bytes are leased to us. Returns the failure of those who wait when the adapter cannot be used."""
        adapter = self._adapters[digest]
        warmed = self._warm.pop(digest, None)
        adapter.way = warmed if warmed is not None and len(warmed.visits) > len(way.visits) else way
        adapter.packed, adapter.state = packed, AdapterState.HOST
        adapter.host_since = self._clock()
        failure = self.too_large(packed.header.rank)
        if failure is not None:
            self._drop(adapter, AdapterStatus(digest, "memory", adapter.way.visits, failure))
        return failure

    def failed(self, digest: str, failure: Failure) -> None:
        """The loader could not bring it."""
        self._warm.pop(digest, None)
        adapter = self._adapters.pop(digest)
        self._news.append(AdapterStatus(digest, None, failure=failure))
        if adapter.forgotten:
            self._loads.forget(digest)

    def abandoned(self, digest: str) -> None:
        """The last one who waited for this adapter has gone away: a download goes on for nobody."""
        adapter = self._adapters.get(digest)
        if adapter is None and self._warm.get(digest, Way()) is None:
            del self._warm[digest]
            self._loads.stop(digest)
        elif adapter is not None and adapter.state is AdapterState.FETCHING:
            self._loads.stop(digest)

    def stopped(self, digest: str) -> None:
        """The loader has stopped bringing it; whoever wants it by now has it started anew."""
        adapter = self._adapters.pop(digest)
        if adapter.forgotten:
            self._loads.forget(digest)

    def warmed(self, digest: str, way: Way) -> None:
        """The bytes are in the memory tier, without a lease."""
        self._note_warm(digest, way)
        if digest not in self._adapters:
            self._news.append(AdapterStatus(digest, "memory", way.visits))

    def forget(self, digest: str) -> None:
        """The finetune was deleted: it leaves every tier as soon as nobody uses it or waits for it."""
        self._warm.pop(digest, None)
        adapter = self._adapters.get(digest)
        if adapter is None:
            self._loads.forget(digest)
        else:
            adapter.forgotten = True

    def source(self, digest: str) -> Tier:
        """The tier from which an adapter that is on the device came."""
        return self._adapters[digest].way.source

    def take_news(self) -> list[AdapterStatus]:
        """Arrivals, departures and failures since the last call."""
        news, self._news = self._news, []
        return news

    def residents(self) -> list[AdapterStatus]:
        """The adapters on the device, for a gateway that has just connected."""
        return [
            AdapterStatus(adapter.ref.digest, "device", adapter.way.visits)
            for adapter in self._adapters.values()
            if adapter.state in USABLE
        ]

    def report(self) -> tuple[TierReport, LoadTimes]:
        """The device as a tier, in rank rows, and how long copies from host memory took."""
        device = TierReport(
            tier="device",
            entries=self.num_resident,
            used_bytes=self._pool.rows_used,
            max_bytes=self._pool.num_rows,
            hits=self.num_hits,
            misses=self.num_misses,
            evictions=self.num_evictions,
        )
        return device, self._copies.snapshot()

    @property
    def beside(self) -> bool:
        """True when the runner copies adapters beside the steps."""
        return self._beside is not None

    @property
    def copying(self) -> bool:
        """True while layers remain to be written, so that another step has work."""
        return any(adapter.state is AdapterState.COPYING for adapter in self._adapters.values())

    @property
    def num_resident(self) -> int:
        """Adapters on the device."""
        return sum(adapter.state in USABLE for adapter in self._adapters.values())

    # One step.

    def advance(self, demand: Demand) -> list[tuple[str, Failure]]:
        """Starts loads, gives out rows, writes layers. Returns the adapters that failed on the way to the device."""
        self._drop_unwanted(demand)
        in_turn = [ref for ref in demand.adapters_in_turn() if not self.admissible(ref.digest)]
        for ref in in_turn:
            self.want(ref)
        self._settle_claim()
        adapters = [self._adapters[ref.digest] for ref in in_turn if ref.digest in self._adapters]
        self._give_rows([adapter for adapter in adapters if adapter.state is AdapterState.HOST], demand)
        return self._write_layers() if self._beside is None else self._copy_beside(self._beside)

    def _drop_unwanted(self, demand: Demand) -> None:
        """What nobody waits for any more gives its lease back, or, when it was deleted, its rows."""
        for adapter in list(self._adapters.values()):
            if demand.has_adapter(adapter.ref.digest):
                continue
            if adapter.state is AdapterState.HOST:
                self._drop(adapter, AdapterStatus(adapter.ref.digest, "memory", adapter.way.visits))
            elif adapter.state is AdapterState.RESIDENT and adapter.forgotten and not self._slot(adapter).references:
                self._evict(adapter)

    def _give_rows(self, hosts: list[Adapter], demand: Demand) -> None:
        if self._claim is None:
            now = self._clock()
            starving = [adapter for adapter in hosts if now - adapter.host_since >= self._starve_after_s]
            if starving:
                oldest = min(starving, key=lambda adapter: adapter.host_since)
                if not self._place(oldest, demand):
                    self._make_claim(oldest, demand)
        claimant = None if self._claim is None else self._claim[0]
        for adapter in hosts:
            if adapter.state is AdapterState.HOST and adapter is not claimant:
                self._place(adapter, demand)

    def _place(self, adapter: Adapter, demand: Demand) -> bool:
        """Rows that are free, or whose owners nobody uses or waits for. False when there is no such range."""

        def idle_since(slot: Slot) -> float | None:
            owner = self._adapters[slot.digest]
            if owner.state is not AdapterState.RESIDENT or slot.references or demand.has_adapter(slot.digest):
                return None
            return float(slot.last_used)

        reserved = None if self._claim is None else self._claim[1]
        window = self._pool.window(self._rows(adapter), idle_since, reserved)
        if window is None:
            return False
        self._move_in(adapter, window)
        return True

    def _make_claim(self, adapter: Adapter, demand: Demand) -> None:
        """The range whose present owners will be done first is drained for the adapter."""

        def remaining(slot: Slot) -> float | None:
            if self._adapters[slot.digest].state is AdapterState.COPYING:
                return None
            return float(demand.num_remaining(slot.digest))

        window = self._pool.window(self._rows(adapter), remaining)
        if window is None:
            return
        self._claim = adapter, window
        for slot in window.owners:
            self._adapters[slot.digest].state = AdapterState.EVICTING
        self._settle_claim()

    def _settle_claim(self) -> None:
        """Moves the claimant in as soon as its range is empty; a claimant that is gone sets the owners free again."""
        if self._claim is None:
            return
        adapter, window = self._claim
        owners = [slot for slot in self._pool.slots if window.overlaps(slot.offset, slot.rows)]
        if self._adapters.get(adapter.ref.digest) is not adapter:
            self._claim = None
            for slot in owners:
                self._adapters[slot.digest].state = AdapterState.RESIDENT
        elif all(slot.references == 0 for slot in owners):
            self._claim = None
            self._move_in(adapter, Window(window.offset, window.rows, tuple(owners)))

    def _move_in(self, adapter: Adapter, window: Window) -> None:
        for slot in window.owners:
            self._evict(self._adapters[slot.digest])
        adapter.slot = self._pool.take(adapter.ref.digest, window)
        adapter.state = AdapterState.COPYING
        adapter.copy_began_at = self._clock()

    def _copy_beside(self, runner: CopiesBeside) -> list[tuple[str, Failure]]:
        """Starts copies that have found rows, one or as many as BESIDE_BYTES allow, and looks which have ended; waits
        for none."""
        failures: list[tuple[str, Failure]] = []
        budget = BESIDE_BYTES
        for adapter in [item for item in self._adapters.values() if item.state is AdapterState.COPYING]:
            assert adapter.packed is not None
            header, slot = adapter.packed.header, self._slot(adapter)
            if not adapter.layers_written:
                if budget < BESIDE_BYTES and budget < header.payload_bytes:
                    continue
                budget -= header.payload_bytes
            try:
                if not adapter.layers_written:
                    adapter.copy_began_at = self._clock()
                    runner.begin_adapter(slot.number, slot.offset, adapter.packed)
                    adapter.layers_written = header.geometry.num_layers
                arrived = runner.poll_adapter(slot.number)
            except Exception as error:
                failures.append(self._not_copied(adapter, error))
                continue
            if arrived:
                self._arrived(adapter, header.payload_bytes)
        return failures

    def _write_layers(self) -> list[tuple[str, Failure]]:
        budget = self._copy_bytes
        failures: list[tuple[str, Failure]] = []
        for adapter in [item for item in self._adapters.values() if item.state is AdapterState.COPYING]:
            if budget <= 0:
                break
            assert adapter.packed is not None
            header = adapter.packed.header
            layer_bytes = max(1, header.payload_bytes // header.geometry.num_layers)
            missing = header.geometry.num_layers - adapter.layers_written
            layers = max(1, min(missing, budget // layer_bytes))
            slot = self._slot(adapter)
            try:
                self._runner.write_adapter(slot.number, slot.offset, adapter.packed, adapter.layers_written, layers)
            except Exception as error:
                failures.append(self._not_copied(adapter, error))
                continue
            budget -= layers * layer_bytes
            adapter.layers_written += layers
            if adapter.layers_written == header.geometry.num_layers:
                self._arrived(adapter, header.payload_bytes)
        return failures

    def _not_copied(self, adapter: Adapter, error: Exception) -> tuple[str, Failure]:
        """Called while the exception is handled; the device's own end is not the adapter's affair."""
        if isinstance(error, DeviceLost):
            raise error
        if isinstance(error, AdapterInvalid):
            failure = Failure("adapter_corrupt", str(error))
        else:
            logger.exception("adapter %s could not be written to the device", adapter.ref.digest)
            failure = Failure("internal", "the adapter could not be copied to the device")
        self._drop(adapter, AdapterStatus(adapter.ref.digest, "memory", adapter.way.visits, failure))
        return adapter.ref.digest, failure

    def _arrived(self, adapter: Adapter, size_bytes: int) -> None:
        visit = TierVisit("device", self._clock() - adapter.copy_began_at, size_bytes)
        self._copies.add(visit.seconds, size_bytes)
        adapter.way = Way((*adapter.way.visits, visit), adapter.way.source)
        adapter.state, adapter.packed = AdapterState.RESIDENT, None
        self._loads.release(adapter.ref.digest)
        self._news.append(AdapterStatus(adapter.ref.digest, "device", adapter.way.visits))

    def _evict(self, adapter: Adapter) -> None:
        """Off the device; the tiers below keep what they have, unless it was deleted."""
        self._free_rows(adapter)
        del self._adapters[adapter.ref.digest]
        self.num_evictions += 1
        self._news.append(AdapterStatus(adapter.ref.digest, None, adapter.way.visits))
        if adapter.forgotten:
            self._loads.forget(adapter.ref.digest)

    def _drop(self, adapter: Adapter, status: AdapterStatus) -> None:
        """Out of HOST or COPYING: rows and lease go back."""
        if adapter.slot is not None:
            self._free_rows(adapter)
        del self._adapters[adapter.ref.digest]
        self._loads.release(adapter.ref.digest)
        self._news.append(status)
        if adapter.forgotten:
            self._loads.forget(adapter.ref.digest)

    def _free_rows(self, adapter: Adapter) -> None:
        slot = self._slot(adapter)
        self._pool.give_back(slot)
        self._runner.release_slot(slot.number)
        adapter.slot = None

    def _rows(self, adapter: Adapter) -> int:
        assert adapter.packed is not None
        rows = self._pool.rows_for(adapter.packed.header.rank)
        assert rows is not None
        return rows

    def _slot(self, adapter: Adapter) -> Slot:
        assert adapter.slot is not None
        return adapter.slot

    def _note_warm(self, digest: str, way: Way | None) -> None:
        self._warm[digest] = way
        self._warm.move_to_end(digest)
        if len(self._warm) > MAX_WARM:
            self._warm.popitem(last=False)
