"""A gateway's way to one runtime: connects, greets, pings, and connects again. No torch: the gateway imports this file.

    DISCONNECTED > (connect, Hello, Welcome) > READY > (closed, refused or hung) > DISCONNECTED > ...

One owned task connects, waits for the end, and reconnects with back-off for as long as the link is open; a second one
sends a Ping every interval. What goes over it is its owner's: `client.py`. Restarting a runtime is the supervisor's
work: `on_hung` tells it.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from runtime.codec import decode_server, encode
from runtime.errors import RuntimeLost
from runtime.framing import FrameStream
from runtime.peer import peer_pid
from runtime.protocol import (
    PROTOCOL_VERSION,
    Alive,
    ClientFrame,
    Hello,
    ModelInfo,
    Ping,
    Pong,
    ProtocolError,
    Refused,
    ServerFrame,
    Stats,
    Welcome,
)

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 2.0
# Of a socket on this machine: an attempt in vain costs nobody anything, and callers wait for a runtime that starts.
MAX_LOCAL_BACKOFF_S: Final = 0.2
PING_INTERVAL_S: Final = 0.25
# A process that runs answers in milliseconds whatever its engine does (measured: 0.09 s at most, with 64 sequences and
# three more programs for each of two cores). Pings are counted, not time, so a machine that slept finds nobody hung.
SILENT_PINGS: Final = 5
MISSED_PONGS: Final = 12
MISSED_PONGS_CPU: Final = 40


class LinkOwner(Protocol):
    """Who sends and takes the frames."""

    def welcomed(self) -> None:
        """A runtime is ready; frames may be sent from here on."""

    def arrived(self, frame: ServerFrame) -> None:
        """A frame, neither of the greeting nor a Pong."""

    def lost(self, problem: str) -> None:
        """The connection ended, or an attempt failed."""


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket, or a host and a port."""

    socket_path: Path | str | None = None
    host: str | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        if (self.socket_path is None) == (self.host is None):
            raise ValueError("give either socket_path or host")

    def __str__(self) -> str:
        return str(self.socket_path or f"{self.host}:{self.port}")

    async def open(self) -> tuple[FrameStream, asyncio.StreamWriter]:
        """Connects. Raises OSError."""
        loop, reader = asyncio.get_running_loop(), FrameStream()
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        if self.socket_path is not None:
            transport, _ = await loop.create_unix_connection(lambda: protocol, str(self.socket_path))
            return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        assert self.host is not None, "one of the two is given"
        tcp, _ = await loop.create_connection(lambda: protocol, self.host, self.port or 0)
        return reader, asyncio.StreamWriter(tcp, protocol, reader, loop)


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """`token` is the deployment's shared secret. `on_hung` is called (in the event loop, with the runtime's pid) when
    nothing at all came for `max_silent_pings` pings in a row, or when the engine answered none of `max_missed_pongs`;
    the connection is dropped then. The default of the latter is three seconds, or ten for a model on a CPU, where one
    step may honestly take that long. `check` looks at what a runtime says of its model; the words that it returns are
    why it is not used.
    """

    token: str
    gateway_id: str
    ping_interval_s: float = PING_INTERVAL_S
    max_missed_pongs: int | None = None
    connect_timeout_s: float = 5.0
    on_hung: Callable[[int], None] | None = None
    check: Callable[[ModelInfo], str | None] | None = None
    max_silent_pings: int = SILENT_PINGS


