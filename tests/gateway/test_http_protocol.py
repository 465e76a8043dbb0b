"""Bad framing, oversized heads and requests that never end, over raw sockets against a real uvicorn."""

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator

import pytest
import uvicorn

import gateway.http_protocol as protocol
from gateway.departure import SCOPE_KEY as DEPARTURE_KEY
from gateway.departure import Departure
from gateway.http_protocol import GuardedHttpProtocol
from gateway.open_body import SCOPE_KEY as BODY_KEY
from gateway.open_body import OpenBody
from gateway.open_files import MOST_OPEN_FILES, max_connections, raise_limit

SEEN: list[str] = []
HEADERS: list[list[bytes]] = []
BODIES: list[bytes] = []
WROTE: list[bool] = []
EVENTS: dict[str, asyncio.Event] = {}  # of the request for /wait; each test has its own, bound to its own loop
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"


async def _app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    SEEN.append(scope["path"])
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    BODIES.append(body)
    HEADERS.append([name for name, _ in scope["headers"]])
    if scope["path"] == "/wait":
        EVENTS["waiting"].set()
        while (await receive())["type"] != "http.disconnect":
            pass
        EVENTS["gone"].set()
        return
    if scope["path"] == "/pieces":
        answer: OpenBody = scope[BODY_KEY]
        WROTE.append(answer.write(b"before the head"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        WROTE.extend([answer.write(b"one"), answer.write(b""), answer.write(b"x" * 20)])
        await send({"type": "http.response.body", "body": b"last", "more_body": False})
        WROTE.append(answer.write(b"after the end"))
        return
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope[BODY_KEY].write(b"y" * 100_000):
            WROTE.append(True)
        EVENTS["waiting"].set()
        await send({"type": "http.response.body", "body": b"drained", "more_body": True})
        EVENTS["gone"].set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    if scope["path"] == "/held":
        EVENTS["waiting"].set()
        await EVENTS["release"].wait()
    if scope["path"] == "/watch":
        scope[DEPARTURE_KEY].watch(EVENTS["gone"].set)
        EVENTS["waiting"].set()
        await EVENTS["gone"].wait()
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        pass


@pytest.fixture
async def port() -> AsyncIterator[int]:
    for seen in (SEEN, HEADERS, BODIES, WROTE):
        seen.clear()
    EVENTS.update(waiting=asyncio.Event(), gone=asyncio.Event(), release=asyncio.Event())
    server = _Server(uvicorn.Config(_app, port=0, http=GuardedHttpProtocol, lifespan="off", log_config=None))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = server.force_exit = True
    await serving


async def _send(port: int, data: bytes, *, until_close: bool = True) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read() if until_close else reader.readuntil(b"ok"), 10)
    finally:
        writer.close()


async def _flood(writer: asyncio.StreamWriter, piece: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(piece)
        await asyncio.wait_for(writer.drain(), 10)
        await asyncio.sleep(0)  # lets a connection that was closed say so


async def test_good_requests_pass_and_the_connection_is_reused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(b"POST /a%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 5)).startswith(b"HTTP/1.1 200")
    writer.close()
    assert SEEN == ["/a b"] * 3


H2C = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(HIDDEN)


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ([H2C + LENGTH + HIDDEN], HIDDEN),  # the body is a body, whatever it looks like
        ([H2C + LENGTH, HIDDEN], HIDDEN),  # as Java's client sends it
        ([H2C[:70], H2C[70:] + LENGTH + HIDDEN[:5], HIDDEN[5:]], HIDDEN),
        ([H2C + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"], b"abc"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"], b""),
        ([H2C + b"Content-Length: 40000\r\n\r\n" + b"y" * 40_000], b"y" * 40_000),
    ],
)
async def test_a_wish_for_another_protocol_is_passed_over(port: int, pieces: list[bytes], body: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for count in (1, 2):  # the connection goes on as it is
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        assert answer.startswith(b"HTTP/1.1 200")
        assert [body] * count == BODIES
    assert {name for names in HEADERS for name in names} <= {b"host", b"content-length", b"transfer-encoding"}
    writer.write(b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"ok"), 5)).startswith(b"HTTP/1.1 200")
    writer.close()
    assert SEEN == ["/", "/", "/last"]


async def test_requests_that_wish_for_another_protocol_may_be_pipelined(port: int) -> None:
    one = H2C + b"Content-Length: 3\r\n\r\nabc"
    reply = await _send(port, one * 20 + one.replace(b"Upgrade,", b"close, Upgrade,"))
    assert reply.count(b"HTTP/1.1 200") == 21
    assert BODIES == [b"abc"] * 21


