"""The multipart reader against bodies made by hand and by a real client, cut into pieces anywhere."""

import itertools
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadInput
from gateway.wire.multipart import MAX_PARTS, read_parts

KIND = "multipart/form-data; boundary=B"


def part(name: str, data: bytes) -> bytes:
    return b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)


async def pieces(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({0, *(cut % (len(body) + 1) for cut in cuts), len(body)})
    for start, stop in itertools.pairwise(edges):
        yield body[start:stop]


async def collect(content_type: str, body: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    return [
        (item.name, b"".join([chunk async for chunk in item.chunks()]))
        async for item in read_parts(content_type, pieces(body, cuts))
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["file", "file_name", "x"]), st.binary(max_size=60)), min_size=1, max_size=4),
    st.lists(st.integers(0, 10_000), max_size=30),
)
async def test_a_clients_body_comes_back_however_it_is_cut(parts: list[tuple[str, bytes]], cuts: list[int]) -> None:
    request = httpx.Request("POST", "http://x", files=[(name, ("blob", data)) for name, data in parts])
    assert await collect(request.headers["content-type"], request.read(), cuts) == parts


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sets(st.integers(0, 2)))
async def test_parts_that_are_not_read_are_skipped(cuts: list[int], read: set[int]) -> None:
    body = b"".join(part(str(number), b"data\r\n--Bx" * 9) for number in range(3)) + b"--B--\r\n"
    names = []
    async for item in read_parts(KIND, pieces(body, cuts)):
        names.append(item.name)
        if int(item.name) in read:
            assert b"".join([chunk async for chunk in item.chunks()]) == b"data\r\n--Bx" * 9
    assert names == ["0", "1", "2"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.lists(st.integers(0, 10_000), max_size=5))
async def test_a_body_that_breaks_off_is_never_taken_for_whole(cut: int, cuts: list[int]) -> None:
    body = part("a", b"x" * 20) + part("b", b"\r\n--B" * 5) + b"--B--"
    whole = body[: min(cut, len(body) - 1)]
    with pytest.raises(BadInput):
        await collect(KIND, whole, cuts)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=30), st.lists(st.integers(0, 10_000), max_size=5))
async def test_no_bytes_crash_it(body: bytes, content_type: bytes, cuts: list[int]) -> None:
    for kind in (KIND, KIND + content_type.decode("latin-1"), content_type.decode("latin-1")):
        for whole in (body, b"--B\r\n" + body, part("a", body)):
            try:
                await collect(kind, whole, cuts)
            except BadInput:
                continue


async def test_the_number_of_parts_is_bounded() -> None:
    body = b"".join(part("x", b"") for _ in range(MAX_PARTS)) + b"--B--"
    assert len(await collect(KIND, body, [])) == MAX_PARTS
    with pytest.raises(BadInput, match="more than"):
        await collect(KIND, part("x", b"") + body, [])


async def test_text_parts_are_bounded_and_utf8() -> None:
    async def text(data: bytes) -> str:
        async for item in read_parts(KIND, pieces(part("x", data) + b"--B--", [])):
            return await item.text(10)
        raise AssertionError("no part")

    assert await text("ünï".encode()) == "ünï"
    for bad in (b"x" * 11, b"\xff"):
        with pytest.raises(BadInput):
            await text(bad)
