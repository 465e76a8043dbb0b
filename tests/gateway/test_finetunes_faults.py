"""Finetunes under races, cancellation, kills and failing storage: rows and objects always agree."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable

import pytest

from gateway import errors
from gateway.errors import BadInput, ObjectNotFound, OverCapacity
from gateway.finetunes import Finetunes
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.ingest.spool import Spool
from runtime.errors import RuntimeLost
from storage.errors import StorageError, StorageFull, StorageUnavailable
from storage.objects.base import single
from storage.objects.local import LocalObjects
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, nothing_left, parts_of
from tests.gateway.plane import LIMITS, Plane, Tenant


async def test_two_uploads_at_once_are_serialised(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    results = await asyncio.gather(
        plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config())),
        plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights())),
    )
    assert sorted(version.status for _, version in results) == ["pending", "ready"]
    assert len(plane.stored()) == 3


async def test_two_uploads_of_the_same_file_end_as_one_of_them(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    results = await asyncio.gather(
        *(
            plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed))))
            for seed in range(4)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, BadInput)]
    assert len(refused) == 3
    assert len(plane.stored()) == 3
    found = await plane.finetunes.get(tenant.id, finetune)
    packed = (plane.folder / "objects" / str(found.object_key)).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == found.digest


async def test_too_many_uploads_at_once_are_refused_not_queued(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    gate = asyncio.Event()
    uploads = [
        asyncio.create_task(plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config(), gate)))
        for _ in range(8)
    ]
    while len(plane.spooled()) < 8:
        await asyncio.sleep(0)
    with pytest.raises(OverCapacity):
        await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    gate.set()
    await asyncio.gather(*uploads)
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    assert len(plane.stored()) == 1


async def test_cancelled_at_every_point_leaves_no_object_without_a_row(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    for power in range(80):
        task = asyncio.create_task(plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights())))
        for _ in range(int(1.2**power)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await plane.finetunes.get(tenant.id, finetune)
        rows = {key for version in found.versions for key in version.keys}
        assert set(plane.stored()) == rows
        assert plane.spooled() == []
        if found.status == "ready":
            return
    pytest.fail("no upload was given enough time to end")


async def test_an_upload_that_loses_against_a_delete(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    gate = asyncio.Event()
    upload = asyncio.create_task(
        plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config(), gate))
    )
    while not plane.spooled():
        await asyncio.sleep(0)
    await plane.finetunes.delete(tenant.id, finetune)
    gate.set()
    with pytest.raises(ObjectNotFound):
        await upload
    assert nothing_left(plane)


async def test_what_a_killed_process_left_is_swept_at_the_next_start(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "kept")
    kept = await plane.finetunes.get(tenant.id, finetune)
    orphan = f"adapters/{tenant.id}/{'0' * 64}.lora"
    await plane.objects.put(orphan, single(b"half a commit"), max_bytes=100)
    abandoned = Spool(plane.folder / "spool").scratch()
    scratch = await abandoned.__aenter__()
    await scratch.note([orphan, str(kept.object_key), "adapters/never/written"])

    restarted = Finetunes(plane.database, plane.objects, plane.catalog, LIMITS, plane.folder / "spool")
    assert await restarted.sweep() == 1
    assert orphan not in plane.stored()
    assert kept.object_key in plane.stored()
    # The notes stay until runtimes have heard of it, however often somebody is killed before.
    assert plane.spooled() != []
    heard = list[str]()

    async def deaf(digest: str) -> None:
        raise RuntimeLost("not yet")

    async def hear(digest: str) -> None:
        heard.append(digest)

    with pytest.raises(RuntimeLost):
        await restarted.forget_swept(deaf)
    again = Finetunes(plane.database, plane.objects, plane.catalog, LIMITS, plane.folder / "spool")
    assert await again.sweep() == 1
    await again.forget_swept(hear)
    assert heard == ["0" * 64], "weights that a version has are not forgotten"
    assert plane.spooled() == []
    assert await again.sweep() == 0


class FailingStore:
    """The local store, but its nth put or delete finds a full or absent disk."""

    def __init__(self, inner: LocalObjects, fail_at: int, after: bool) -> None:
        self._inner = inner
        self._left = fail_at
        self._after = after

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise StorageFull("no room")
        size = await self._inner.put(key, data, max_bytes=max_bytes)
        if self._left == 0:
            raise StorageUnavailable("stored, but the answer was lost")
        return size

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._inner.get(key, start=start, length=length)

    async def size(self, key: str) -> int:
        return await self._inner.size(key)

    async def delete(self, key: str) -> None:
        await self._inner.delete(key)

    async def aclose(self) -> None:
        """The inner store is closed by its owner."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", [1, 2])
async def test_a_failing_object_store_changes_nothing(plane: Plane, tenant: Tenant, fail_at: int, after: bool) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    before, stored = await plane.finetunes.get(tenant.id, finetune), plane.stored()
    store = FailingStore(plane.objects, fail_at, after)
    failing = Finetunes(plane.database, store, plane.catalog, LIMITS, plane.folder / "spool")
    with pytest.raises(StorageError):
        await failing.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights()))
    assert await plane.finetunes.get(tenant.id, finetune) == before
    assert plane.stored() == stored
    assert plane.spooled() == []
    assert (await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())).json()["result"]["status"] == "ready"


async def test_a_damaged_stored_file_is_noticed(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    path = plane.folder / "objects" / plane.stored()[0]
    path.write_bytes(tiny.config().replace(b"8", b"9"))
    with pytest.raises(errors.StorageUnavailable, match=f"the stored {CONFIG_FILE} is damaged"):
        await plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights()))
    assert (await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())).status_code == 200
    assert (await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())).json()["result"]["status"] == "ready"