async def test_a_large_body_in_one_write_is_not_a_large_head(port: int) -> None:
    body = b"x" * 500_000
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await _send(port, head + body, until_close=False)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN, 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab" + HIDDEN, 400),
        (POST + b"Content-Length: 2, 2\r\n\r\nab" + HIDDEN, 400),
        (POST + b"Content-Length: +2\r\n\r\nab" + HIDDEN, 400),
        (POST + b"Content-Length: 2\r\nX: a\r\n b\r\n\r\nab" + HIDDEN, 400),
        (b"GET / HTTP/1.1\nHost: x\n\n" + HIDDEN, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n" + HIDDEN, 400),
        (b"GET / HTTP/1.1\r\nHost: a/public?\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN, 400),
        (H2C + b"Host: y\r\n\r\n" + HIDDEN, 400),
        (H2C + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nab" + HIDDEN, 400),
        (H2C + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN, 400),
        (H2C + b"A: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n", 400),
        (b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a/..%2fb HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/#@b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\xff\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
async def test_bad_framing_is_refused_and_closed(port: int, data: bytes, status: int) -> None:
    try:
        reply = await _send(port, data)
    except ConnectionResetError:
        reply = b""  # the refusal can be lost when the server closes with our bytes unread
    assert reply.startswith(b"HTTP/1.1 %d" % status) or (reply == b"" and len(data) > 100_000)
    assert reply.count(b"HTTP/1.1") <= 1
    assert SEEN == []
    if reply:
        _check_envelope(reply, {400: 5006, 414: 3006, 431: 3006}[status])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n" + HIDDEN, 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab" + HIDDEN, 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    ],
)
async def test_a_refusal_is_told_on_a_connection_that_was_used_before(port: int, data: bytes, status: int) -> None:
    """As every client's pool does it; a reset would look like a server that has fallen over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"ok")
        writer.write(data)
        reply = await reader.read()
    writer.close()
    assert reply.startswith(b"HTTP/1.1 %d" % status)
    assert SEEN == ["/first"]
    _check_envelope(reply, {400: 5006, 414: 3006, 431: 3006}[status])


@pytest.mark.parametrize(
    "bad",
    [
        b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
        b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n" + HIDDEN,
        b"nothing that is HTTP\r\n\r\n" + HIDDEN,
        b"POST /bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + HIDDEN,
        b"POST /bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a" * 90_000,
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_refusal_waits_for_the_answers_before_it(port: int, bad: bytes, at_once: bool) -> None:
    """A caller takes the first answer for that to its first request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    good = b"GET /held HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(good + (bad if at_once else b""))
    async with asyncio.timeout(10):
        await EVENTS["waiting"].wait()
        if not at_once:
            writer.write(bad)
        for _ in range(50):  # turns of the loop, which is the server's too: nothing must come meanwhile
            await asyncio.sleep(0)
        assert not reader._buffer  # type: ignore[attr-defined]
        EVENTS["release"].set()
        first, second = [await reader.readuntil(b"ok") for _ in range(2)]
        refusal = await reader.read()
    writer.close()
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert refusal.startswith(b"HTTP/1.1 4")
    assert refusal.count(b"HTTP/1.1") == 1
    assert SEEN == ["/held", "/second"]


def _check_envelope(reply: bytes, code: int) -> None:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-length: %d\r\n" % len(body) in head
    said = json.loads(body)
    assert (said["success"], said["result"], said["errors"][0]["code"]) == (False, None, code)
    assert said["errors"][0]["message"].endswith(".")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\nHos",
        POST + b"Content-Length: 9\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_what_never_ends_is_closed(port: int, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_DEADLINE_S", "BODY_GRACE_S", "CHECK_S"):
        monkeypatch.setattr(protocol, name, 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    reply = await asyncio.wait_for(reader.read(), 10)
    assert reply.startswith(b"HTTP/1.1 408")
    _check_envelope(reply, 3046)
    writer.close()


async def test_trailers_change_nothing(port: int) -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"Authorization: Bearer late\r\nX: y\r\n"
    assert (await _send(port, chunked + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n", until_close=False)).startswith(
        b"HTTP/1.1 200"
    )
    assert HEADERS == [[b"host", b"transfer-encoding"]]


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"3;ext="])
async def test_trailers_and_chunk_extensions_are_bounded(port: int, endless: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
    with pytest.raises(ConnectionError):
        await _flood(writer, b"a" * 65536, 200)
    writer.close()


@pytest.mark.parametrize("size", [b"1" * 17, b"f" * 17, b"zz", b"-1", b"0x1", b""])
async def test_chunk_sizes_that_are_none(port: int, size: bytes) -> None:
    """The application may have begun by then, but no second request is found behind such a body."""
    reply = await _send(port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + HIDDEN)
    assert reply.startswith(b"HTTP/1.1 400")
    assert reply.count(b"HTTP/1.1") == 1
    assert "/hidden" not in SEEN


@pytest.mark.parametrize(
    "data", [b"0\r\n" + b"X-T: y\r\n" * 20_000 + b"\r\n", b"3;ext=" + b"a" * 200_000 + b"\r\nabc\r\n0\r\n\r\n"],
    ids=["20,000 trailers", "a chunk extension of 200 KB"],
)  # fmt: skip
async def test_trailers_and_chunk_extensions_in_one_write(port: int, data: bytes) -> None:
    try:
        reply = await _send(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    except ConnectionResetError:
        reply = b""  # the refusal can be lost when the server closes with our bytes unread
    assert reply == b"" or reply.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


async def test_pipelined_requests_are_answered_in_order_a_few_at_a_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    begin = GuardedHttpProtocol.on_headers_complete

    def count(self: GuardedHttpProtocol) -> None:
        nonlocal most
        begin(self)
        most = max(most, len(self.pipeline))

    monkeypatch.setattr(GuardedHttpProtocol, "on_headers_complete", count)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(30)))
    for _ in range(30):
        await asyncio.wait_for(reader.readuntil(b"ok"), 5)
    assert [int(path[1:]) for path in SEEN] == list(range(30))
    with contextlib.suppress(ConnectionError):  # one who never reads and asks on and on
        await _flood(writer, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000, 100)
    writer.close()
    assert 0 < most <= protocol.MAX_PIPELINED


async def test_a_disconnect_reaches_the_request_at_work_behind_which_others_wait(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(EVENTS["waiting"].wait(), 5)
    writer.transport.abort()
    await asyncio.wait_for(EVENTS["gone"].wait(), 5)
    assert SEEN == ["/wait"]


@pytest.mark.parametrize("behind", [b"", b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_departure_is_told_to_who_watches_for_it(port: int, behind: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
    await asyncio.wait_for(EVENTS["waiting"].wait(), 5)
    writer.transport.abort()
    await asyncio.wait_for(EVENTS["gone"].wait(), 5)
    assert SEEN == ["/watch"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_pieces_of_an_open_body_are_chunks_like_any_other(port: int, method: bytes) -> None:
    answer = await _send(port, method + b" /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    body = answer.partition(b"\r\n\r\n")[2]
    if method == b"HEAD":  # has no body, so none is written
        assert (WROTE, body) == ([False] * 5, b"")
        return
    assert WROTE == [False, True, True, True, False]
    assert body == b"3\r\none\r\n14\r\n" + b"x" * 20 + b"\r\n4\r\nlast\r\n0\r\n\r\n"


async def test_pieces_for_who_reads_slowly_go_the_way_that_waits(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET /flood HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await asyncio.wait_for(EVENTS["waiting"].wait(), 5)
    assert len(WROTE) < 1000  # it stopped by itself, though nobody read
    assert not EVENTS["gone"].is_set()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert EVENTS["gone"].is_set()
    assert answer.count(b"y") == 100_000 * len(WROTE)
    assert b"7\r\ndrained\r\n0\r\n\r\n" in answer
    writer.close()


def test_a_departure_is_told_once_and_not_to_who_stopped_watching() -> None:
    told: list[str] = []
    departure = Departure()
    departure.watch(lambda: told.append("first"))
    departure.unwatch()
    departure.watch(lambda: told.append("second"))
    departure.leave()
    departure.leave()
    assert (told, departure.left) == (["second"], True)


async def test_when_there_is_no_room_the_longest_silent_connection_goes(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol, "max_connections", lambda: 4)
    monkeypatch.setattr(protocol, "_turned_away", protocol._TurnedAway())
    busy_reader, busy = await asyncio.open_connection("127.0.0.1", port)
    busy.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(EVENTS["waiting"].wait(), 5)
    silent = []
    for head in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        if head.endswith(b"\r\n\r\n"):
            await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        silent.append((reader, writer))
    for reader, _ in list(silent):
        silent.append(await asyncio.open_connection("127.0.0.1", port))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
    newest_reader, newest = silent[-1]
    newest.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(newest_reader.readuntil(b"ok"), 5)
    assert not EVENTS["gone"].is_set()
    assert not busy_reader.at_eof()
    told = [line.getMessage() for line in caplog.records if "connections at once" in line.getMessage()]
    assert len(told) == 1, "one line for many"
    assert "more than 4 connections at once: 1 closed" in told[0]
    for _, writer in [*silent, (busy_reader, busy)]:
        writer.close()


def test_later_connections_too_many_are_told_with_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    turned_away = protocol._TurnedAway()
    for now in (0.0, 1.0, 9.9, 10.0, 15.0):
        turned_away.another(now, 4)
    assert [line.args for line in caplog.records] == [(4, 1), (4, 3)]


def test_the_limit_leaves_room_for_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        assert max_connections() == 450
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        assert max_connections() == 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        assert max_connections() == 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(before[1], MOST_OPEN_FILES)
        assert max_connections() == min(before[1], MOST_OPEN_FILES) - 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
