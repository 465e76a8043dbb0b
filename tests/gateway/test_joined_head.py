"""Heads and bodies of answers: one write, in order, and nothing lost at the end of a connection."""

import asyncio

import pytest

from gateway.joined_head import JoinedHead

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire(asyncio.Transport):
    """What was written, in which pieces."""

    def __init__(self) -> None:
        super().__init__({"peername": "x"})
        self.writes: list[bytes] = []
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def joined(wire: Wire) -> JoinedHead:
    return JoinedHead(wire, asyncio.get_running_loop())


async def test_a_head_goes_with_its_body(wire: Wire, joined: JoinedHead) -> None:
    joined.write(HEAD)
    joined.write(b"ok")
    joined.write(b"more")
    await asyncio.sleep(0)
    assert wire.writes == [HEAD + b"ok", b"more"]


async def test_a_head_alone_goes_at_the_end_of_the_turn(wire: Wire, joined: JoinedHead) -> None:
    joined.write(HEAD)
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [HEAD]


async def test_two_heads_keep_their_order(wire: Wire, joined: JoinedHead) -> None:
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    joined.write(HEAD)
    joined.write(b"ok")
    await asyncio.sleep(0)
    assert b"".join(wire.writes) == b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"ok"


async def test_a_large_body_is_not_copied(wire: Wire, joined: JoinedHead) -> None:
    body = bytes(1024 * 1024)
    joined.write(HEAD)
    joined.write(body)
    assert wire.writes == [HEAD, body]


async def test_what_is_held_goes_before_the_connection_is_closed(wire: Wire, joined: JoinedHead) -> None:
    joined.write(HEAD)
    joined.close()
    assert (wire.writes, wire.ended, joined.is_closing()) == ([HEAD], "closed", True)


async def test_nothing_goes_after_an_abort(wire: Wire, joined: JoinedHead) -> None:
    joined.write(HEAD)
    joined.abort()
    await asyncio.sleep(0)
    assert (wire.writes, wire.ended) == ([], "aborted")


async def test_the_rest_is_the_transports(joined: JoinedHead) -> None:
    assert joined.get_extra_info("peername") == "x"
