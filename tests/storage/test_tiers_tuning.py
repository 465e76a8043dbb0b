"""What an operator asks of the tiers: pins, refill after a start, giants that flush nobody, a disk that is full."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.errors import ObjectMissing, ObjectTooLarge
from storage.policies import POLICIES, PolicyName
from storage.tier_records import BOUNDS_S, Histogram
from storage.tiers import Tiers
from tests.small_disk import mounted
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import KIB, Open, files, legs, settled

Wanted = tuple[str, str, int]


async def load(tiers: Tiers, *wanted: Wanted) -> None:
    for each in wanted:
        (await tiers.fetch(*each)).release()
        await settled(tiers)


def make(objects: GatedObjects, count: int, size: int = 1000) -> list[Wanted]:
    return [objects.add(os.urandom(size)) for _ in range(count)]


async def test_what_is_kept_stays_in_memory(open_tiers: Open, objects: GatedObjects) -> None:
    kept, *others = make(objects, 20)
    tiers = await open_tiers(memory=4000)
    await tiers.keep(*kept)
    await tiers.keep(*kept)
    await load(tiers, *others)
    assert tiers.resident(kept[0]) == "memory"
    assert tiers.kept == {kept[0]}
    assert tiers.stats()["memory"].pinned_bytes == 1000
    (record,) = [each for each in tiers.residents() if each.digest == kept[0]]
    assert (record.kept, record.in_memory) == (True, True)
    tiers.unkeep(kept[0])
    tiers.unkeep(kept[0])
    await load(tiers, *others)
    assert tiers.resident(kept[0]) != "memory"
    assert tiers._memory.ledger.pinned_bytes == 0


async def test_half_of_memory_can_be_kept_and_the_rest_serves(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = make(objects, 5)
    tiers = await open_tiers(memory=4000)
    await tiers.keep(*wanted[0])
    await tiers.keep(*wanted[1])
    with pytest.raises(ObjectTooLarge, match="at most half"):
        await tiers.keep(*wanted[2])
    large = objects.add(os.urandom(2000))
    await load(tiers, large, wanted[3], wanted[4])
    too_large = objects.add(os.urandom(2001))
    with pytest.raises(ObjectTooLarge, match="beside what is pinned"):
        await asyncio.wait_for(tiers.fetch(*too_large), 5)
    tiers.unkeep(wanted[0][0])
    with pytest.raises(ObjectMissing):
        await tiers.keep("0" * 64, "none", 10)


async def test_what_is_forgotten_is_not_kept_any_more(open_tiers: Open, objects: GatedObjects, tmp_path: Path) -> None:
    (kept,) = make(objects, 1)
    tiers = await open_tiers()
    await tiers.keep(*kept)
    await settled(tiers)
    await tiers.forget(kept[0])
    assert tiers.resident(kept[0]) is None
    assert (tiers.kept, files(tmp_path)) == (frozenset(), [])


async def test_refill_brings_what_was_used_last_while_there_is_room(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = make(objects, 8)
    tiers = await open_tiers()
    await load(tiers, *wanted)
    await tiers.aclose()
    again = await open_tiers(memory=3500)
    assert await again.refill() == 3
    assert [again.resident(each[0]) for each in wanted] == ["disk"] * 5 + ["memory"] * 3
    assert again.stats()["memory"].evictions == 0
    assert sum(objects.reads.values()) == 8
    with await again.fetch(*wanted[-1]) as fetched:
        assert legs(fetched) == ["memory"]


async def test_refill_gives_way_to_requests_and_whoever_joins_it_is_served(
    open_tiers: Open, objects: GatedObjects, tmp_path: Path
) -> None:
    wanted = make(objects, 6)
    tiers = await open_tiers()
    await load(tiers, *wanted[:5])
    await tiers.aclose()
    again = await open_tiers()
    gate = objects.hold(wanted[5][1])
    request = asyncio.create_task(again.fetch(*wanted[5]))
    await gate.wait()
    refill = asyncio.create_task(again.refill())
    for _ in range(50):
        await asyncio.sleep(0)
    assert [again.resident(each[0]) for each in wanted[:5]] == ["disk"] * 5
    objects.let(wanted[5][1])
    (await request).release()
    assert await refill == 5
    # One that turns out bad on the disk is brought from the object store for whoever joins, and left alone otherwise.
    await again.aclose()
    for name in files(tmp_path):
        (tmp_path / "tiers" / "packed" / name).write_bytes(b"x" * 1000)
    third = await open_tiers()
    refill = asyncio.create_task(third.refill())
    while not third._loads:
        await asyncio.sleep(0)
    joined = next(iter(third._loads))
    with await third.fetch(*next(each for each in wanted if each[0] == joined)) as fetched:
        assert bytes(fetched.data) != b"x" * 1000
    await refill
    assert third.stats()["memory"].entries == 1


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_giant_flushes_no_hundred_small_ones(
    open_tiers: Open, objects: GatedObjects, policy: PolicyName
) -> None:
    """Neither from memory, which must hold it for a while, nor from disk, which can do without it."""
    small = make(objects, 100, 10)
    giants = make(objects, 6, 300)
    tiers = await open_tiers(memory=1000, disk=1000, memory_policy=policy, disk_policy=policy, giants_share=0.25)
    await load(tiers, *small)
    for giant in giants:
        with await tiers.fetch(*giant) as fetched:
            assert len(fetched.data) == 300
        await settled(tiers)
    await load(tiers, small[0])
    assert sum(tiers.resident(each[0]) == "memory" for each in small) >= 69
    assert sum(each[0] in tiers._disk for each in small) == 100
    assert tiers.stats()["disk"].refused == 6


@pytest.mark.parametrize("policy", POLICIES)
async def test_policies_are_chosen_for_each_tier(open_tiers: Open, objects: GatedObjects, policy: PolicyName) -> None:
    tiers = await open_tiers(memory=3000, disk=5000, memory_policy=policy, disk_policy="lru")
    wanted = make(objects, 20)
    for turn in range(3):
        await load(tiers, *wanted[turn:], wanted[0])
    assert type(tiers._memory.ledger._policy).__name__ == {
        "lru": "Lru", "lfu": "Aged", "gdsf": "Aged", "s3-fifo": "S3Fifo"
    }[policy]  # fmt: skip
    assert type(tiers._disk.ledger._policy).__name__ == "Lru"
    assert tiers.stats()["memory"].used_bytes <= 3000
    assert tiers.stats()["disk"].used_bytes <= 5000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB that really is full at some point."""
    with mounted(tmp_path / "small", "64k") as folder:
        yield folder


