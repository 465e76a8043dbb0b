"""Storage's answers become the engine's: arrivals, failures of each kind, warm-ups, leases."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from runtime.loader import AdapterLoader, LoadArrived, LoadFailed, LoadResult, LoadStopped, LoadWarmed
from runtime.protocol import AdapterRef
from storage.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from storage.tier_records import Purpose
from storage.tiers import Visit
from tests.runtime.fakes import ref


class Held:
    """What a fetch returns: bytes that are no packed file, unless a test says so."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.visits = (Visit("disk", 0.0, len(data)), Visit("memory", 0.5, len(data)))
        self.released = 0

    def release(self) -> None:
        self.released += 1

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FakeTiers:
    """Answers when its gate is open."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.held: list[Held] = []
        self.forgotten: list[str] = []
        self.kept: frozenset[str] = frozenset()
        self.anew: list[str] = []
        self.purposes: list[Purpose] = []
        self.refills = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0

    async def keep(self, digest: str, object_key: str, size_bytes: int) -> None:
        await self.gate.wait()
        if digest in self.errors:
            raise self.errors[digest]
        self.kept |= {digest}

    def unkeep(self, digest: str) -> None:
        self.kept -= {digest}

    async def refill(self) -> int:
        self.refills += 1
        if "refill" in self.errors:
            raise self.errors["refill"]
        return 3

    async def fetch(
        self, digest: str, object_key: str, size_bytes: int, purpose: Purpose = "request", *, anew: bool = False
    ) -> Held:
        self.anew += [digest] * anew
        self.purposes.append(purpose)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if digest in self.errors:
            raise self.errors[digest]
        self.held.append(Held(b"not a packed file"))
        return self.held[-1]

    async def forget(self, digest: str) -> None:
        if digest in self.errors:
            raise self.errors[digest]
        self.forgotten.append(digest)


class Rig:
    def __init__(self, **options: int) -> None:
        self.tiers = FakeTiers()
        self.results: asyncio.Queue[LoadResult] = asyncio.Queue()
        self.loader = AdapterLoader(self.tiers, self.results.put_nowait, **options)  # type: ignore[arg-type]

    async def next(self) -> LoadResult:
        async with asyncio.timeout(5):
            return await self.results.get()


@contextlib.asynccontextmanager
async def loading(**options: int) -> AsyncIterator[Rig]:
    rig = Rig(**options)
    task = asyncio.create_task(rig.loader.run())
    try:
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ObjectMissing("secret-bucket/key"), "adapter_missing"),
        (ObjectCorrupt("secret-bucket/key"), "adapter_corrupt"),
        (ObjectTooLarge("secret-bucket/key"), "adapter_too_large"),
        (StorageUnavailable("secret-bucket/key"), "adapter_unavailable"),
        (StorageFull("secret-bucket/key"), "adapter_unavailable"),
        (StorageError("secret-bucket/key"), "adapter_unavailable"),
        (ValueError("secret-bucket/key"), "internal"),
    ],
)
async def test_each_failure_has_its_kind_and_tells_no_places(error: Exception, kind: str) -> None:
    async with loading() as rig:
        rig.tiers.errors["x"] = error
        rig.loader.start(ref("x"))
        result = await rig.next()
        assert isinstance(result, LoadFailed)
        assert result.failure.kind == kind
        assert "secret" not in result.failure.message
        assert (result.failure.retry_after_s is not None) == (kind == "adapter_unavailable")


async def test_bytes_that_are_no_adapter_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with loading() as rig:
        rig.loader.start(ref("x"))
        result = await rig.next()
        assert isinstance(result, LoadFailed)
        assert result.failure.kind == "adapter_corrupt"
        assert [held.released for held in rig.tiers.held] == [1]


async def test_a_lease_lasts_until_it_is_released_or_the_loader_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.loader.read_packed", lambda data: "parsed")
    async with loading() as rig:
        for name in ("x", "y"):
            rig.loader.start(ref(name))
            result = await rig.next()
            assert isinstance(result, LoadArrived)
            assert result.way.source == "disk"
            assert [visit.tier for visit in result.way.visits] == ["disk", "memory"]
        rig.loader.release("x")
        assert [held.released for held in rig.tiers.held] == [1, 0]
    assert [held.released for held in rig.tiers.held] == [1, 1]


async def test_a_warm_up_keeps_nothing_and_fails_silently() -> None:
    async with loading() as rig:
        rig.tiers.errors["bad"] = ObjectMissing("gone")
        rig.loader.warm(ref("bad"))
        rig.loader.warm(ref("x"))
        result = await rig.next()
        assert isinstance(result, LoadWarmed)
        assert result.digest == "x"
        assert [held.released for held in rig.tiers.held] == [1]
        assert rig.results.empty()


async def test_warm_ups_are_bounded_and_never_stand_before_starts() -> None:
    async with loading(max_warm=3, num_warmers=1) as rig:
        rig.tiers.gate.clear()
        for index in range(10):
            rig.loader.warm(ref(f"w{index}"))
            rig.loader.warm(ref(f"w{index}"))
        assert rig.loader.num_dropped == 14
        rig.tiers.errors["x"] = ObjectMissing("gone")
        rig.loader.start(ref("x"))
        rig.tiers.gate.set()
        results = [await rig.next() for _ in range(4)]
        assert {result.digest for result in results} == {"x", "w0", "w1", "w2"}


async def test_a_long_list_of_wishes_is_brought_whole() -> None:
    async with loading(max_warm=3) as rig:
        for index in range(300):
            rig.loader.warm(ref(f"w{index}"), soon=False)
        assert {(await rig.next()).digest for _ in range(300)} == {f"w{index}" for index in range(300)}
        assert rig.loader.num_dropped == 0


async def test_loads_at_once_are_bounded() -> None:
    async with loading(num_workers=2) as rig:
        rig.tiers.gate.clear()
        for index in range(8):
            rig.loader.start(AdapterRef(f"x{index}", "k", 1, 8, "f"))
        while rig.tiers.at_once < 2:
            await asyncio.sleep(0)
        rig.tiers.gate.set()
        for _ in range(8):
            await rig.next()
        assert rig.tiers.most_at_once == 2


async def test_what_is_stopped_ends_at_once_wherever_it_is() -> None:
    async with loading(num_workers=1) as rig:
        rig.tiers.gate.clear()
        for name in ("under way", "queued", "wanted"):
            rig.loader.start(ref(name))
        while not rig.tiers.at_once:
            await asyncio.sleep(0)
        rig.loader.stop("nobody's")
        rig.loader.stop("queued")
        rig.loader.stop("under way")
        rig.loader.stop("under way")
        assert [await rig.next() for _ in range(2)] == [LoadStopped("under way"), LoadStopped("queued")]
        while not rig.tiers.at_once:
            await asyncio.sleep(0)
        rig.tiers.gate.set()
        assert (await rig.next()).digest == "wanted"
        rig.loader.start(ref("queued"))
        assert isinstance(await rig.next(), LoadFailed), "and may be started again"
        assert len(rig.tiers.held) == 2


async def test_warm_ups_for_a_request_stop_with_it_and_wishes_do_not() -> None:
    async with loading(num_warmers=1) as rig:
        rig.tiers.gate.clear()
        for name in ("under way", "queued", "both", "wish"):
            rig.loader.warm(ref(name), soon=name != "wish")
        rig.loader.warm(ref("both"), soon=False)
        while not rig.tiers.at_once:
            await asyncio.sleep(0)
        for name in ("under way", "queued", "both", "wish"):
            rig.loader.stop(name)
        rig.tiers.gate.set()
        results = [await rig.next() for _ in range(2)]
        assert [(type(each), each.digest) for each in results] == [(LoadWarmed, "both"), (LoadWarmed, "wish")]
        rig.loader.warm(ref("queued"))
        assert (await rig.next()).digest == "queued", "and may be asked for again"
        assert [held.released for held in rig.tiers.held] == [1, 1, 1]


async def test_a_stop_that_comes_too_late_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.loader.read_packed", lambda data: "parsed")
    async with loading() as rig:
        rig.loader.start(ref("x"))
        assert isinstance(await rig.next(), LoadArrived)
        rig.loader.stop("x")
        rig.loader.start(ref("y"))
        assert isinstance(await rig.next(), LoadArrived)
        assert [held.released for held in rig.tiers.held] == [0, 0]


async def test_forget_reaches_the_tiers_and_survives_their_failure() -> None:
    async with loading() as rig:
        rig.tiers.errors["bad"] = StorageUnavailable("down")
        rig.loader.forget("bad")
        rig.loader.forget("x")
        async with asyncio.timeout(5):
            while rig.tiers.forgotten != ["x"]:
                await asyncio.sleep(0)


async def test_pins_are_kept_changed_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.loader.PIN_RETRY_S", 0.01)
    async with loading() as rig, asyncio.timeout(5):
        rig.tiers.errors["y"] = StorageUnavailable("down")
        rig.loader.pin([ref("x"), ref("y")])
        while rig.tiers.kept != {"x"}:
            await asyncio.sleep(0)
        del rig.tiers.errors["y"]
        while rig.tiers.kept != {"x", "y"}:
            await asyncio.sleep(0.001)
        rig.loader.pin([ref("y"), ref("z")])
        while rig.tiers.kept != {"y", "z"}:
            await asyncio.sleep(0)
        rig.loader.pin([])
        while rig.tiers.kept:
            await asyncio.sleep(0)


async def test_only_who_brings_a_new_object_undoes_what_is_known_to_be_missing() -> None:
    async with loading() as rig:
        rig.loader.warm(ref("x"), soon=True)
        await rig.next()
        rig.loader.warm(ref("y"), soon=False)
        await rig.next()
        assert (rig.tiers.anew, rig.tiers.purposes) == (["y"], ["soon", "wish"])


async def test_memory_is_filled_again_only_when_asked_and_its_failure_hurts_nobody() -> None:
    for refill in (False, True):
        rig = Rig(refill=refill)
        rig.tiers.errors["refill"] = StorageUnavailable("down")
        rig.tiers.errors["x"] = ObjectMissing("gone")
        task = asyncio.create_task(rig.loader.run())
        rig.loader.start(ref("x"))
        assert isinstance(await rig.next(), LoadFailed)
        assert rig.tiers.refills == refill
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
