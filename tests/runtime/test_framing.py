"""Frames out of a byte stream, however its reads cut them."""

import asyncio
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.framing import FrameStream
from runtime.protocol import ProtocolError


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


async def read_all(reads: list[bytes], max_bytes: int = 1 << 24) -> list[bytes]:
    """What comes of a stream that brings these reads one after the other."""
    frames = FrameStream(max_bytes)
    found: list[bytes] = []

    async def read() -> None:
        body = await frames.first()
        if body is not None:
            found.append(body)
            await frames.deliver(found.append)

    reading = asyncio.create_task(read())
    for data in reads:
        await asyncio.sleep(0)
        frames.feed_data(data)
        await asyncio.sleep(0)
    frames.feed_eof()
    await reading
    return found


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=6))
def test_no_cut_changes_what_is_read(bodies: list[bytes], cuts: list[int]) -> None:
    data = framed(*bodies)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reads = [data[start:end] for start, end in itertools.pairwise(places) if start < end]
    assert asyncio.run(read_all(reads)) == bodies


async def test_what_came_before_anybody_asked_is_given_first() -> None:
    frames, found = FrameStream(), list[bytes]()
    frames.feed_data(framed(b"a", b"", b"ccc") + b"\0\0")
    assert await frames.first() == b"a"
    delivering = asyncio.create_task(frames.deliver(found.append))
    await asyncio.sleep(0)
    assert found == [b"", b"ccc"]
    frames.feed_data(b"\0\1d")
    assert found == [b"", b"ccc", b"d"]  # at once: nothing was waited for
    frames.feed_eof()
    await delivering


async def test_what_the_taker_raises_ends_the_delivery() -> None:
    frames, found = FrameStream(), list[bytes]()

    def take(body: bytes) -> None:
        if body == b"bad":
            raise ProtocolError("this one")
        found.append(body)

    frames.feed_data(framed(b"first"))
    await frames.first()
    delivering = asyncio.create_task(frames.deliver(take))
    await asyncio.sleep(0)
    frames.feed_data(framed(b"good", b"bad", b"more"))
    frames.feed_data(framed(b"still more"))
    with pytest.raises(ProtocolError, match="this one"):
        await delivering
    assert found == [b"good"]


async def test_a_connection_that_breaks_is_told_to_who_waits() -> None:
    frames = FrameStream()
    waiting = asyncio.create_task(frames.first())
    await asyncio.sleep(0)
    frames.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await waiting


async def test_a_large_frame_is_put_together() -> None:
    body = bytes(range(256)) * 4096
    data = framed(b"first", body, b"last")
    assert await read_all([data[start : start + 50_000] for start in range(0, len(data), 50_000)]) == [
        b"first", body, b"last",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 3, 4, 6, 300_000])
async def test_a_close_inside_a_frame_is_an_error(cut: int) -> None:
    with pytest.raises(ProtocolError, match="closed inside a frame"):
        await read_all([framed(bytes(400_000))[:cut]])


async def test_a_frame_over_the_limit_is_refused_after_those_before_it() -> None:
    frames = FrameStream(99)
    frames.feed_data(framed(b"good") + struct.pack(">I", 100))
    assert await frames.first() == b"good"
    with pytest.raises(ProtocolError, match="at most 99"):
        await frames.deliver(lambda body: None)