async def test_a_disk_smaller_than_its_budget_keeps_the_newest(small_disk: Path, objects: GatedObjects) -> None:
    """The budget says a megabyte, the disk has 64 kB: it is used like a budget of that size, and nothing half stays."""
    wanted = make(objects, 40, 10 * KIB)
    tiers = Tiers(objects, small_disk / "tiers", memory_bytes=200 * KIB, disk_bytes=1024 * KIB, giants_share=1.0)
    await tiers.open()
    for each in wanted:
        with await tiers.fetch(*each) as fetched:
            assert fetched.data == objects.data[each[1]]
        await settled(tiers)
    stats = tiers.stats()["disk"]
    assert (stats.refused, stats.failures) == (0, 0)
    assert 3 < stats.entries < 7
    assert stats.evictions == 40 - stats.entries
    assert set(tiers._disk.digests) == {each[0] for each in wanted[-stats.entries :]}
    assert {path.name for path in (small_disk / "tiers" / "packed").iterdir()} == set(tiers._disk.digests)
    assert list((small_disk / "tiers" / ".incoming").iterdir()) == []
    await tiers.aclose()


async def test_a_disk_that_is_really_full(small_disk: Path, objects: GatedObjects) -> None:
    """Somebody else's files take it all: the tier gives way, serves from memory, and says so."""
    wanted = make(objects, 20, 10 * KIB)
    tiers = Tiers(objects, small_disk / "tiers", memory_bytes=200 * KIB, disk_bytes=1024 * KIB, giants_share=1.0)
    await tiers.open()
    await load(tiers, *wanted[:4])
    held = [digest for digest in tiers._disk.digests if await tiers._disk.pin(digest)]
    assert len(held) == 4
    with (small_disk / "log").open("wb", buffering=0) as log, suppress(OSError):
        while True:
            log.write(bytes(512))
    await load(tiers, *wanted[4:8])
    assert tiers.stats()["disk"].refused == 4, "all of it is in use"
    for digest in held:
        await tiers._disk.unpin(digest)
    await load(tiers, wanted[8])
    stats = tiers.stats()["disk"]
    assert (stats.refused, stats.evictions, stats.failures) == (4, 1, 0)
    assert wanted[8][0] in tiers._disk
    for each in wanted:
        with await tiers.fetch(*each) as fetched:
            assert fetched.data == objects.data[each[1]]
        await settled(tiers)
    await tiers.aclose()


