"""The tiers, one behaviour at a time. Schedules in general are in `test_tiers_schedules.py`."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    StorageUnavailable,
)
from storage.files import NewFile
from storage.objects.base import single
from storage.objects.local import LocalObjects
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import KIB, Open, files, legs, put_aside, settled


async def test_the_way_up_and_the_short_cuts(open_tiers: Open, objects: GatedObjects) -> None:
    data = os.urandom(10 * KIB)
    wanted = objects.add(data)
    tiers = await open_tiers()
    assert (tiers.state(wanted[0]), tiers.resident(wanted[0])) == ("absent", None)
    with await tiers.fetch(*wanted) as cold:
        assert cold.data == data
        assert legs(cold) == ["object", "disk", "memory"]
        assert all(visit.seconds > 0 and visit.size_bytes == len(data) for visit in cold.visits)
    assert (tiers.state(wanted[0]), tiers.resident(wanted[0])) == ("host", "memory")
    with await tiers.fetch(*wanted) as warm:
        assert warm.data == data
        assert [(visit.tier, visit.seconds) for visit in warm.visits] == [("memory", 0.0)]
    await settled(tiers)
    await tiers.aclose()
    again = await open_tiers()
    assert (again.state(wanted[0]), again.resident(wanted[0])) == ("disk", "disk")
    with await again.fetch(*wanted) as restarted:
        assert restarted.data == data
        assert legs(restarted) == ["disk", "memory"]
    assert objects.reads[wanted[1]] == 1


async def test_states_on_the_way(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(KIB))
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers(memory=KIB)
    task = asyncio.create_task(tiers.fetch(*wanted))
    await waiting.wait()
    assert (tiers.state(wanted[0]), tiers.resident(wanted[0])) == ("fetching", None)
    objects.let(wanted[1])
    (await task).release()
    assert tiers.state(wanted[0]) == "host"


async def test_a_thousand_fetches_are_one_download(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(10 * KIB))
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    tasks = [asyncio.create_task(tiers.fetch(*wanted)) for _ in range(1000)]
    await waiting.wait()
    objects.let(wanted[1])
    held = await asyncio.gather(*tasks)
    assert objects.reads[wanted[1]] == 1
    assert {each.visits for each in held} == {held[0].visits}
    assert tiers._memory.ledger.pins(wanted[0]) == 1000
    for each in held:
        each.release()
        each.release()
    assert tiers._memory.ledger.pins(wanted[0]) == 0
    with pytest.raises(ValueError, match="released"):
        _ = held[0].data


async def test_a_failure_reaches_every_waiter_and_is_forgotten(open_tiers: Open, objects: GatedObjects) -> None:
    data = os.urandom(KIB)
    wanted = objects.add(data)
    objects.failures[wanted[1]] = StorageUnavailable("no network")
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    tasks = [asyncio.create_task(tiers.fetch(*wanted)) for _ in range(5)]
    await waiting.wait()
    objects.let(wanted[1])
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results] == [StorageUnavailable] * 5
    assert len({id(each) for each in results}) == 5
    del objects.failures[wanted[1]]
    with await tiers.fetch(*wanted) as fetched:
        assert fetched.data == data
    assert tiers.stats()["object"].failures == 1


async def test_missing_is_remembered_for_a_while(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    now = [0.0]
    tiers = await open_tiers(negative_ttl_s=5.0, timer=lambda: now[0])
    wanted = ("0" * 64, "not/there", 100)
    for at, asked in ((0.0, 1), (4.9, 1), (5.1, 2), (9.0, 2), (10.2, 3)):
        now[0] = at
        with pytest.raises(ObjectMissing):
            await tiers.fetch(*wanted)
        assert objects.reads["not/there"] == asked
    assert (tiers.stats()["object"].misses, tiers.stats()["object"].negative_hits) == (3, 2)
    with pytest.raises(ObjectMissing):
        await tiers.fetch(*wanted, anew=True)
    await tiers.forget(wanted[0])
    with pytest.raises(ObjectMissing):
        await tiers.fetch(*wanted)
    assert objects.reads["not/there"] == 5
    assert (files(tmp_path), tiers.stats()["disk"].used_bytes) == ([], 0)


async def test_what_came_meanwhile_is_found_when_it_is_asked_for_anew(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(100))
    data = objects.data.pop(wanted[1])
    tiers = await open_tiers(negative_ttl_s=1000.0)
    with pytest.raises(ObjectMissing):
        await tiers.fetch(*wanted)
    objects.data[wanted[1]] = data
    with pytest.raises(ObjectMissing):
        await tiers.fetch(*wanted)
    (await tiers.fetch(*wanted, anew=True)).release()


async def test_an_outage_is_not_remembered(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(100))
    objects.failures[wanted[1]] = StorageUnavailable("no network")
    tiers = await open_tiers(negative_ttl_s=1000.0)
    with pytest.raises(StorageUnavailable):
        await tiers.fetch(*wanted)
    del objects.failures[wanted[1]]
    (await tiers.fetch(*wanted)).release()


@pytest.mark.parametrize("bad", [b"", b"x" * 999, b"x" * 1000, b"x" * 1001, b"x" * 100_000])
async def test_an_object_that_is_not_what_it_should_be(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path, bad: bytes
) -> None:
    digest, key, size = objects.add(os.urandom(1000))
    objects.data[key] = bad
    tiers = await open_tiers(negative_ttl_s=0.0)
    with pytest.raises(ObjectCorrupt):
        await tiers.fetch(digest, key, size)
    assert objects.reads[key] == 2  # once more, and then it is told
    assert files(tmp_path) == []
    assert put_aside(tmp_path) == [digest] * 2
    assert tiers.stats()["disk"].quarantined == 2
    assert tiers.stats()["memory"].used_bytes == tiers.stats()["disk"].used_bytes == 0


async def test_an_object_that_was_damaged_on_its_way_is_fetched_again(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path
) -> None:
    data = os.urandom(1000)
    wanted = objects.add(data)
    objects.spoilt_reads[wanted[1]] = 1
    tiers = await open_tiers()
    with await tiers.fetch(*wanted) as fetched:
        assert fetched.data == data
    await settled(tiers)
    assert objects.reads[wanted[1]] == 2
    assert (files(tmp_path), put_aside(tmp_path)) == ([wanted[0]], [wanted[0]])
    assert tiers.stats()["object"].failures == 1


async def test_only_the_last_few_are_kept_aside(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    tiers = await open_tiers()
    wanted = [objects.add(os.urandom(100)) for _ in range(6)]
    for each in wanted:
        objects.spoilt_reads[each[1]] = 1
        (await tiers.fetch(*each)).release()
    assert put_aside(tmp_path) == sorted(each[0] for each in wanted[2:])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda path: path.unlink(), lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 4000),
     lambda path: (path.unlink(), path.symlink_to("/etc/passwd"))],
)  # fmt: skip
async def test_a_damaged_file_on_disk_is_fetched_again(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    data = os.urandom(5000)
    wanted = objects.add(data)
    tiers = await open_tiers(memory=6000)
    (await tiers.fetch(*wanted)).release()
    (await tiers.fetch(*objects.add(os.urandom(6000)))).release()  # pushes the first one out of memory
    await settled(tiers)
    path = tmp_path / "tiers" / "packed" / wanted[0]
    damage(path)
    with await tiers.fetch(*wanted) as fetched:
        assert fetched.data == data
    assert objects.reads[wanted[1]] == 2
    await settled(tiers)
    assert files(tmp_path).count(wanted[0]) == 1


async def test_a_disk_that_flips_bits_every_time(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    """What comes straight from the object store is right; what comes by way of this disk never is."""
    data = os.urandom(5000)
    wanted = objects.add(data)
    tiers = await open_tiers(memory=9000)  # no room ahead of the bytes: they must come by the disk
    publish = tiers._disk._folder.publish

    def flipping(file: NewFile, digest: str) -> None:
        publish(file, digest)
        _flip(tmp_path / "tiers" / "packed" / digest)

    tiers._disk._folder.publish = flipping  # type: ignore[method-assign]
    for turn in (1, 2):
        with await tiers.fetch(*wanted) as fetched:
            assert fetched.data == data
        await settled(tiers)
        # By way of the disk, found bad, put aside; then straight to memory, and again onto this disk.
        assert objects.reads[wanted[1]] == turn + 1
        assert put_aside(tmp_path).count(wanted[0]) == turn
        (await tiers.fetch(*objects.add(os.urandom(8900)))).release()  # pushes it out of memory
        await settled(tiers)
    assert tiers.stats()["disk"].failures == 4


@pytest.mark.parametrize("step", ["open", "write", "publish"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
async def test_a_disk_that_takes_nothing_is_passed_by(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(NewFile, step, refuse)
    data = os.urandom(KIB)
    wanted = objects.add(data)
    tiers = await open_tiers()
    with await tiers.fetch(*wanted) as fetched:
        assert fetched.data == data
        assert legs(fetched)[-1] == "memory"
    await settled(tiers)
    assert objects.reads[wanted[1]] == 1
    assert tiers.stats()["disk"].refused == 1
    assert (files(tmp_path), tiers.stats()["disk"].used_bytes) == ([], 0)


async def test_no_room_on_disk_is_no_failure(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    small, large = objects.add(os.urandom(500)), objects.add(os.urandom(1500))
    tiers = await open_tiers(disk=1000)
    (await tiers.fetch(*small)).release()
    await settled(tiers)
    with await tiers.fetch(*large) as fetched:
        assert legs(fetched) == ["object", "memory"]
    assert files(tmp_path) == [small[0]]
    objects.data[large[1]] = b"y" * 1500
    await tiers.forget(large[0])
    with pytest.raises(ObjectCorrupt):
        await tiers.fetch(*large)
    assert tiers.stats()["memory"].used_bytes == 500


async def test_larger_than_memory(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(1001))
    tiers = await open_tiers(memory=1000)
    with pytest.raises(ObjectTooLarge, match=r"tiers\.memory_bytes"):
        await tiers.fetch(*wanted)
    assert objects.reads[wanted[1]] == 0


@pytest.mark.parametrize("digest", ["", "A" * 64, "0" * 63, "../" + "0" * 61, "0" * 64 + "\n"])
async def test_what_is_no_digest(open_tiers: Open, digest: str) -> None:
    tiers = await open_tiers()
    with pytest.raises(ValueError, match="not a packed file"):
        await tiers.fetch(digest, "a", 10)
    with pytest.raises(ValueError, match="not a packed file"):
        await tiers.fetch("0" * 64, "a", 0)
    with pytest.raises(ValueError, match="not an object key"):
        await tiers.fetch("0" * 64, "../a", 10)


async def test_least_recently_used_goes_first(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    a, b, c = (objects.add(os.urandom(1000)) for _ in range(3))
    tiers = await open_tiers(memory=2000, disk=2000)
    for each in (a, b, a, c):
        (await tiers.fetch(*each)).release()
        await settled(tiers)
    assert [tiers.resident(each[0]) for each in (a, b, c)] == ["memory", "disk", "memory"]
    assert tiers.stats()["memory"].evictions == 1
    assert files(tmp_path) == sorted((b[0], c[0]))  # the disk saw `a` once, so there it was the oldest


async def test_forget(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    wanted = objects.add(os.urandom(KIB))
    tiers = await open_tiers()
    await tiers.forget("0" * 64)
    held = await tiers.fetch(*wanted)
    await settled(tiers)
    await tiers.forget(wanted[0])
    assert files(tmp_path) == []
    assert len(held.data) == KIB
    assert tiers.resident(wanted[0]) == "memory"
    held.release()
    assert tiers.resident(wanted[0]) is None
    assert tiers.stats()["memory"].used_bytes == 0


async def test_forget_while_it_loads(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    wanted = objects.add(os.urandom(KIB))
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    task = asyncio.create_task(tiers.fetch(*wanted))
    await waiting.wait()
    await tiers.forget(wanted[0])
    objects.let(wanted[1])
    held = await task
    assert len(held.data) == KIB
    held.release()
    await settled(tiers)
    assert tiers.resident(wanted[0]) is None
    assert files(tmp_path) == []


async def test_a_restart_keeps_the_order_of_use_and_a_smaller_budget(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path
) -> None:
    a, b, c = (objects.add(os.urandom(1000)) for _ in range(3))
    tiers = await open_tiers(memory=1000)
    for each in (a, b, c, a):
        (await tiers.fetch(*each)).release()
        await settled(tiers)
    await tiers.aclose()
    again = await open_tiers(disk=2500)
    assert [again.resident(each[0]) for each in (a, b, c)] == ["disk", None, "disk"]
    assert files(tmp_path) == sorted((a[0], c[0]))
    await again.aclose()
    tiny = await open_tiers(disk=999)
    assert (files(tmp_path), tiny.stats()["disk"].used_bytes) == ([], 0)


async def test_a_restart_drops_what_is_no_packed_file(open_tiers: Open, tmp_path: Path) -> None:
    root = tmp_path / "tiers"
    for folder in ("packed", ".incoming"):
        (root / folder).mkdir(parents=True)
    (root / "packed" / "readme.txt").write_bytes(b"x")
    (root / "packed" / ("0" * 64)).write_bytes(b"")
    (root / "packed" / ("1" * 64)).symlink_to("/etc/passwd")
    (root / ".incoming" / "half").write_bytes(b"x" * 100)
    (root / "keep me").write_bytes(b"not ours")
    tiers = await open_tiers()
    assert (files(tmp_path), tiers.stats()["disk"].entries) == ([], 0)
    assert (root / "keep me").exists()
    assert os.path.exists("/etc/passwd")


async def test_over_a_real_store(open_tiers: Open, tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "objects")
    data = os.urandom(5_000_000)
    digest, key, size = GatedObjects().add(data)
    await store.put(key, single(data), max_bytes=size)
    tiers = await open_tiers(store, memory=10_000_000, disk=10_000_000)
    with await tiers.fetch(digest, key, size) as fetched:
        assert fetched.data == data
    await store.aclose()


async def test_too_many_at_once_are_refused(
    open_tiers: Open, objects: GatedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.tiers.MAX_LOADS", 3)
    tiers = await open_tiers()
    wanted = [objects.add(os.urandom(100)) for _ in range(4)]
    for each in wanted:
        objects.hold(each[1])
    tasks = [asyncio.create_task(tiers.fetch(*each)) for each in wanted]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [type(each.exception()) for each in done] == [StorageUnavailable]
    for each in wanted:
        objects.let(each[1])
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(each, StorageError) for each in results) == 1
    assert tiers.stats()["object"].refused == 1
