"""The tiers over a real S3 server whose answers go wrong: what can be mended is mended, the rest ends, and soon."""

import asyncio
import contextlib
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.downloads import PART_BYTES, Downloads
from storage.errors import ObjectCorrupt, ObjectMissing, StorageUnavailable
from storage.objects.base import single
from storage.objects.s3 import S3Objects
from storage.tiers import Tiers
from tests.storage.objects import swift
from tests.storage.objects.fault_proxy import Fault, FaultProxy, before
from tests.storage.objects.s3_stores import make_bucket, open_store
from tests.storage.tier_checks import no_pause, put_aside, settled

BUCKET = "adapters"
LARGE = 5 * PART_BYTES + 12345


async def _open(endpoint: str, **changes: Any) -> S3Objects:
    """A store that asks once."""
    return await open_store(endpoint, BUCKET, **{"max_attempts": 1, **changes})


class Rig:
    """Tiers that fetch through the proxy; objects are put past it."""

    def __init__(self, proxy: FaultProxy, tiers: Tiers, direct: S3Objects) -> None:
        self.proxy, self.tiers, self._direct = proxy, tiers, direct

    async def add(self, size: int) -> tuple[tuple[str, str, int], bytes]:
        data = os.urandom(size)
        digest = hashlib.sha256(data).hexdigest()
        await self._direct.put(f"adapters/{digest}", single(data), max_bytes=size)
        return (digest, f"adapters/{digest}", size), data


@contextlib.asynccontextmanager
async def rigged(server: swift.Swift, tmp_path: Path, **options: Any) -> AsyncIterator[Rig]:
    direct = await _open(server.endpoint, max_attempts=6)  # a busy machine's Swift asks for patience now and then
    await make_bucket(direct, BUCKET)
    async with before(server.port) as proxy:
        store = await _open(proxy.endpoint, **options)
        tiers = Tiers(
            store,
            tmp_path / "tiers",
            memory_bytes=200_000_000,
            disk_bytes=200_000_000,
            downloads=Downloads(store, parallel=4, sleep=no_pause),
        )
        await tiers.open()
        try:
            yield Rig(proxy, tiers, direct)
        finally:
            await settled(tiers)
            await tiers.aclose()
            await store.aclose()
            await direct.aclose()


async def test_a_large_object_comes_in_ranges(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(LARGE)
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data
        ranges = sorted(rig.proxy.gets, key=lambda text: int(text.removeprefix("bytes=").split("-")[0]))
        assert ranges == [
            f"bytes={start}-{min(start + PART_BYTES, LARGE) - 1}" for start in range(0, LARGE, PART_BYTES)
        ]
        small, data = await rig.add(1000)
        with await rig.tiers.fetch(*small) as fetched:
            assert fetched.data == data
        assert rig.proxy.gets[-1] == ""


@pytest.mark.parametrize("size", [50_000, LARGE])
@pytest.mark.parametrize("fault", ["throttle", "error", "reset", "cut"])
async def test_what_goes_wrong_once_is_mended(server: swift.Swift, tmp_path: Path, fault: Fault, size: int) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(size)
        rig.proxy.plan = deque([fault])
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data
        assert rig.tiers.stats()["object"].retries == 1
        assert rig.tiers.stats()["object"].failures == 0


@pytest.mark.parametrize("fault", ["throttle", "error", "reset", "cut"])
async def test_what_goes_wrong_always_ends(server: swift.Swift, tmp_path: Path, fault: Fault) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(50_000)
        rig.proxy.always = fault
        if fault in ("reset", "cut"):
            # Each attempt brings half of what is left: that is progress, until the attempts are used up.
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(rig.tiers.fetch(*wanted), 30)
        else:
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(rig.tiers.fetch(*wanted), 30)
        assert len(rig.proxy.gets) == 5
        rig.proxy.always = None
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data


async def test_an_outage_is_not_asked_about_without_end(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted = [(await rig.add(1000 + n))[0] for n in range(40)]
        rig.proxy.always = "throttle"
        results = await asyncio.gather(*(rig.tiers.fetch(*each) for each in wanted), return_exceptions=True)
        assert [type(each) for each in results] == [StorageUnavailable] * 40
        assert len(rig.proxy.gets) <= 40 + 10 + 8


async def test_a_flipped_bit_is_noticed_put_aside_and_fetched_again(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(LARGE)
        rig.proxy.plan = deque([None, None, "flip"])
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data
        await settled(rig.tiers)
        assert put_aside(tmp_path) == [wanted[0]]
        assert rig.tiers.stats()["disk"].quarantined == 1
        rig.proxy.always = "flip"
        other, _ = await rig.add(50_000)
        for _ in range(3):
            with pytest.raises(ObjectCorrupt):
                await rig.tiers.fetch(*other)
        assert rig.tiers.stats()["object"].negative_hits == 2


async def test_a_server_that_says_nothing_is_given_up(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path, request_timeout_s=0.3) as rig:
        wanted, data = await rig.add(50_000)
        rig.proxy.plan = deque(["silent"])
        with await asyncio.wait_for(rig.tiers.fetch(*wanted), 20) as fetched:
            assert fetched.data == data


async def test_slow_bytes_are_given_up(server: swift.Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand bytes now and then keep a connection alive for ever; a whole download has an end."""
    monkeypatch.setattr("storage.downloads.PATIENCE_S", 0.5)
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(50_000)
        rig.proxy.plan = deque(["slow"])
        with pytest.raises(StorageUnavailable, match="did not come in time"):
            await asyncio.wait_for(rig.tiers.fetch(*wanted), 20)
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data


async def test_missing_costs_one_question(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path) as rig:
        for _ in range(5):
            with pytest.raises(ObjectMissing):
                await rig.tiers.fetch("0" * 64, "adapters/none", 100)
        assert len(rig.proxy.gets) == 1 + rig.tiers.stats()["object"].retries  # the server itself may be busy once


async def test_a_download_that_nobody_waits_for_stops(server: swift.Swift, tmp_path: Path) -> None:
    async with rigged(server, tmp_path) as rig:
        wanted, data = await rig.add(LARGE)
        rig.proxy.plan = deque(["slow"] * 6)
        leaving = asyncio.create_task(rig.tiers.fetch(*wanted))
        while len(rig.proxy.gets) < 4:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(5):
            while rig.tiers._loads:
                await asyncio.sleep(0.001)
        assert len(rig.proxy.gets) == 4
        rig.proxy.plan.clear()
        with await rig.tiers.fetch(*wanted) as fetched:
            assert fetched.data == data


async def test_region_auto_as_r2_wants_it(tmp_path: Path) -> None:
    """A real server that signs for the region "auto": endpoint and region are all that R2 needs."""
    reason = swift.why_not(tmp_path)
    if reason:
        pytest.skip(reason)
    running = await asyncio.to_thread(swift.start, tmp_path / "server", "auto")
    try:
        store = await _open(running.endpoint, region="auto", max_attempts=6)
        await make_bucket(store, BUCKET)
        data = os.urandom(9_000_000)
        await store.put("adapters/x", single(data), max_bytes=len(data))
        down = Downloads(store, parallel=4)
        assert b"".join([bytes(chunk) async for chunk in down.chunks("adapters/x", len(data))]) == data
        await store.delete("adapters/x")
        with pytest.raises(ObjectMissing):
            await store.size("adapters/x")
        assert store._client.meta.region_name == "auto"
        await store.aclose()
    finally:
        await asyncio.to_thread(running.stop)
