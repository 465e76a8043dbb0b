"""The tiers when callers wait, leave, are refused or are shut out: who gets room, and what is left behind."""

import asyncio
import os
from pathlib import Path

import pytest

from storage.errors import StorageUnavailable
from storage.tiers import Fetched
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import KIB, Open, files, settled
from tests.turns import growing_turns


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
    await settled(tiers)
    assert files(tmp_path) == [wanted[0]]


async def test_cancelled_at_any_moment(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    """Cancels after 1, 2, 3.. turns of the loop until a fetch gets through: budgets, files and pins are as before."""
    tiers = await open_tiers()
    wanted = objects.add(os.urandom(KIB))
    for turns in growing_turns():
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