class Link:
    """Use as `async with`; closed at the end of the block."""

    def __init__(self, address: Address, options: LinkOptions, owner: LinkOwner) -> None:
        self._address, self._options, self._owner = address, options, owner
        self._refused = ""
        self._writer: asyncio.StreamWriter | None = None
        self._outgoing: list[bytes] = []
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unanswered = self._silent = 0
        self._problem = "not connected yet"
        self.model: ModelInfo | None = None
        self.stats: Stats | None = None
        self.pid: int | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected(), name="runtime-link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def hang_up(self) -> None:
        """Ends it for good: whoever waits for a runtime gets RuntimeLost at once."""
        if self._task is not None:
            self._task.cancel()

    @property
    def ready(self) -> bool:
        """True while a runtime has welcomed this gateway."""
        return self._ready.is_set()

    @property
    def problem(self) -> str | None:
        """None when ready, else a sentence that says what is missing."""
        return None if self.ready else self._problem

    async def wait_ready(self, timeout_s: float) -> ModelInfo:
        """Waits for a welcome. Raises RuntimeLost with the latest problem when none comes in time."""
        if self.model is not None and self.ready and self._task is not None and not self._task.done():
            return self.model
        try:
            async with asyncio.timeout(timeout_s):
                while self.model is None or not self.ready:
                    if self._task is None or self._task.done():
                        raise RuntimeLost(self._problem)
                    await self._ready.wait()
        except TimeoutError as error:
            raise RuntimeLost(f"no runtime within {timeout_s:g} s: {self._problem}") from error
        return self.model

    def connected(self) -> asyncio.StreamWriter:
        """What frames are written to. Raises RuntimeLost while there is no runtime."""
        if self._writer is None or not self.ready:
            raise RuntimeLost(f"the runtime does not answer: {self._problem}")
        return self._writer

    def tell(self, frame: ClientFrame) -> None:
        """Sends a frame, if a runtime is there."""
        if self._writer is not None and self.ready:
            self.send(encode(frame))

    def send(self, frame: bytes) -> None:
        """With all others of this turn of the event loop, in one write."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(frame)

    def _flush(self) -> None:
        frames, self._outgoing = self._outgoing, []
        if frames and self._writer is not None:
            self._writer.write(frames[0] if len(frames) == 1 else b"".join(frames))

    async def _keep_connected(self) -> None:
        most_s = MAX_BACKOFF_S if self._address.socket_path is None else MAX_LOCAL_BACKOFF_S
        backoff_s = FIRST_BACKOFF_S
        try:
            while True:
                try:
                    if await self._serve_connection():
                        backoff_s = FIRST_BACKOFF_S
                except (OSError, ProtocolError, TimeoutError, RuntimeLost) as error:
                    if self.ready:
                        backoff_s = FIRST_BACKOFF_S
                    self._problem = str(error) or type(error).__name__
                    if isinstance(error, TimeoutError) and self._writer is not None:
                        timeout_s = self._options.connect_timeout_s
                        self._hung(f"the runtime said nothing for {timeout_s:g} s after a connect")
                self._disconnected()
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads retries
                backoff_s = min(2 * backoff_s, most_s)
        finally:
            self._problem = "the client is closed"
            self._ready.set()  # wakes who waits for it; they see that nothing will come
            self._disconnected()

    async def _serve_connection(self) -> bool:
        """Connects and reads until the connection ends; returns True when it had been welcomed and closed cleanly."""
        async with asyncio.timeout(self._options.connect_timeout_s):
            reader, writer = await self._address.open()
            self._writer = writer
            if self._address.socket_path is not None:
                self.pid = peer_pid(writer)
            writer.write(encode(Hello(PROTOCOL_VERSION, self._options.token, self._options.gateway_id)))
            await writer.drain()
            body = await reader.first()
        self._greeted(None if body is None else decode_server(body))
        try:
            async with asyncio.TaskGroup() as tasks:
                pings = tasks.create_task(self._ping(writer))
                await reader.deliver(self._arrived)
                pings.cancel()
        except BaseExceptionGroup as group:
            # The reader's own error or the pinger's: one of them ended the connection, the other was cancelled.
            raise group.exceptions[0] from None
        self._problem = "the runtime closed the connection"
        return True

    def _greeted(self, frame: ServerFrame | None) -> None:
        if isinstance(frame, Refused):
            raise self._unusable(f"the runtime refused this gateway: {frame.reason}")
        if not isinstance(frame, Welcome):
            raise RuntimeLost("the runtime closed the connection before it answered")
        if frame.version != PROTOCOL_VERSION:
            raise self._unusable(f"the runtime speaks protocol version {frame.version}, not {PROTOCOL_VERSION}")
        check = self._options.check
        wrong = None if check is None else check(frame.model)
        if wrong is not None:
            raise self._unusable(f"the wrong runtime answers: {wrong}")
        self._refused = ""
        self.model, self.pid, self._unanswered, self._silent = frame.model, frame.pid, 0, 0
        self._ready.set()
        self._owner.welcomed()

    def _unusable(self, problem: str) -> RuntimeLost:
        """Waiting does not mend it: the operator is told, once and not at every attempt."""
        if problem != self._refused:
            self._refused = problem
            logger.error("%s: %s", self._address, problem)
        return RuntimeLost(problem)

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        max_missed = self._options.max_missed_pongs
        if max_missed is None:
            max_missed = MISSED_PONGS_CPU if self.model is not None and self.model.device == "cpu" else MISSED_PONGS
        while True:
            if self._silent >= self._options.max_silent_pings:
                self._hung(f"the runtime said nothing to {self._silent} pings")
                raise RuntimeLost(self._problem)
            if self._unanswered >= max_missed:
                self._hung(f"the runtime's engine answered none of {self._unanswered} pings")
                raise RuntimeLost(self._problem)
            self._unanswered += 1
            self._silent += 1
            writer.write(encode(Ping(clock())))
            await asyncio.sleep(self._options.ping_interval_s)

    def _hung(self, problem: str) -> None:
        logger.error("%s", problem)
        self._problem = problem
        if self._options.on_hung is not None and self.pid is not None:
            self._options.on_hung(self.pid)

    def _arrived(self, body: bytes) -> None:
        self._silent = 0
        match decode_server(body):
            case Alive():
                pass
            case Pong(stats=stats):
                self._unanswered, self.stats = 0, stats
            case Welcome() | Refused():
                raise ProtocolError("a second answer to Hello")
            case frame:
                self._owner.arrived(frame)

    def _disconnected(self) -> None:
        self._ready.clear()
        self.stats = None
        self._outgoing = []
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        self._owner.lost(self._problem)
