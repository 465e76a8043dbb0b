"""Downloads: parts in parallel and in order, taken up where they broke, within a budget, and never for ever."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import pytest

from storage.downloads import ATTEMPTS, MAX_PARTS_AT_ONCE, Downloads, RetryBudget
from storage.errors import ObjectCorrupt, ObjectMissing, StorageUnavailable

PART = 1000


class RangedObjects:
    """One object; counts reads and bytes. `break_after`: each read fails after so many bytes, so often."""

    def __init__(self, data: bytes, chunk_bytes: int = 100) -> None:
        self.data, self.chunk_bytes = data, chunk_bytes
        self.reads: list[tuple[int, int | None]] = []
        self.open_reads = self.most_open = self.sent = 0
        self.break_after: int | None = None
        self.breaks_left = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception = StorageUnavailable("the connection broke")

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self.reads.append((start, length))
        self.open_reads += 1
        self.most_open = max(self.most_open, self.open_reads)
        try:
            end = len(self.data) if length is None else min(len(self.data), start + length)
            came = 0
            while start < end:
                if self.gate is not None:
                    await self.gate.wait()
                if self.breaks_left and self.break_after is not None and came >= self.break_after:
                    self.breaks_left -= 1
                    raise self.error
                chunk = self.data[start : min(end, start + self.chunk_bytes)]
                start, came = start + len(chunk), came + len(chunk)
                self.sent += len(chunk)
                await asyncio.sleep(0)
                yield chunk
        finally:
            self.open_reads -= 1

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        raise AssertionError

    async def size(self, key: str) -> int:
        raise AssertionError

    async def delete(self, key: str) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError


class Pauses:
    """Stands for sleeping; `draw` gives the upper end."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def downloads(objects: RangedObjects, pauses: Pauses | None = None, **options: Any) -> Downloads:
    options = {"parallel": 4, "part_bytes": PART, "sleep": pauses or Pauses(), "draw": lambda: 1.0, **options}
    return Downloads(objects, **options)


async def whole(down: Downloads, size: int) -> bytes:
    return b"".join([bytes(chunk) async for chunk in down.chunks("key", size)])


