"""Several processes on one disk tier: one budget, one download, nobody's file taken away; and a kill in between."""

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.downloads import ATTEMPTS, Downloads
from storage.errors import StorageUnavailable
from storage.objects.base import single
from storage.objects.local import LocalObjects
from storage.tiers import Tiers
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import files, legs, no_pause, settled

KB = 1000


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, objects: Any, **options: Any) -> AsyncIterator[Tiers]:
    """Each of these has its own descriptors, so to the folder's locks it is a process of its own."""
    options = {"memory_bytes": 10 * KB, "disk_bytes": 10 * KB, "giants_share": 1.0, **options}
    options["downloads"] = Downloads(objects, parallel=1, sleep=no_pause)
    tiers = Tiers(objects, tmp_path / "tiers", **options)
    await tiers.open()
    try:
        yield tiers
    finally:
        await tiers.aclose()


def on_disk(tmp_path: Path) -> int | None:
    """Bytes of all files; None while somebody changes them, for then one file may be seen twice or never."""
    fd = os.open(tmp_path / "tiers" / ".lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _sum(tmp_path)
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _sum(tmp_path: Path) -> int:
    total = 0
    for part in ("packed", ".incoming"):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(tmp_path / "tiers" / part):
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_size
    return total


async def test_what_one_has_brought_the_other_finds(tmp_path: Path, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(KB))
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        (await one.fetch(*wanted)).release()
        await settled(one)
        with await two.fetch(*wanted) as fetched:
            assert legs(fetched) == ["disk", "memory"]
    assert objects.reads[wanted[1]] == 1


async def test_one_brings_it_while_the_other_waits(tmp_path: Path, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(KB))
    waiting = objects.hold(wanted[1])
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        tasks = [asyncio.create_task(each.fetch(*wanted)) for each in (one, two) for _ in range(20)]
        await waiting.wait()
        objects.let(wanted[1])
        for fetched in await asyncio.gather(*tasks):
            fetched.release()
    assert objects.reads[wanted[1]] == 1


async def test_who_waits_for_another_that_fails_brings_it_himself(tmp_path: Path, objects: GatedObjects) -> None:
    wanted = objects.add(os.urandom(KB))
    waiting = objects.hold(wanted[1])
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        first = asyncio.create_task(one.fetch(*wanted))
        await waiting.wait()
        second = asyncio.create_task(two.fetch(*wanted))
        while not two._loads:
            await asyncio.sleep(0)
        objects.failures[wanted[1]] = StorageUnavailable("broke off")
        objects.let(wanted[1])
        with pytest.raises(StorageUnavailable):
            await first
        del objects.failures[wanted[1]]
        (await second).release()
        assert objects.reads[wanted[1]] == ATTEMPTS + 1


async def test_one_budget_for_all(tmp_path: Path, objects: GatedObjects) -> None:
    wanted = [objects.add(os.urandom(random.Random(n).randrange(100, 3 * KB))) for n in range(60)]
    rng, looks = random.Random(5), 0
    async with contextlib.AsyncExitStack() as stack:
        tiers = [await stack.enter_async_context(opened(tmp_path, objects)) for _ in range(3)]
        for _ in range(40):
            asked = [(each, rng.choice(wanted)) for each in tiers for _ in range(2)]
            tasks = [asyncio.create_task(each.fetch(*what)) for each, what in asked]
            while not all(task.done() for task in tasks):
                if (seen := on_disk(tmp_path)) is not None:
                    looks += 1
                    assert seen <= 10 * KB
                await asyncio.sleep(0)
            for task, (_, what) in zip(tasks, asked, strict=True):
                with task.result() as fetched:
                    assert fetched.data == objects.data[what[1]]
        for each in tiers:
            await settled(each)
        assert 5 * KB < (on_disk(tmp_path) or 0) <= 10 * KB
        assert looks > 100
        for each in tiers:
            assert each.stats()["disk"].used_bytes <= 10 * KB
        assert sum(each.stats()["disk"].hits for each in tiers) > 0


async def test_a_file_that_another_looks_at_is_counted_although_it_cannot_be_held(
    tmp_path: Path, objects: GatedObjects
) -> None:
    """Who asks whether a file may go has it locked for a moment; whoever wants to read it then must not lose count."""
    kept, *others = [objects.add(os.urandom(4 * KB)) for _ in range(3)]
    async with opened(tmp_path, objects) as one:
        (await one.fetch(*kept)).release()
        await settled(one)
        looking = os.open(tmp_path / "tiers" / "packed" / kept[0], os.O_RDONLY)
        fcntl.flock(looking, fcntl.LOCK_EX)
        assert not await one._disk.pin(kept[0])
        os.close(looking)
        for each in others:
            (await one.fetch(*each)).release()
            await settled(one)
            assert (on_disk(tmp_path) or 0) <= 10 * KB
        assert len(files(tmp_path)) == 2


async def test_while_more_is_there_than_the_budget_nothing_comes(tmp_path: Path, objects: GatedObjects) -> None:
    """One counts a file that somebody removed under its reader, another brings a large one: both do not fit."""
    removed, large, late = (objects.add(os.urandom(size * KB)) for size in (4, 8, 3))
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        (await one.fetch(*removed)).release()
        await settled(one)
        assert await one._disk.pin(removed[0])
        (tmp_path / "tiers" / "packed" / removed[0]).unlink()
        two._disk._folder.look_again()
        begun = await two._disk.begin(large[0], 8 * KB)
        assert begun is not None
        for _ in range(2):
            (await one.fetch(*late)).release()
            await settled(one)
            assert (on_disk(tmp_path) or 0) == 8 * KB
            await one.forget(late[0])
        assert one.stats()["disk"].refused == 2
        await begun.abandon()
        await one._disk.unpin(removed[0])
        (await one.fetch(*late)).release()
        await settled(one)
        assert files(tmp_path) == [late[0]]


async def test_a_file_that_another_reads_is_not_evicted(tmp_path: Path, objects: GatedObjects) -> None:
    kept, *others = [objects.add(os.urandom(4 * KB)) for _ in range(5)]
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        (await one.fetch(*kept)).release()
        await settled(one)
        assert await one._disk.pin(kept[0])
        for each in others:
            (await two.fetch(*each)).release()
            await settled(two)
            assert kept[0] in files(tmp_path)
            assert (on_disk(tmp_path) or 0) <= 10 * KB
        assert two.stats()["disk"].refused == 0
        await one._disk.unpin(kept[0])
        for each in others:
            await two.forget(each[0])
            (await two.fetch(*each)).release()
            await settled(two)
        assert kept[0] not in files(tmp_path), "once it is let go it may go"


async def test_a_disk_full_of_what_others_hold_is_passed_by(tmp_path: Path, objects: GatedObjects) -> None:
    kept = [objects.add(os.urandom(5 * KB)) for _ in range(2)]
    late = objects.add(os.urandom(KB))
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        for each in kept:
            (await one.fetch(*each)).release()
            await settled(one)
            assert await one._disk.pin(each[0])
        with await two.fetch(*late) as fetched:
            assert len(fetched.data) == KB
        await settled(two)
        assert two.stats()["disk"].refused == 1
        assert sorted(files(tmp_path)) == sorted(each[0] for each in kept)


async def test_what_one_forgets_is_gone_for_the_other_but_not_from_under_a_reader(
    tmp_path: Path, objects: GatedObjects
) -> None:
    wanted = objects.add(os.urandom(KB))
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        (await one.fetch(*wanted)).release()
        await settled(one)
        assert await two._disk.pin(wanted[0])
        await one.forget(wanted[0])
        assert files(tmp_path) == []
        assert bytes(await two._disk.read(wanted[0])) == objects.data[wanted[1]]
        await two._disk.unpin(wanted[0])
        (await two.fetch(*wanted)).release()
        assert objects.reads[wanted[1]] == 2


CHILD = """
import asyncio, random, sys
from pathlib import Path
from storage.objects.local import LocalObjects
from storage.tiers import Tiers

async def main(folder, seed):
    rng = random.Random(int(seed))
    objects = LocalObjects(Path(folder) / "objects")
    wanted = [line.split() for line in (Path(folder) / "wanted").read_text().splitlines()]
    tiers = Tiers(objects, Path(folder) / "tiers", memory_bytes=40_000, disk_bytes=60_000)
    await tiers.open()
    print("started", flush=True)
    while True:
        digest, key, size = rng.choice(wanted)
        with await tiers.fetch(digest, key, int(size)) as fetched:
            assert len(fetched.data) == int(size)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_kills_leave_the_folder_whole(tmp_path: Path) -> None:
    """Three processes fetch without end; now and then one is killed at any point and another takes its place."""
    store, maker = LocalObjects(tmp_path / "objects"), GatedObjects()
    rng = random.Random(7)
    lines = []
    for _ in range(40):
        data = rng.randbytes(rng.randrange(1000, 12_000))
        digest, key, size = maker.add(data)
        await store.put(key, single(data), max_bytes=size)
        lines.append(f"{digest} {key} {size}")
    (tmp_path / "wanted").write_text("\n".join(lines))

    async def start(seed: int) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(tmp_path), str(seed),
            stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert child.stdout is not None
        assert (await child.stdout.readline()).strip() == b"started"
        return child

    children, looks = [await start(seed) for seed in range(3)], 0
    try:
        for turn in range(6):
            until = asyncio.get_running_loop().time() + rng.uniform(0.05, 0.3)
            while asyncio.get_running_loop().time() < until:  # the moment of the kill is the input of this test
                if (seen := on_disk(tmp_path)) is not None:
                    looks += 1
                    assert seen <= 60_000
                await asyncio.sleep(0)
            assert all(child.returncode is None for child in children)
            victim = children.pop(0)
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
            children.append(await start(100 + turn))
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            await child.wait()
    assert looks > 20
    tiers = Tiers(store, tmp_path / "tiers", memory_bytes=100_000, disk_bytes=60_000)
    await tiers.open()
    assert tiers.stats()["disk"].entries > 0
    for line in lines:
        digest, key, size_text = line.split()
        (await tiers.fetch(digest, key, int(size_text))).release()
    await settled(tiers)
    assert tiers.stats()["disk"].failures == 0, "no half-written file had a name"
    assert tiers.stats()["disk"].hits > 0
    await tiers.aclose()
    await store.aclose()
    assert list((tmp_path / "tiers" / ".incoming").iterdir()) == []
    assert list((tmp_path / "tiers" / "claims").iterdir()) == []


async def test_a_process_that_does_not_let_go_of_the_folder_stops_nobody(
    tmp_path: Path, objects: GatedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.packed_folder.LOCK_WAIT_S", 0.05)
    wanted = objects.add(os.urandom(KB))
    async with opened(tmp_path, objects) as one, opened(tmp_path, objects) as two:
        one._disk._folder.lock(to_change=False)  # and is stopped in this very moment
        with await two.fetch(*wanted) as fetched:
            assert legs(fetched) == ["object", "memory"]
        await settled(two)
        assert two.stats()["disk"].refused == 1
        one._disk._folder.unlock()
        await two.forget(wanted[0])
        (await two.fetch(*wanted)).release()
        await settled(two)
        assert files(tmp_path) == [wanted[0]]
