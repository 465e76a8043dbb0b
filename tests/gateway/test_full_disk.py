"""The gateway's own disk is full: what is there can be read and used, uploads are refused, and removing still works."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.ingest.reserve import Reserve
from storage.errors import StorageFull
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, replace
from tests.gateway.plane import MODEL, Plane, open_plane
from tests.small_disk import mounted

DISK_MIB = 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    with mounted(tmp_path / "small", f"{DISK_MIB}m") as folder:
        yield folder


@pytest.fixture
async def small(small_disk: Path) -> AsyncIterator[Plane]:
    async with open_plane(small_disk) as plane:
        await plane.finetunes.sweep()
        yield plane


def fill(folder: Path) -> None:
    """To the last byte."""
    with (folder / "junk").open("ab", buffering=0) as file:
        for piece in (4096, 1):
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                continue


async def test_a_full_disk_can_be_emptied(small: Plane) -> None:
    tenant = await small.tenant("one")
    for number in range(3):
        await make_ready(small, tenant, f"a{number}", seed=number)
    assert await replace(small, tenant, "a2", seed=7) == 2
    opened = await small.create(tenant, "open")
    fill(small.folder)

    assert [row["name"] for row in await small.call(tenant, "GET", "")] == ["a0", "a1", "a2", "open"]
    assert (await small.finetunes.resolve(tenant.identity, small.catalog.get(MODEL), "a1")).version == 1
    before = small.stored()
    for _ in range(2):
        with pytest.raises(StorageFull):
            await small.upload(tenant, opened, WEIGHTS_FILE, tiny.weights())
        with pytest.raises(StorageFull):
            await small.create(tenant, "one more")
    assert small.stored() == before
    assert small.spooled() == []
    assert (await small.finetunes.get(tenant.id, opened)).status == "pending"

    keys = set((await small.finetunes.get(tenant.id, "a0")).versions[0].keys)
    await small.call(tenant, "DELETE", "/a0")
    assert not keys & set(small.stored())
    assert small.spooled() == []
    fill(small.folder)  # whatever was left over
    await small.call(tenant, "DELETE", "/a2/versions/1")
    assert [version.number for version in (await small.finetunes.get(tenant.id, "a2")).versions] == [2]

    os.truncate(small.folder / "junk", 100)
    for file_name, data in ((WEIGHTS_FILE, tiny.weights()), (CONFIG_FILE, tiny.config())):
        assert (await small.upload(tenant, opened, file_name, data)).status_code == 200
    assert (small.folder / "reserve").stat().st_size > 0


async def test_without_the_reserve_it_could_not(small: Plane) -> None:
    """The guard removed: the same deletion fails, and leaves everything as it was."""
    tenant = await small.tenant("one")
    await make_ready(small, tenant, "a")
    before = small.stored()
    fill(small.folder)
    (small.folder / "reserve").unlink()
    fill(small.folder)
    with pytest.raises(StorageFull):
        await small.call(tenant, "DELETE", "/a")
    assert small.stored() == before
    assert (await small.finetunes.get(tenant.id, "a")).status == "ready"
    (small.folder / "junk").unlink()
    await small.call(tenant, "DELETE", "/a")
    assert small.stored() == []


async def test_room_is_asked_for_once(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    assert await reserve.make()
    calls = 0

    async def full() -> None:
        nonlocal calls
        calls += 1
        raise StorageFull("no room")

    with pytest.raises(StorageFull):
        await reserve.even_if_full(full)
    assert calls == 2
    assert (tmp_path / "reserve").stat().st_blocks > 0, "and it is made again"

    async def fine() -> int:
        return 5

    assert await reserve.even_if_full(fine) == 5
    (tmp_path / "reserve").unlink()
    with pytest.raises(StorageFull):
        await reserve.even_if_full(full)
    assert calls == 3
