"""The operator's verbs on the adapter tiers: who is pinned follows versions and aliases; names; the admin socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from gateway.admin import admin_app
from gateway.cache_care import CacheCare
from gateway.errors import BadInput, ObjectNotFound, RuntimeUnavailable
from gateway.ids import PUBLIC_ACCOUNT_ID
from gateway.settings import Tiers
from runtime.errors import RuntimeLost
from runtime.protocol import AdapterRef, CachedAdapter, CacheReport, Stats, TierReport
from storage.errors import StorageUnavailable
from tests.gateway.finetune_calls import make_ready, replace
from tests.gateway.plane import MODEL, OTHER_MODEL, Plane, Tenant


class RecordingCache:
    """Stands where a runtime's tiers would."""

    def __init__(self) -> None:
        self.pinned: list[str] = []
        self.connected: list[Callable[[], None]] = []
        self.prefetched: list[str] = []
        self.forgotten: list[str] = []
        self.adapters: tuple[CachedAdapter, ...] = ()
        self.lost = False

    def pin(self, adapters: Sequence[AdapterRef]) -> None:
        self.pinned = [adapter.digest for adapter in adapters]

    def on_connect(self, told: Callable[[], None]) -> None:
        self.connected.append(told)

    async def prefetch(self, adapter: AdapterRef) -> None:
        self.prefetched.append(adapter.digest)

    async def forget(self, digest: str) -> None:
        self.forgotten.append(digest)

    async def cache_report(self) -> CacheReport:
        if self.lost:
            raise RuntimeLost("the runtime went away")
        return CacheReport(
            1, (TierReport(tier="device", max_bytes=64),), self.adapters, Stats(start_s=9.5, graph_captures=4)
        )


@pytest.fixture
def cache(plane: Plane) -> RecordingCache:
    cache = RecordingCache()
    object.__setattr__(plane.services, "caches", CacheCare(plane.finetunes, {MODEL: cache}, Tiers()))
    return cache


@pytest.fixture
async def operator(plane: Plane, cache: RecordingCache) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(admin_app(plane.services))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as http:
        yield http


async def digests(plane: Plane, tenant: Tenant, name: str) -> dict[int, str]:
    found = await plane.finetunes.get(tenant.id, name)
    return {version.number: version.digest or "" for version in found.versions}


async def care(operator: httpx.AsyncClient, verb: str, reference: Any, status: int = 200) -> Any:
    reply = await operator.post(f"/cache/{verb}", json={"finetune": reference})
    assert reply.status_code == status, reply.text
    return reply.json() if status == 200 else reply.json()["errors"][0]["code"]


async def test_pins_follow_what_the_aliases_mean(
    plane: Plane, tenant: Tenant, cache: RecordingCache, operator: httpx.AsyncClient
) -> None:
    finetune = await make_ready(plane, tenant, "x", seed=1)
    await make_ready(plane, tenant, "other", seed=9)
    named = await care(operator, "pin", f"{tenant.id}/x")
    of = await digests(plane, tenant, "x")
    assert named == {"id": finetune, "account": tenant.id, "name": "x", "digests": [of[1]]}
    assert cache.pinned == [of[1]]
    assert (await plane.call(tenant, "GET", "/x"))["pinned"] is True
    await replace(plane, tenant, "x", 2)
    of = await digests(plane, tenant, "x")
    assert cache.pinned == [of[2]]
    await plane.call(tenant, "PUT", "/x/aliases/default", {"version": 1, "canary": {"version": 2, "percent": 5}})
    assert sorted(cache.pinned) == sorted(of.values())
    await care(operator, "unpin", finetune)
    assert cache.pinned == []
    await care(operator, "pin", finetune)
    await plane.call(tenant, "DELETE", "/x")
    assert cache.pinned == []


async def test_what_is_not_pinned_costs_no_look(plane: Plane, tenant: Tenant, cache: RecordingCache) -> None:
    cache.pinned = ["untouched"]
    await make_ready(plane, tenant, "x", seed=1)
    await replace(plane, tenant, "x", 2)
    await plane.call(tenant, "DELETE", "/x")
    assert cache.pinned == ["untouched"]


async def test_warm_and_evict(plane: Plane, tenant: Tenant, cache: RecordingCache, operator: httpx.AsyncClient) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    await replace(plane, tenant, "x", 2)
    of = await digests(plane, tenant, "x")
    await care(operator, "warm", f"{tenant.id}/x")
    assert cache.prefetched == [of[2]]
    await care(operator, "evict", f"{tenant.id}/x")
    assert sorted(cache.forgotten) == sorted(of.values())
    await care(operator, "pin", f"{tenant.id}/x")
    assert await care(operator, "evict", f"{tenant.id}/x", 400) == 5006


