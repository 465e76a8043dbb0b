"""Frames out of a byte stream, however its reads cut them."""

import asyncio
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.framing import FrameReader
from runtime.protocol import ProtocolError


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


async def read_all(reads: list[bytes], max_bytes: int = 1 << 24) -> list[bytes]:
    """What comes of a stream that brings these reads one after the other."""
    stream = asyncio.StreamReader()
    frames = FrameReader(stream, max_bytes)
    found: list[bytes] = []

    async def read() -> None:
        while bodies := await frames.arrived():
            found.extend(bodies)

    reading = asyncio.create_task(read())
    for data in reads:
        await asyncio.sleep(0)
        stream.feed_data(data)
        await asyncio.sleep(0)
    stream.feed_eof()
    await reading
    return found


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=6))
def test_no_cut_changes_what_is_read(bodies: list[bytes], cuts: list[int]) -> None:
    data = framed(*bodies)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reads = [data[start:end] for start, end in itertools.pairwise(places) if start < end]
    assert asyncio.run(read_all(reads)) == bodies


async def test_what_came_in_one_read_is_given_at_once() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(framed(b"a", b"", b"ccc") + b"\0\0")
    assert await FrameReader(stream).arrived() == [b"a", b"", b"ccc"]


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
    stream = asyncio.StreamReader()
    stream.feed_data(framed(b"good") + struct.pack(">I", 100))
    frames = FrameReader(stream, 99)
    assert await frames.arrived() == [b"good"]
    with pytest.raises(ProtocolError, match="at most 99"):
        await frames.arrived()
