"""The tiers, one behaviour at a time. Schedules in general are in `test_tiers_schedules.py`."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
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
from storage.objects.base import ObjectStore, single
from storage.objects.local import LocalObjects
from storage.tiers import Fetched, Tiers
from tests.storage.gated_objects import GatedObjects

KIB = 1024
Open = Callable[..., Awaitable[Tiers]]


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


@pytest.fixture
async def open_tiers(tmp_path: Path, objects: GatedObjects) -> AsyncIterator[Open]:
    opened = []

    async def open_them(store: ObjectStore = objects, *, memory: int = 100 * KIB, disk: int = 100 * KIB) -> Tiers:
        tiers = Tiers(store, tmp_path / "tiers", memory_bytes=memory, disk_bytes=disk)
        await tiers.open()
        opened.append(tiers)
        return tiers

    yield open_them
    for tiers in opened:
        await tiers.aclose()


def files(tmp_path: Path) -> list[str]:
    """Every file of the disk tier, also unfinished ones."""
    root = tmp_path / "tiers"
    return sorted(os.listdir(root / "packed")) + (
        os.listdir(root / ".incoming") if (root / ".incoming").exists() else []
    )


def legs(fetched: Fetched) -> list[str]:
    return [visit.tier for visit in fetched.visits]


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


async def test_missing(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    tiers = await open_tiers()
    for _ in range(2):
        with pytest.raises(ObjectMissing):
            await tiers.fetch("0" * 64, "not/there", 100)
    assert tiers.stats()["object"].misses == 2
    assert (files(tmp_path), tiers.stats()["disk"].used_bytes) == ([], 0)


@pytest.mark.parametrize("bad", [b"", b"x" * 999, b"x" * 1000, b"x" * 1001, b"x" * 100_000])
async def test_an_object_that_is_not_what_it_should_be(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path, bad: bytes
) -> None:
    digest, key, size = objects.add(os.urandom(1000))
    objects.data[key] = bad
    tiers = await open_tiers()
    with pytest.raises(ObjectCorrupt):
        await tiers.fetch(digest, key, size)
    assert objects.reads[key] == 1
    assert files(tmp_path) == []
    assert tiers.stats()["memory"].used_bytes == tiers.stats()["disk"].used_bytes == 0


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
    path = tmp_path / "tiers" / "packed" / wanted[0]
    damage(path)
    with await tiers.fetch(*wanted) as fetched:
        assert fetched.data == data
    assert tiers.stats()["disk"].failures >= 1
    assert objects.reads[wanted[1]] == 2


async def test_a_disk_that_flips_bits_every_time(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    wanted = objects.add(os.urandom(5000))
    tiers = await open_tiers()
    publish = tiers._disk._publish

    def flipping(file: NewFile, digest: str) -> None:
        publish(file, digest)
        _flip(tmp_path / "tiers" / "packed" / digest)

    tiers._disk._publish = flipping  # type: ignore[method-assign]
    with pytest.raises(ObjectCorrupt, match="twice"):
        await tiers.fetch(*wanted)
    assert objects.reads[wanted[1]] == 2
    assert files(tmp_path) == []
    assert tiers.stats()["memory"].used_bytes == tiers.stats()["disk"].used_bytes == 0


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
        assert legs(fetched) == ["object", "memory"]
    assert tiers.stats()["disk"].refused == 1
    assert (files(tmp_path), tiers.stats()["disk"].used_bytes) == ([], 0)


async def test_no_room_on_disk_is_no_failure(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    small, large = objects.add(os.urandom(500)), objects.add(os.urandom(1500))
    tiers = await open_tiers(disk=1000)
    (await tiers.fetch(*small)).release()
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
    assert [tiers.resident(each[0]) for each in (a, b, c)] == ["memory", "disk", "memory"]
    assert tiers.stats()["memory"].evictions == 1
    assert files(tmp_path) == sorted((b[0], c[0]))  # the disk saw `a` once, so there it was the oldest


async def test_bytes_in_use_are_not_evicted_and_the_next_waits(open_tiers: Open, objects: GatedObjects) -> None:
    a, b, c = (objects.add(os.urandom(1000)) for _ in range(3))
    tiers = await open_tiers(memory=2010)  # there is room for the small one, but it is not its turn
    held_a, held_b = await tiers.fetch(*a), await tiers.fetch(*b)
    waiting = asyncio.create_task(tiers.fetch(*c))
    while tiers.state(c[0]) != "disk":
        await asyncio.sleep(0)
    overtaking = asyncio.create_task(tiers.fetch(*objects.add(b"small")))
    while tiers.stats()["object"].hits < 4:
        await asyncio.sleep(0)
    assert not waiting.done()
    assert tiers.stats()["memory"].used_bytes == 2000
    held_b.release()
    with await waiting:
        assert tiers.resident(a[0]) == "memory"
        assert tiers.resident(b[0]) == "disk"
        assert not overtaking.done()
        held_a.release()
        (await overtaking).release()


async def test_a_waiter_who_leaves_the_queue_for_room(open_tiers: Open, objects: GatedObjects) -> None:
    a, b, c = (objects.add(os.urandom(1000)) for _ in range(3))
    tiers = await open_tiers(memory=1000)
    held = await tiers.fetch(*a)
    first = asyncio.create_task(tiers.fetch(*b))
    while tiers.state(b[0]) != "disk":
        await asyncio.sleep(0)
    second = asyncio.create_task(tiers.fetch(*c))
    while tiers.state(c[0]) != "disk":
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    held.release()
    with await second as fetched:
        assert len(fetched.data) == 1000


async def test_a_place_given_up_lets_the_next_one_in(open_tiers: Open, objects: GatedObjects) -> None:
    a, b, c = (objects.add(os.urandom(size)) for size in (1000, 1500, 500))
    tiers = await open_tiers(memory=2000)
    held = await tiers.fetch(*a)
    large = asyncio.create_task(tiers.fetch(*b))
    while tiers.state(b[0]) != "disk":
        await asyncio.sleep(0)
    small = asyncio.create_task(tiers.fetch(*c))
    while tiers.state(c[0]) != "disk":
        await asyncio.sleep(0)
    large.cancel()
    (await asyncio.wait_for(small, 10)).release()
    held.release()


async def test_room_that_was_just_given_is_given_back(open_tiers: Open, objects: GatedObjects) -> None:
    """The release hands the room over at once; the owner who gets it is stopped before it runs."""
    a, b = (objects.add(os.urandom(1000)) for _ in range(2))
    tiers = await open_tiers(memory=1000)
    held = await tiers.fetch(*a)
    waiting = asyncio.create_task(tiers.fetch(*b))
    while tiers.state(b[0]) != "disk":
        await asyncio.sleep(0)
    held.release()
    tiers._loads[b[0]].task.cancel()
    with pytest.raises(StorageUnavailable):
        await waiting
    assert tiers.stats()["memory"].used_bytes == 0
    with await tiers.fetch(*b) as fetched:
        assert len(fetched.data) == 1000


async def test_a_waiter_leaves_just_after_the_landing(open_tiers: Open, objects: GatedObjects) -> None:
    """Its pin is counted already, and it will not be there to take it."""
    wanted = objects.add(os.urandom(KIB))
    tiers = await open_tiers()
    tasks = [asyncio.create_task(tiers.fetch(*wanted)) for _ in range(3)]
    while tiers.state(wanted[0]) != "host":
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 3
    assert tiers._memory.ledger.pinned_bytes == 0


async def test_one_waiter_of_two_leaves(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(KIB))
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    leaving, staying = (asyncio.create_task(tiers.fetch(*wanted)) for _ in range(2))
    await waiting.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    objects.let(wanted[1])
    (await staying).release()
    assert objects.reads[wanted[1]] == 1
    assert tiers._memory.ledger.pins(wanted[0]) == 0


async def test_the_last_waiter_leaves(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    """The download stops and leaves nothing; whoever comes while it stops gets a new one."""
    data = os.urandom(KIB)
    wanted = objects.add(data)
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    tasks = [asyncio.create_task(tiers.fetch(*wanted)) for _ in range(3)]
    await waiting.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = asyncio.create_task(tiers.fetch(*wanted))
    objects.let(wanted[1])
    with await late as fetched:
        assert fetched.data == data
    assert objects.most_at_once[wanted[1]] == 1
    assert objects.reads[wanted[1]] == 2
    assert files(tmp_path) == [wanted[0]]


async def test_cancelled_at_any_moment(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    """Cancels after 1, 2, 3.. turns of the loop until a fetch gets through: budgets, files and pins are as before."""
    tiers = await open_tiers()
    wanted = objects.add(os.urandom(KIB))
    for turns in range(1, 100_000):
        task = asyncio.create_task(tiers.fetch(*wanted))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(done, Fetched):
            done.release()
        while tiers._loads:
            await asyncio.sleep(0)
        assert tiers._memory.ledger.pinned_bytes == tiers._disk.ledger.pinned_bytes == 0
        assert objects.open_reads[wanted[1]] == 0
        present = [wanted[0]] if wanted[0] in tiers._disk else []
        assert files(tmp_path) == present
        if isinstance(done, Fetched):
            break
        await tiers.forget(wanted[0])
    assert turns > 3


async def test_forget(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    wanted = objects.add(os.urandom(KIB))
    tiers = await open_tiers()
    await tiers.forget("0" * 64)
    held = await tiers.fetch(*wanted)
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
    assert tiers.resident(wanted[0]) is None
    assert files(tmp_path) == []


async def test_a_restart_keeps_the_order_of_use_and_a_smaller_budget(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path
) -> None:
    a, b, c = (objects.add(os.urandom(1000)) for _ in range(3))
    tiers = await open_tiers(memory=1000)
    for each in (a, b, c, a):
        (await tiers.fetch(*each)).release()
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


async def test_two_processes_do_not_count_one_budget(open_tiers: Open) -> None:
    await open_tiers()
    with pytest.raises(StorageUnavailable, match=f"process {os.getpid()}"):
        await open_tiers()


async def test_close_ends_every_wait(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    wanted = objects.add(os.urandom(KIB))
    waiting = objects.hold(wanted[1])
    tiers = await open_tiers()
    tasks = [asyncio.create_task(tiers.fetch(*wanted)) for _ in range(3)]
    await waiting.wait()
    await tiers.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results] == [StorageUnavailable] * 3
    with pytest.raises(StorageUnavailable):
        await tiers.fetch(*wanted)
    assert files(tmp_path) == []


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