@pytest.mark.parametrize("size", [1, PART, PART + 1, 4 * PART, 10 * PART + 7])
@pytest.mark.parametrize("parallel", [1, 2, 4])
async def test_the_bytes_come_in_order(size: int, parallel: int) -> None:
    objects = RangedObjects(os.urandom(size))
    assert await whole(downloads(objects, parallel=parallel), size) == objects.data
    assert objects.sent == size
    parts = -(-size // PART)
    if parallel == 1 or parts == 1:
        assert objects.reads == [(0, None)]
    else:
        assert objects.reads == [(n * PART, min(PART, size - n * PART)) for n in range(parts)]
        assert 1 < objects.most_open <= parallel


async def test_a_part_goes_on_where_it_broke() -> None:
    objects, pauses = RangedObjects(os.urandom(3 * PART)), Pauses()
    objects.break_after, objects.breaks_left = 300, 2
    assert await whole(downloads(objects, pauses, parallel=2), 3 * PART) == objects.data
    assert objects.sent == 3 * PART, "no byte came twice"
    assert len(pauses.slept) == 2
    assert len(objects.reads) == 5


async def test_a_plain_stream_goes_on_where_it_broke() -> None:
    objects, pauses = RangedObjects(os.urandom(2 * PART)), Pauses()
    objects.break_after, objects.breaks_left = 700, 2
    assert await whole(downloads(objects, pauses, parallel=1), 2 * PART) == objects.data
    assert objects.reads == [(0, None), (700, None), (1400, None)]


async def test_pauses_grow_and_are_drawn() -> None:
    objects, pauses = RangedObjects(b"x" * 10), Pauses()
    objects.break_after, objects.breaks_left = 0, 100
    with pytest.raises(StorageUnavailable):
        await whole(downloads(objects, pauses), 10)
    assert pauses.slept == [0.1, 0.2, 0.4, 0.8]
    assert len(objects.reads) == ATTEMPTS
    objects.reads.clear()
    jittered = Pauses()
    draws = iter([0.0, 1.0, 0.5, 0.25])
    with pytest.raises(StorageUnavailable):
        await whole(downloads(objects, jittered, draw=lambda: next(draws)), 10)
    assert jittered.slept == pytest.approx([0.05, 0.2, 0.3, 0.5])


async def test_retries_of_all_together_are_bounded() -> None:
    """A store that is down is asked about once per download, not five times."""
    objects = RangedObjects(b"x" * 10)
    objects.break_after, objects.breaks_left = 0, 10**9
    down = downloads(objects)
    for _ in range(200):
        with pytest.raises(StorageUnavailable):
            await whole(down, 10)
    assert 200 < len(objects.reads) <= 200 + 10 + 0.2 * 200
    assert down.budget.spent == len(objects.reads) - 200
    assert down.budget.refused > 100
    control = RangedObjects(b"x" * 10)
    control.break_after, control.breaks_left = 0, 10**9
    generous = downloads(control, budget=RetryBudget(at_first=1e9))
    for _ in range(200):
        with pytest.raises(StorageUnavailable):
            await whole(generous, 10)
    assert len(control.reads) == 200 * ATTEMPTS


async def test_the_budget_comes_back_with_downloads_that_succeed() -> None:
    objects = RangedObjects(b"x" * 10)
    down = downloads(objects)
    objects.break_after, objects.breaks_left = 0, 10**9
    for _ in range(20):
        with pytest.raises(StorageUnavailable):
            await whole(down, 10)
    objects.breaks_left = 0
    for _ in range(50):
        await whole(down, 10)
    objects.breaks_left = 2
    assert await whole(down, 10) == objects.data


@pytest.mark.parametrize("error", [ObjectMissing("none"), ObjectCorrupt("bad")])
@pytest.mark.parametrize("size", [10, 5 * PART])
async def test_what_a_retry_cannot_mend_is_told_at_once(error: Exception, size: int) -> None:
    objects, pauses = RangedObjects(os.urandom(size)), Pauses()
    objects.break_after, objects.breaks_left, objects.error = 0, 10**9, error
    with pytest.raises(type(error)):
        await whole(downloads(objects, pauses), size)
    assert pauses.slept == []
    assert len(objects.reads) <= 4
    assert objects.open_reads == 0


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("claimed", [1, 5 * PART - 1, 5 * PART + 1, 9 * PART])
async def test_an_object_of_another_length(parallel: int, claimed: int) -> None:
    objects = RangedObjects(os.urandom(5 * PART))
    down = downloads(objects, parallel=parallel)
    if parallel > 1 and claimed == 5 * PART - 1:
        # A range cannot see what comes after it; whoever checks the digest gets what he asked for.
        assert await whole(down, claimed) == objects.data[:claimed]
    else:
        with pytest.raises(ObjectCorrupt):
            await whole(down, claimed)
    assert objects.open_reads == 0


async def test_a_reader_that_leaves_stops_every_part() -> None:
    objects = RangedObjects(os.urandom(10 * PART))
    down = downloads(objects)
    chunks = down.chunks("key", 10 * PART)
    await anext(chunks)
    await anext(chunks)  # the first parts ended together; now the next are on their way
    await asyncio.sleep(0)
    assert objects.open_reads > 0
    await chunks.aclose()
    assert objects.open_reads == 0
    assert not down._parts.locked()
    task = asyncio.create_task(whole(down, 10 * PART))
    while objects.open_reads < 3:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert objects.open_reads == 0
    assert await whole(down, 10 * PART) == objects.data


async def test_parts_of_all_downloads_are_bounded_and_each_gets_on() -> None:
    objects = RangedObjects(os.urandom(6 * PART), chunk_bytes=PART)
    objects.gate = asyncio.Event()
    down = downloads(objects)
    tasks = [asyncio.create_task(whole(down, 6 * PART)) for _ in range(10)]
    for _ in range(200):
        await asyncio.sleep(0)
    assert objects.open_reads == MAX_PARTS_AT_ONCE
    objects.gate.set()
    assert await asyncio.gather(*tasks) == [objects.data] * 10
    assert objects.most_open == MAX_PARTS_AT_ONCE


@pytest.mark.parametrize("size", [10, 5 * PART])
async def test_a_store_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("storage.downloads.PATIENCE_S", 0.05)
    objects = RangedObjects(os.urandom(size))
    objects.gate = asyncio.Event()
    with pytest.raises(StorageUnavailable, match="did not come in time"):
        await whole(downloads(objects), size)
    assert objects.open_reads == 0
