"""uvicorn's HTTP/1.1 protocol with the limits it lacks: framing that cannot be read two ways, bounded heads, deadlines.

uvicorn waits for ever on a head or body that never ends, takes heads of any size, and accepts two Host headers and
chunked bodies on HTTP/1.0. Here a connection is closed with 400, 408, 414 or 431 instead, and never reused. A body must
arrive at `MIN_BODY_RATE` on average after a grace time; a reader must take bytes within `STALLED_READER_S`.

Pipelining is answered in order, a few requests ahead: nothing is read while more than one request is open. Trailers are
dropped, because uvicorn would append them to the headers of a request that is already being judged by them. When there
are more connections than descriptors allow, the one that has said nothing for longest is closed for the new one.

A wish for another protocol (`Upgrade`) is passed over: the request is read again without it, and answered.

Who closes the sending side has gone: from here a half-closed connection looks like a closed one, and a runtime must not
compute for nobody until a write fails. So the request is abandoned at once, as nginx and Go's server do by default.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.departure import SCOPE_KEY, Departure
from gateway.errors import BadInput, LorikeetError, RequestTimeout, RequestTooLarge
from gateway.joined_writes import JoinedWrites
from gateway.open_body import SCOPE_KEY as BODY_KEY
from gateway.open_body import OpenBody
from gateway.open_files import max_connections
from gateway.plain_head import plain_head
from gateway.wire.envelope import error_body

logger = logging.getLogger(__name__)

HEAD_DEADLINE_S: Final = 10.0
BODY_GRACE_S: Final = 30.0
MIN_BODY_RATE: Final = 16 * 1024  # bytes per second
STALLED_READER_S: Final = 30.0
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_SLICE: Final = 16 * 1024
MAX_HEADERS: Final = 128
MAX_URL_BYTES: Final = 16 * 1024
MAX_PIPELINED: Final = 64
CHECK_S: Final = 1.0
TELL_S: Final = 10.0
# What the envelope of a refusal says: its status is that of HTTP, its code that of the nearest error there is.
_ERRORS: Final[dict[int, type[LorikeetError]]] = {
    400: BadInput, 408: RequestTimeout, 414: RequestTooLarge, 431: RequestTooLarge,
}  # fmt: skip
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%:\[\]-]{0,255}")


class _TurnedAway:
    """Connections closed because there were too many: one line for many of them, a stranger can make them by the
    thousand. The first is told at once, with the next lines come those since."""

    def __init__(self) -> None:
        self._told_at = -TELL_S
        self._since = 0

    def another(self, now: float, most: int) -> None:
        self._since += 1
        if now - self._told_at < TELL_S:
            return
        logger.warning(
            "more than %d connections at once: %d closed, those first that were silent for longest; for more, raise "
            "the limit of open files (ulimit -n)",
            most,
            self._since,
        )
        self._told_at, self._since = now, 0


_turned_away: Final = _TurnedAway()


class _Refused(Exception):
    """Raised inside a parser callback; the parser wraps it and uvicorn then calls `send_400_response`."""


class GuardedHttpProtocol(HttpToolsProtocol):
    """One connection. `_phase` is what the peer owes next: a head, a body, or nothing (the app is at work)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = "idle"
        self._phase_began = 0.0
        self._received = 0
        self._head_bytes = 0  # of all header fields so far
        self._framing = 0  # bytes of the body phase since the last byte of body: chunk extensions and trailers
        self._running: RequestResponseCycle | None = None
        self._closing_since: float | None = None
        self._refusal: tuple[int, str] | None = None
        self._waits = False  # the refusal, for the answers to the requests before
        self._fed = b""
        self._plain_head = b""  # of a request that asked for another protocol
        self._again = b""  # that request and what came after it, still to be read
        self._watch: asyncio.TimerHandle | None = None
        self._reader_stalled: asyncio.TimerHandle | None = None

    # connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)  # type: ignore[assignment]  # as good as one for uvicorn
        if len(self.connections) > (most := max_connections()):
            _turned_away.another(self.loop.time(), most)
            self._make_room()
        # A connection that never says a word is a head that never ends.
        self._enter("head")
        self._watch = self.loop.call_later(CHECK_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._watch, self._reader_stalled):
            if timer is not None:
                timer.cancel()
        # uvicorn tells the newest request only; with pipelining the one at work is an older one.
        running = self._running
        if running is not None and running is not self.cycle and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.scope[SCOPE_KEY].leave()  # type: ignore[typeddict-item]  # put there when it was started

    def data_received(self, data: bytes) -> None:
        """In slices, so that what stands between two bytes of body is counted however much one read brings."""
        if len(data) <= MAX_SLICE:
            self._take(data)
            return
        for start in range(0, len(data), MAX_SLICE):
            if self.transport.is_closing():
                return
            self._take(data[start : start + MAX_SLICE])

    def _take(self, data: bytes) -> None:
        if self._waits:
            return
        if self._phase == "idle":
            self._enter("head")
        self._received += len(data)
        if self._phase == "head" and self._received > MAX_HEAD_BYTES + MAX_URL_BYTES and not self._body_follows(data):
            self._refusal = (431, "Request header fields too large.")
            self.send_400_response("")
            return
        if self._phase == "body":
            self._framing += len(data)
        self._fed = data
        super().data_received(data)
        while self._again and not self._waits and not self.transport.is_closing():
            self._fed, self._again = self._again, b""
            super().data_received(self._fed)
        if self._waits or self.transport.is_closing():
            return
        if self._phase == "body" and self._framing > MAX_HEAD_BYTES:
            self._refusal = (431, "Chunk extensions or trailers too large.")
            self.send_400_response("")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_stalled = self.loop.call_later(STALLED_READER_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader_stalled is not None:
            self._reader_stalled.cancel()
        super().resume_writing()

    # parser callbacks: an exception here ends in send_400_response

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._phase != "head":
            self._enter("head")

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._refuse(414, "URI too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == "body":  # a trailer: it may not change a request that is at work
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, "Too many header fields.")
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request header fields too large.")

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self._plain_head = plain_head(method, self.url, version, self.headers)
            return
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1 or (names.count(b"host") == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse(400, "Exactly one Host header is needed.")
        for name, value in self.headers:
            if name == b"host" and not _HOST.fullmatch(value):
                self._refuse(400, "The Host header is not a host.")
        if b"transfer-encoding" in names and (
            b"content-length" in names
            or self.parser.get_http_version() == "1.0"
            or [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"] != [b"chunked"]
        ):
            self._refuse(400, "Ambiguous body length.")
        if names.count(b"content-length") > 1 or names.count(b"authorization") > 1:
            self._refuse(400, "A header is given twice.")
        path = self.url.partition(b"?")[0].lower()
        if b"%00" in path or b"/../" in path.replace(b"%2e", b".").replace(b"%2f", b"/") + b"/":
            self._refuse(400, "The path may not hold NUL or '..'.")
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(400, "Too many pipelined requests.")
        self._enter("body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        self._enter("idle")
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser stops behind the head of such a request: another parser goes on from there."""
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade), "uvicorn calls this while it handles one"
        self._again, self._plain_head = self._plain_head + self._fed[stopped.args[0] :], b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Any]) -> None:
        self._running = cycle
        scope: Any = cycle.scope  # which may hold what servers add
        scope[SCOPE_KEY], scope[BODY_KEY] = Departure(), OpenBody(cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The next pipelined request begins. uvicorn reads on at every answer: requests come faster than answers go."""
        super().on_response_complete()
        if self.pipeline or self._waits:
            self.flow.pause_reading()
        if self._waits and (self._running is None or self._running.response_complete):
            self._waits = False
            self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answers with the refusal's own status, if there is one, and closes; after the answers that are due before."""
        self._refusal = status, text = self._refusal or (400, msg)
        running = self._running is not None and not self._running.response_complete
        if running and not (self._phase == "body" and self.cycle is self._running):
            if self.pipeline and self._phase == "body":
                self.pipeline.popleft()  # the newest, which is the one refused
            self._waits = True
            self.flow.pause_reading()
            return
        if running and self.cycle is not None and self.cycle.response_started:
            self.transport.abort()  # a second head inside an answer would be worse than none
            return
        url: bytes = getattr(self, "url", b"")  # there is none before the first byte of a request
        body = msgspec.json.encode(error_body(_ERRORS[status](text), openai=b"/ai/v1/" in url))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    # room

    def _make_room(self) -> None:
        """Closes the connection that has been without a request for longest; this one when all others are at work."""
        others = [peer for peer in self.connections if isinstance(peer, GuardedHttpProtocol) and peer is not self]
        silent = (peer for peer in others if peer._silent)
        oldest = min(silent, key=lambda peer: peer._phase_began, default=self)
        self.connections.discard(oldest)  # now, so that it is not counted until the loop has closed it
        oldest.transport.abort()

    @property
    def _silent(self) -> bool:
        """True while no request has come in whole or is at work."""
        running = self._running
        return self._phase in ("head", "idle") and (running is None or running.response_complete) and not self.pipeline

    # deadlines

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_began, self._received, self._framing = phase, self.loop.time(), 0, 0

    def _refuse(self, status: int, text: str) -> None:
        self._refusal = (status, text)
        raise _Refused(text)

    def _body_follows(self, data: bytes) -> bool:
        """Whether this read holds the end of the head: then the bytes beyond it are body, not head."""
        return b"\r\n\r\n" in data

    def _check(self) -> None:
        now = self.loop.time()
        if self.transport.is_closing():  # the last bytes are on their way to a peer that may never take them
            self._closing_since = self._closing_since or now
            if now - self._closing_since > STALLED_READER_S:
                self.transport.abort()
                return
        waited = now - self._phase_began
        late = (self._phase == "head" and waited > HEAD_DEADLINE_S) or (
            self._phase == "body"
            and not self.flow.read_paused  # the app is slow, not the peer
            and waited > BODY_GRACE_S + self._received / MIN_BODY_RATE
        )
        if late and not self._waits and not self.transport.is_closing():
            self._refusal = (408, "The request did not arrive in time.")
            self.send_400_response("")
        self._watch = self.loop.call_later(CHECK_S, self._check)