async def test_a_giant_pushes_nobody_off_a_disk_that_is_full(small_disk: Path, objects: GatedObjects) -> None:
    small, giant = make(objects, 9, 6 * KIB), make(objects, 1, 20 * KIB)
    tiers = Tiers(objects, small_disk / "tiers", memory_bytes=200 * KIB, disk_bytes=256 * KIB, giants_share=0.1)
    await tiers.open()
    await load(tiers, *small)
    entries = tiers.stats()["disk"].entries
    assert entries > 3
    await load(tiers, *giant)
    assert (tiers.stats()["disk"].entries, tiers.stats()["disk"].refused) == (entries, 1)
    await tiers.aclose()


async def test_load_times_are_counted(open_tiers: Open, objects: GatedObjects) -> None:
    wanted = make(objects, 3)
    tiers = await open_tiers(memory=1000)
    await load(tiers, *wanted, wanted[0])
    stats = tiers.stats()
    assert stats["object"].loads.count == 3
    assert stats["object"].loads.size_bytes == 3000
    assert stats["disk"].loads.count == stats["disk"].hits + 3  # memory had no room ahead: each came by the disk
    assert sum(stats["disk"].loads.counts) == stats["disk"].loads.count
    assert stats["object"].loads.seconds > 0


def test_a_histograms_edges() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 30.0, 31.0):
        histogram.add(seconds, 10)
    counts = histogram.snapshot().counts
    assert (counts[0], counts[1], counts[-2], counts[-1], sum(counts)) == (2, 1, 1, 1, 5)
    assert len(counts) == len(BOUNDS_S) + 1


async def test_a_prefetch_for_a_request_counts_once_and_a_wish_never(open_tiers: Open, objects: GatedObjects) -> None:
    """Otherwise the figures, and what the policies learn, would say that every cold adapter had been hot."""
    a, b, c = make(objects, 3)
    tiers = await open_tiers()

    def figures(digest: str) -> tuple[int, int, int]:
        stats = tiers.stats()["memory"]
        return stats.hits, stats.misses, tiers._memory.ledger.uses(digest)

    (await tiers.fetch(*a, "soon")).release()
    assert figures(a[0]) == (0, 0, 1)
    (await tiers.fetch(*a)).release()
    assert figures(a[0]) == (0, 1, 1)
    (await tiers.fetch(*a, "soon")).release()
    (await tiers.fetch(*a)).release()
    assert figures(a[0]) == (1, 1, 2)
    (await tiers.fetch(*b, "wish")).release()
    (await tiers.fetch(*b)).release()
    assert figures(b[0]) == (2, 1, 2)
    waiting = objects.hold(c[1])
    tasks = [asyncio.create_task(tiers.fetch(*c, "soon"))]
    await waiting.wait()
    tasks += [asyncio.create_task(tiers.fetch(*c)) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    objects.let(c[1])
    for fetched in await asyncio.gather(*tasks):
        fetched.release()
    hits, misses, _ = figures(c[0])
    assert (hits, misses) == (4, 2), "one brought it; the others found it on its way"
