"""The tiers under generated schedules: any order of fetches, departures, releases, failures and forgetting.

At every turn of the event loop: budgets hold, nobody's bytes are evicted, one download per digest. At the end, with
everything released and forgotten, nothing is left.
"""

import asyncio
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.downloads import Downloads
from storage.errors import ObjectMissing, StorageError, StorageUnavailable
from storage.tiers import Fetched, Tiers
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import no_pause

SIZES = (100, 250, 400, 600)
MEMORY, DISK = 900, 1000

which = st.integers(0, len(SIZES) - 1)
step = st.one_of(
    st.tuples(st.just("fetch"), which),
    st.tuples(st.just("fetch"), which),
    st.tuples(st.just("leave"), st.integers(0, 50)),
    st.tuples(st.just("release"), st.integers(0, 50)),
    st.tuples(st.just("hold"), which),
    st.tuples(st.just("let"), which),
    st.tuples(st.just("break"), which),
    st.tuples(st.just("mend"), which),
    st.tuples(st.just("spoil"), which),
    st.tuples(st.just("forget"), which),
    st.tuples(st.just("turn"), st.integers(1, 30)),
    st.tuples(st.just("settle"), st.just(0)),
)


class World:
    """One schedule's run: what was asked for, who holds what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = GatedObjects(chunk_bytes=50)
        self.files = [bytes([number]) * size for number, size in enumerate(SIZES)]
        self.wanted = [self.objects.add(data) for data in self.files]
        downloads = Downloads(self.objects, parallel=1, sleep=no_pause)
        self.tiers = Tiers(self.objects, folder, memory_bytes=MEMORY, disk_bytes=DISK, downloads=downloads)
        self.tasks: list[tuple[int, asyncio.Task[Fetched]]] = []
        self.held: list[tuple[int, Fetched]] = []

    async def play(self, schedule: list[tuple[str, int]]) -> None:
        await self.tiers.open()
        for verb, number in schedule:
            await self.do(verb, number)
            self.check()
        for index in range(len(SIZES)):
            await self.do("let", index)
            await self.do("mend", index)
        for _ in range(len(schedule) + 1):
            await self.settle()
            await self.do("release", 0)
        assert not self.tasks
        assert not self.held
        while self.tiers._loads:
            await asyncio.sleep(0)
        for digest, _, _ in self.wanted:
            await self.tiers.forget(digest)
        memory, disk = self.tiers._memory.ledger, self.tiers._disk.ledger
        assert (memory.used_bytes, memory.pinned_bytes, disk.used_bytes, disk.pinned_bytes) == (0, 0, 0, 0)
        assert not self.tiers._memory._data
        assert not self.tiers._memory._waiting
        assert not sum(self.objects.open_reads.values())
        assert self.on_disk() == 0
        await self.tiers.aclose()

    async def do(self, verb: str, number: int) -> None:
        wanted = self.wanted[number % len(SIZES)]
        digest, key, _ = wanted
        match verb:
            case "fetch":
                self.tasks.append((number, asyncio.create_task(self.tiers.fetch(*wanted))))
            case "leave" if self.tasks:
                self.tasks[number % len(self.tasks)][1].cancel()
            case "release" if self.held:
                self.held.pop(number % len(self.held))[1].release()
            case "hold":
                self.objects.hold(key)
            case "let" if key in self.objects.held:
                self.objects.let(key)
            case "break":
                self.objects.failures[key] = StorageUnavailable("broken")
            case "mend":
                self.objects.failures.pop(key, None)
            case "spoil":
                with suppress(FileNotFoundError), (self.folder / "packed" / digest).open("r+b") as file:
                    file.write(b"!")
            case "forget":
                await self.tiers.forget(digest)
            case "turn":
                for _ in range(number):
                    await asyncio.sleep(0)
                    self.check()
            case "settle":
                await self.settle()

    async def settle(self) -> None:
        """Until everyone has an answer, or waits for a gate or for room that only a release can give."""
        calm = 0
        for _ in range(100_000):
            self.check()
            loads = [load for load in self.tiers._loads.values() if not load.task.done()]
            queue = {digest for turn, digest, _ in self.tiers._memory._waiting if not turn.done()}
            gated = {key for key in self.objects.held if self.objects.open_reads[key]}
            still = all(load.digest in queue or load.object_key in gated for load in loads)
            calm = calm + 1 if still and (loads or not self.tasks) else 0
            if calm == 10:  # no thread is at work, and what was ready to run has run
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError(f"it does not settle: {[(load.state, load.waiters) for load in loads]}")
        self.check()

    def check(self) -> None:
        for index, task in [each for each in self.tasks if each[1].done()]:
            self.tasks.remove((index, task))
            if not task.cancelled():
                error = task.exception()
                if error is None:
                    self.held.append((index, task.result()))
                else:
                    assert isinstance(error, StorageError)
                    assert not isinstance(error, ObjectMissing)
        tiers = self.tiers
        assert tiers._memory.ledger.used_bytes <= MEMORY
        assert tiers._disk.ledger.used_bytes <= DISK
        assert sum(len(data) for data in tiers._memory._data.values()) <= tiers._memory.ledger.used_bytes
        assert self.on_disk() <= DISK
        for index, fetched in self.held:
            assert fetched.data == self.files[index]
            assert tiers.resident(fetched.digest) == "memory"
        assert all(most == 1 for most in self.objects.most_at_once.values())

    def on_disk(self) -> int:
        total = 0
        for part in ("packed", ".incoming"):
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.folder / part):
                    with suppress(FileNotFoundError):
                        total += entry.stat().st_size
        return total


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=40))
def test_any_schedule(schedule: list[tuple[str, int]]) -> None:
    async def main(folder: str) -> None:
        await World(Path(folder)).play(schedule)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
