"""What every object store must do. A store's test file subclasses `ObjectStoreConformance` and gives it a `store`."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import ObjectMissing, ObjectTooLarge
from storage.objects.base import ObjectStore, single

MIB = 1024 * 1024
LIMIT = 64 * MIB


async def read(store: ObjectStore, key: str, *, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, start=start, length=length)])


async def put(store: ObjectStore, key: str, data: bytes) -> None:
    assert await store.put(key, single(data), max_bytes=LIMIT) == len(data)


class Source:
    """A stream that knows how much of it was asked for; it can fail, or stop and say so, after `give` bytes."""

    def __init__(self, chunk: bytes, chunks: int, *, fail: Exception | None = None, hang: bool = False) -> None:
        self.given = 0
        self.hanging = asyncio.Event()
        self._chunk, self._chunks, self._fail, self._hang = chunk, chunks, fail, hang

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._chunks):
            self.given += len(self._chunk)
            yield self._chunk
        if self._hang:
            self.hanging.set()
            await asyncio.Event().wait()
        if self._fail is not None:
            raise self._fail


class ObjectStoreConformance:
    """Subclasses provide the fixture `store`, and `left_overs` where the store keeps unfinished uploads."""

    async def left_overs(self, store: ObjectStore) -> list[str]:
        """Names of unfinished uploads that the store still keeps."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
    async def test_round_trip(self, store: ObjectStore, size: int) -> None:
        data = os.urandom(size)
        await put(store, "a/b/c.bin", data)
        assert await read(store, "a/b/c.bin") == data
        assert await store.size("a/b/c.bin") == size

    async def test_a_long_stream_of_small_chunks(self, store: ObjectStore) -> None:
        piece = os.urandom(40_000)
        assert await store.put("long", Source(piece, 524), max_bytes=LIMIT) == 524 * len(piece)  # 20 MiB
        assert await read(store, "long") == piece * 524
        assert await self.left_overs(store) == []

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 0), (0, 10), (3, 4), (9, 1), (9, 100), (10, None), (10, 5), (50, None), (50, 1), (4, None), (0, None)],
    )
    async def test_ranges(self, store: ObjectStore, start: int, length: int | None) -> None:
        data = b"0123456789"
        await put(store, "ranged", data)
        end = None if length is None else start + length
        assert await read(store, "ranged", start=start, length=length) == data[start:end]

    async def test_a_range_that_spans_chunks(self, store: ObjectStore) -> None:
        data = os.urandom(4 * MIB)
        await put(store, "ranged", data)
        assert await read(store, "ranged", start=MIB - 1, length=2 * MIB + 2) == data[MIB - 1 : 3 * MIB + 1]

    @pytest.mark.parametrize(("start", "length"), [(-1, None), (0, -1)])
    async def test_a_range_that_is_none_is_refused(self, store: ObjectStore, start: int, length: int | None) -> None:
        await put(store, "ranged", b"0123456789")
        with pytest.raises(ValueError, match="not a range"):
            await read(store, "ranged", start=start, length=length)

    async def test_missing(self, store: ObjectStore) -> None:
        for length in (None, 0, 5):
            with pytest.raises(ObjectMissing):
                await read(store, "never/was", length=length)
        with pytest.raises(ObjectMissing):
            await store.size("never/was")

    async def test_delete(self, store: ObjectStore) -> None:
        await put(store, "x/y", b"1")
        await put(store, "x/z", b"2")
        await store.delete("x/y")
        await store.delete("x/y")
        await store.delete("never/was")
        with pytest.raises(ObjectMissing):
            await read(store, "x/y")
        assert await read(store, "x/z") == b"2"
        await store.delete("x/z")
        await put(store, "x/y", b"again")
        assert await read(store, "x/y") == b"again"

    @pytest.mark.parametrize("limit", [0, MIB, 17 * MIB])
    async def test_too_large_is_refused_while_it_streams(self, store: ObjectStore, limit: int) -> None:
        await put(store, "big", b"old")
        source = Source(bytes(MIB), 40)
        with pytest.raises(ObjectTooLarge):
            await store.put("big", source, max_bytes=limit)
        assert source.given == limit + MIB  # one chunk past the limit, not one more
        assert await read(store, "big") == b"old"
        assert await self.left_overs(store) == []

    async def test_the_limit_itself_is_allowed(self, store: ObjectStore) -> None:
        assert await store.put("fits", Source(bytes(1000), 3), max_bytes=3000) == 3000

    @pytest.mark.parametrize("chunks", [0, 3, 17])
    async def test_a_failing_source_keeps_nothing(self, store: ObjectStore, chunks: int) -> None:
        class Broken(OSError):
            pass

        with pytest.raises(Broken):
            await store.put("broken", Source(bytes(MIB), chunks, fail=Broken("the client went away")), max_bytes=LIMIT)
        with pytest.raises(ObjectMissing):
            await store.size("broken")
        assert await self.left_overs(store) == []

    @pytest.mark.parametrize("chunks", [0, 3, 17])
    async def test_a_cancelled_put_keeps_nothing(self, store: ObjectStore, chunks: int) -> None:
        source = Source(bytes(MIB), chunks, hang=True)
        task = asyncio.create_task(store.put("cut", source, max_bytes=LIMIT))
        await asyncio.wait_for(source.hanging.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ObjectMissing):
            await store.size("cut")
        assert await self.left_overs(store) == []

    async def test_an_overwrite_replaces_the_whole(self, store: ObjectStore) -> None:
        await put(store, "k", b"long old content")
        await put(store, "k", b"new")
        assert await read(store, "k") == b"new"

    async def test_concurrent_puts_of_one_key_have_one_whole_winner(self, store: ObjectStore) -> None:
        versions = [bytes([number]) * (300_000 + number) for number in range(8)]
        await asyncio.gather(*(put(store, "contended/key", each) for each in versions))
        assert await read(store, "contended/key") in versions
        assert await self.left_overs(store) == []

    async def test_a_reader_may_stop_early(self, store: ObjectStore) -> None:
        await put(store, "r", bytes(3 * MIB))
        stream = store.get("r")
        assert await anext(stream)
        await stream.aclose()
        assert await store.size("r") == 3 * MIB

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        key=st.one_of(
            st.text(max_size=20),
            st.sampled_from(
                ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", ".incoming/x", "A", "a b"]
            ),
            st.sampled_from(
                ["a\x00", "a\n", "a\\b", "é", "a" * 129, "/".join("abcdefghi"), "a?b", "a%2fb", "~", "http://x"]
            ),
        ).filter(lambda key: not _plain(key))
    )
    async def test_bad_keys_are_refused(self, store: ObjectStore, key: str) -> None:
        source = Source(b"x", 1)
        with pytest.raises(ValueError, match="not an object key"):
            await store.put(key, source, max_bytes=10)
        with pytest.raises(ValueError, match="not an object key"):
            await read(store, key)
        with pytest.raises(ValueError, match="not an object key"):
            await store.size(key)
        with pytest.raises(ValueError, match="not an object key"):
            await store.delete(key)
        assert source.given == 0


def _plain(key: str) -> bool:
    """The rule in other words than `check_key` has it."""
    segments = key.split("/")
    return len(segments) <= 8 and all(
        0 < len(each) <= 128
        and not each.startswith(".")
        and set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        for each in segments
    )