@pytest.mark.parametrize("verb", ["pin", "unpin", "warm", "evict"])
async def test_names_that_mean_nothing(
    plane: Plane, tenant: Tenant, operator: httpx.AsyncClient, cache: RecordingCache, verb: str
) -> None:
    await make_ready(plane, tenant, "x")
    for reference in ("x", f"{tenant.id}/y", "nobody/x", "/x", "../x", "cf-public-none", f"{tenant.id}/../x"):
        assert await care(operator, verb, reference, 404) == 7003
    for wrong in ("", None, 5, ["x"]):
        assert await care(operator, verb, wrong, 400) == 5006
    assert await care(operator, "drop", "x", 400) == 5006
    assert (cache.pinned, cache.prefetched, cache.forgotten) == ([], [], [])


async def test_what_is_not_ready_and_what_no_runtime_serves(
    plane: Plane, tenant: Tenant, cache: RecordingCache, operator: httpx.AsyncClient
) -> None:
    unready = await plane.create(tenant, "unready")
    for verb in ("pin", "warm"):
        assert await care(operator, verb, unready, 400) == 5006
    elsewhere = await plane.create(tenant, "elsewhere", OTHER_MODEL)
    with pytest.raises((RuntimeUnavailable, BadInput)):
        await plane.services.caches.warm(elsewhere)
    assert cache.pinned == []


async def test_the_report_names_owners(
    plane: Plane, tenant: Tenant, cache: RecordingCache, operator: httpx.AsyncClient
) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    twin = await plane.tenant("twin")
    await make_ready(plane, twin, "same weights", seed=1)
    (digest,) = (await digests(plane, tenant, "x")).values()
    cache.adapters = (CachedAdapter(digest, 100, device=True), CachedAdapter("f" * 64, 7, disk=True))
    report = (await operator.get("/cache")).json()
    assert report[MODEL]["tiers"][0]["max_bytes"] == 64
    first, second = report[MODEL]["adapters"]
    assert {(o["account"], o["name"], o["version"]) for o in first["owners"]} == {
        (tenant.id, "x", 1),
        (twin.id, "same weights", 1),
    }
    assert (first["device"], first["disk"], second["owners"]) == (True, False, [])
    about = report[MODEL]["runtime"]
    assert (about["start_s"], about["graph_captures"], about["graph_capture_s"], about["running"]) == (9.5, 4, 0.0, 0)
    cache.lost = True
    lost = (await operator.get("/cache")).json()[MODEL]
    assert (lost["problem"], lost["runtime"]) == ("the runtime went away", {})


async def test_every_runtime_that_comes_is_warmed_up_with_what_the_names_mean_then(
    plane: Plane, tenant: Tenant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        await make_ready(plane, tenant, name, seed=number)
    model = plane.catalog.get(MODEL)
    for name in ("c", "b"):
        with plane.finetunes.uses.hold(await plane.finetunes.resolve(tenant.identity, model, name), "r"):
            pass
    await plane.finetunes.write_uses()
    cache, other = RecordingCache(), RecordingCache()
    settings = Tiers(warm_up=(f"{tenant.id}/d", "nothing", f"{PUBLIC_ACCOUNT_ID}/later"), warm_up_recent=1)
    care = CacheCare(plane.finetunes, {MODEL: cache, OTHER_MODEL: other}, settings)
    await care.start()

    async def warmed(count: int) -> list[str]:
        cache.prefetched.clear()
        cache.connected[0]()
        async with asyncio.timeout(10):
            while len(cache.prefetched) < count:
                await asyncio.sleep(0)
        return list(cache.prefetched)

    first = {name: (await digests(plane, tenant, name))[1] for name in "bd"}
    assert await warmed(2) == [first["b"], first["d"]]
    assert caplog.text.count("tiers.warm_up: there is no finetune") == 2
    await replace(plane, tenant, "d", 9)
    second = (await digests(plane, tenant, "d"))[2]
    assert second != first["d"]
    with monkeypatch.context() as patched:
        patched.setattr(plane.finetunes, "list_recent", broken)
        cache.connected[0]()
        while "nothing is warmed up: gone" not in caplog.text:
            await asyncio.sleep(0)
    await plane.finetunes.delete(tenant.id, "b")
    found = await warmed(2)
    assert found == [(await digests(plane, tenant, "c"))[1], second]
    assert other.prefetched == []
    await care.aclose()


async def broken(limit: int) -> Any:
    raise StorageUnavailable("gone")


async def test_the_operator_finds_anybodys_by_id(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    assert (await plane.finetunes.find_for_operator(finetune)).name == "x"
    with pytest.raises(ObjectNotFound, match="ACCOUNT_ID/NAME"):
        await plane.finetunes.find_for_operator("0" * 36)
