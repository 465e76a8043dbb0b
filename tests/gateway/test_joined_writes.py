"""What a turn of the event loop writes: one write a connection, in order, and nothing lost at the end of it."""

import asyncio

import pytest

from gateway.joined_writes import JoinedWrites, Turn

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
async def joined(wire: Wire) -> JoinedWrites:
    return JoinedWrites(wire, asyncio.get_running_loop())


async def test_what_is_written_in_one_turn_goes_together_at_its_end(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(HEAD)
    joined.write(b"ok")
    joined.write(b"")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [HEAD + b"ok"]
    joined.write(b"more")
    await asyncio.sleep(0)
    assert wire.writes == [HEAD + b"ok", b"more"]


async def test_all_connections_write_side_by_side_when_everything_else_of_the_turn_is_done() -> None:
    log: list[str] = []

    class Logging(Wire):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            log.append(bytes(data).decode())

    loop = asyncio.get_running_loop()
    for name in ("a", "b", "c"):
        joined = JoinedWrites(Logging(), loop)
        loop.call_soon(log.append, f"work {name}")
        loop.call_soon(joined.write, name.encode())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["work a", "work b", "work c", "a", "b", "c"]


async def test_who_wakes_writers_has_their_words_leave_in_the_turn_in_which_they_say_them() -> None:
    loop, one, other = asyncio.get_running_loop(), Wire(), Wire()
    for wire in (one, other):
        loop.call_soon(JoinedWrites(wire, loop).write, b"x")
    Turn.of(loop).ends_behind_the_woken()
    await asyncio.sleep(0)
    assert (one.writes, other.writes) == ([b"x"], [b"x"])


async def test_who_says_nothing_when_he_is_woken_is_heard_later(wire: Wire, joined: JoinedWrites) -> None:
    turn = Turn.of(asyncio.get_running_loop())
    turn.ends_behind_the_woken()
    await asyncio.sleep(0)
    joined.write(b"late")
    await asyncio.sleep(0)
    assert wire.writes == [b"late"]


async def test_a_lost_connection_takes_nothing_from_the_others() -> None:
    class Lost(Wire):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            assert not self.ended, "as uvloop's: a closed transport raises"
            super().write(data)

    loop, lost, wire = asyncio.get_running_loop(), Lost(), Wire()
    JoinedWrites(lost, loop).write(b"x")
    JoinedWrites(wire, loop).write(b"y")
    lost.close()
    await asyncio.sleep(0)
    assert (lost.writes, wire.writes) == ([], [b"y"])


async def test_what_is_held_is_bounded(wire: Wire, joined: JoinedWrites) -> None:
    for _ in range(9):
        joined.write(bytes(40_000))
    assert [len(data) for data in wire.writes] == [40_000] * 8  # a pair each time: what was held, and what was too much
    await asyncio.sleep(0)
    assert sum(map(len, wire.writes)) == 360_000


async def test_two_heads_keep_their_order(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    joined.write(HEAD)
    joined.write(b"ok")
    await asyncio.sleep(0)
    assert b"".join(wire.writes) == b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"ok"


async def test_a_large_body_is_not_copied(wire: Wire, joined: JoinedWrites) -> None:
    body = bytes(1024 * 1024)
    joined.write(HEAD)
    joined.write(body)
    assert wire.writes == [HEAD, body]


async def test_what_is_held_goes_before_the_connection_is_closed(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(HEAD)
    joined.close()
    assert (wire.writes, wire.ended, joined.is_closing()) == ([HEAD], "closed", True)


async def test_nothing_goes_after_an_abort(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(HEAD)
    joined.abort()
    await asyncio.sleep(0)
    assert (wire.writes, wire.ended) == ([], "aborted")


async def test_the_rest_is_the_transports(joined: JoinedWrites) -> None:
    assert joined.get_extra_info("peername") == "x"
