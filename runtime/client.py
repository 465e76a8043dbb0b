"""The gateway's end of the connection to one runtime. No torch: the gateway imports this file.

    DISCONNECTED > (connect, Hello, Welcome) > READY > (closed, refused or hung) > DISCONNECTED > ...

One owned task connects, waits for the end, and reconnects with back-off for as long as the client is open; a second one
sends a Ping every interval. Each sequence has a `_Stream` that holds at most one merged output, so a slow reader costs
no more than the tokens of its own answer. When the connection ends, for whatever reason, every waiting stream ends at
once with `RuntimeLost`. Restarting a runtime is the supervisor's work: `on_hung` tells it.
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cachetools

from runtime.codec import decode_server, encode
from runtime.errors import RuntimeLost as RuntimeLost
from runtime.framing import FrameStream
from runtime.peer import peer_pid
from runtime.places import PlacesAsked, placed
from runtime.protocol import (
    PROTOCOL_VERSION,
    Abort,
    AdapterRef,
    AdapterStatus,
    CacheQuery,
    CacheReport,
    ClientFrame,
    Failure,
    Forget,
    Grammar,
    Hello,
    ModelInfo,
    Ping,
    Pins,
    Places,
    Pong,
    Prefetch,
    ProtocolError,
    Refused,
    SamplingParams,
    SequenceOutput,
    ServerFrame,
    Stats,
    Step,
    Submit,
    Welcome,
    Where,
)
from runtime.stream import Beat, Stream

logger = logging.getLogger(__name__)

MAX_STATUSES: Final = 4096
MAX_FORGOTTEN: Final = 1_000
FIRST_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 2.0
MISSED_PONGS: Final = 3
MISSED_PONGS_CPU: Final = 10


class RuntimeClient:
    """Use as `async with RuntimeClient(...) as client`; everything is freed at the end of the block.

    socket_path, or host and port, name the runtime; `token` is the deployment's shared secret. `on_hung` is called
    (in the event loop, with the runtime's pid) when `max_missed_pongs` pings in a row went unanswered; the connection
    is dropped then. The default is three, or ten for a model on a CPU, where one step may honestly take seconds.
    `check` looks at what a runtime says of its model; the words that it returns are why it is not used. Outputs of one
    sequence that come within `max_gap_s` may be given together, see `stream.py`.
    """

    def __init__(
        self,
        *,
        socket_path: Path | str | None = None,
        host: str | None = None,
        port: int | None = None,
        token: str = "",
        gateway_id: str,
        ping_interval_s: float = 1.0,
        max_missed_pongs: int | None = None,
        connect_timeout_s: float = 5.0,
        max_streams: int = 4096,
        on_hung: Callable[[int], None] | None = None,
        check: Callable[[ModelInfo], str | None] | None = None,
        max_gap_s: float = 0.0,
    ) -> None:
        if (socket_path is None) == (host is None):
            raise ValueError("give either socket_path or host")
        self._socket_path, self._host, self._port = socket_path, host, port
        self._token, self._gateway_id = token, gateway_id
        self._ping_interval_s, self._max_missed = ping_interval_s, max_missed_pongs
        self._connect_timeout_s, self._max_streams, self._on_hung = connect_timeout_s, max_streams, on_hung
        self._check = check
        self._max_gap_s = max_gap_s
        self._beat: Beat | None = None
        self._refused = ""
        self._ids = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._outgoing: list[bytes] = []
        self._ready = asyncio.Event()
        self._statuses: cachetools.LRUCache[str, AdapterStatus] = cachetools.LRUCache(MAX_STATUSES)
        self._task: asyncio.Task[None] | None = None
        self._forgotten: dict[str, None] = {}  # in order; told again to every runtime that is connected to
        self._pins: tuple[AdapterRef, ...] = ()
        self._on_connect: Callable[[], None] | None = None
        self._report: asyncio.Future[CacheReport] | None = None
        self._places = PlacesAsked()
        self._unanswered = 0
        self._problem = "not connected yet"
        self.model: ModelInfo | None = None
        self.stats: Stats | None = None
        self.pid: int | None = None

    async def __aenter__(self) -> Self:
        if self._max_gap_s > 0:
            loop = asyncio.get_running_loop()
            self._beat = Beat(self._max_gap_s, loop.time, loop.call_later)
        self._task = asyncio.create_task(self._keep_connected(), name="runtime-client")
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
        """Ends the connection for good: every stream, and whoever waits for a runtime, gets RuntimeLost at once."""
        if self._task is not None:
            self._task.cancel()

    @property
    def ready(self) -> bool:
        """True while a runtime has welcomed this client."""
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

    def submit(
        self,
        *,
        account_id: str,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        adapter: AdapterRef | None = None,
        traceparent: str | None = None,
        timeout_s: float = 120.0,
        grammar: Grammar | None = None,
        priority: int = 0,
        weight: float = 1.0,
        only_if_free: bool = False,
    ) -> "Running":
        """Runs one sequence from when its first output is asked for: outputs, the last one with `finish_reason`.

        Close it (`contextlib.aclosing`) when the caller goes away: that aborts the sequence. Outputs that nobody has
        taken yet are merged into one. Taking them raises RuntimeLost.
        """
        request = Submit(
            sequence_id=next(self._ids),
            account_id=account_id,
            token_ids=tuple(token_ids),
            sampling=sampling,
            adapter=adapter,
            traceparent=traceparent,
            timeout_s=timeout_s,
            grammar=grammar,
            priority=priority,
            weight=weight,
            only_if_free=only_if_free,
        )
        return Running(self, request)

    async def begin(self, request: Submit) -> Stream:
        """For `Running`: sends it and opens its stream; what is not worth sending fails in there."""
        writer, stream = self._connected(), Stream(self._beat)
        if request.adapter is not None:
            self._forgotten.pop(request.adapter.digest, None)  # the same weights were uploaded again
        frame = self._acceptable(request)
        if isinstance(frame, Failure):
            stream.put(SequenceOutput(request.sequence_id, finish_reason="error", failure=frame))
            return stream
        self._streams[request.sequence_id] = stream
        self._count_streams()
        self._send(frame)
        try:
            await _drained(writer)
        except BaseException:
            self.end(request.sequence_id)
            raise
        return stream

    def end(self, sequence_id: int) -> None:
        """For `Running`: nobody takes its outputs any more. Aborts it if there would have been some."""
        stream = self._streams.pop(sequence_id, None)
        if stream is not None:
            self._count_streams()
            if not stream.ended:
                self._tell(Abort(sequence_id))

    async def prefetch(self, adapter: AdapterRef, *, soon: bool = False) -> None:
        """Asks the runtime to bring an adapter up to host memory; `soon`: for a request that follows in a moment.

        Best effort: nothing happens while disconnected.
        """
        self._tell(Prefetch(adapter, soon))

    async def forget(self, digest: str) -> None:
        """Asks the runtime to drop a deleted adapter from every tier, and each runtime that comes after it: one that is
        killed may not have come to it, and its disk tier outlives it."""
        self._statuses.pop(digest, None)
        self._forgotten.pop(digest, None)
        self._forgotten[digest] = None
        if len(self._forgotten) > MAX_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]
        if self.ready:
            self._tell(Forget(digest))

    def pin(self, adapters: Sequence[AdapterRef]) -> None:
        """Asks the runtime to keep exactly these in host memory, now and after every reconnect."""
        self._pins = tuple(adapters)
        self._tell(Pins(self._pins))

    def on_connect(self, told: Callable[[], None]) -> None:
        """`told` is called whenever a runtime has welcomed this client, and now if one has."""
        self._on_connect = told
        if self.ready:
            told()

    async def cache_report(self, timeout_s: float = 10.0) -> CacheReport:
        """What is in the runtime's tiers. Who asks while a question is under way shares its answer. Raises
        RuntimeLost.
        """
        self._connected()
        if self._report is None or self._report.done():
            self._report = asyncio.get_running_loop().create_future()
            self._tell(CacheQuery(next(self._ids)))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._report)
        except TimeoutError as error:
            raise RuntimeLost(f"the runtime did not tell of its tiers within {timeout_s:g} s") from error

    def adapter_status(self, digest: str) -> AdapterStatus | None:
        """The latest news of an adapter; None when there was none, or too long ago."""
        return self._statuses.get(digest)

    async def adapter_statuses(self, digests: Sequence[str], timeout_s: float = 5.0) -> dict[str, AdapterStatus]:
        """Where these adapters are now, and their latest way up; without those of which nothing is known.

        Of a runtime that does not answer: the latest news.
        """
        places = None
        if digests and self.ready:
            places = await self._places.ask(self._tell, Where(next(self._ids), tuple(digests)), timeout_s)
        return placed(digests, places, self._statuses)

    def _count_streams(self) -> None:
        if self._beat is not None:
            self._beat.num_streams = len(self._streams)

    def _acceptable(self, request: Submit) -> bytes | Failure:
        """The frame, or why it is not worth sending."""
        if len(self._streams) >= self._max_streams:
            return Failure("overloaded", f"{self._max_streams} sequences are open on this gateway", 1.0)
        limit = 0 if self.model is None else self.model.max_sequence_tokens
        if len(request.token_ids) >= limit:
            return Failure("too_long", f"the prompt has {len(request.token_ids)} tokens; the model takes {limit}")
        try:
            return encode(request)
        except ProtocolError as error:
            return Failure("too_long", str(error))

    def _connected(self) -> asyncio.StreamWriter:
        if self._writer is None or not self.ready:
            raise RuntimeLost(f"the runtime does not answer: {self._problem}")
        return self._writer

    def _tell(self, frame: ClientFrame) -> None:
        if self._writer is not None and self.ready:
            self._send(encode(frame))

    def _send(self, frame: bytes) -> None:
        """With all others of this turn of the event loop, in one write."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(frame)

    def _flush(self) -> None:
        frames, self._outgoing = self._outgoing, []
        if frames and self._writer is not None:
            self._writer.write(frames[0] if len(frames) == 1 else b"".join(frames))

    async def _keep_connected(self) -> None:
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
                        self._hung(f"the runtime said nothing for {self._connect_timeout_s:g} s after a connect")
                self._disconnected()
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads retries
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        finally:
            self._problem = "the client is closed"
            self._ready.set()  # wakes who waits for it; they see that nothing will come
            self._disconnected()

    async def _serve_connection(self) -> bool:
        """Connects and reads until the connection ends; returns True when it had been welcomed and closed cleanly."""
        async with asyncio.timeout(self._connect_timeout_s):
            reader, writer = await self._open()
            self._writer = writer
            writer.write(encode(Hello(PROTOCOL_VERSION, self._token, self._gateway_id)))
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

    async def _open(self) -> tuple[FrameStream, asyncio.StreamWriter]:
        loop, reader = asyncio.get_running_loop(), FrameStream()
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        if self._socket_path is None:
            assert self._host is not None, "one of the two is given"
            transport, _ = await loop.create_connection(lambda: protocol, self._host, self._port or 0)
            return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        transport, _ = await loop.create_unix_connection(lambda: protocol, str(self._socket_path))
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self.pid = peer_pid(writer)
        return reader, writer

    def _greeted(self, frame: ServerFrame | None) -> None:
        if isinstance(frame, Refused):
            raise self._unusable(f"the runtime refused this gateway: {frame.reason}")
        if not isinstance(frame, Welcome):
            raise RuntimeLost("the runtime closed the connection before it answered")
        if frame.version != PROTOCOL_VERSION:
            raise self._unusable(f"the runtime speaks protocol version {frame.version}, not {PROTOCOL_VERSION}")
        wrong = None if self._check is None else self._check(frame.model)
        if wrong is not None:
            raise self._unusable(f"the wrong runtime answers: {wrong}")
        self._refused = ""
        self.model, self.pid, self._unanswered = frame.model, frame.pid, 0
        self._ready.set()
        for digest in self._forgotten:
            self._tell(Forget(digest))
        if self._pins:
            self._tell(Pins(self._pins))
        if self._on_connect is not None:
            self._on_connect()

    def _unusable(self, problem: str) -> RuntimeLost:
        """Waiting does not mend it: the operator is told, once and not at every attempt."""
        if problem != self._refused:
            self._refused = problem
            logger.error("%s: %s", self._socket_path or f"{self._host}:{self._port}", problem)
        return RuntimeLost(problem)

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        max_missed = self._max_missed
        if max_missed is None:
            max_missed = MISSED_PONGS_CPU if self.model is not None and self.model.device == "cpu" else MISSED_PONGS
        while True:
            if self._unanswered >= max_missed:
                self._hung(f"the runtime answered none of {self._unanswered} pings")
                raise RuntimeLost(self._problem)
            self._unanswered += 1
            writer.write(encode(Ping(clock())))
            await asyncio.sleep(self._ping_interval_s)

    def _hung(self, problem: str) -> None:
        logger.error("%s", problem)
        self._problem = problem
        if self._on_hung is not None and self.pid is not None:
            self._on_hung(self.pid)

    def _arrived(self, body: bytes) -> None:
        self._take(decode_server(body))

    def _take(self, frame: ServerFrame) -> None:
        match frame:
            case Step(outputs):
                for output in outputs:
                    stream = self._streams.get(output.sequence_id)
                    if stream is not None:
                        stream.put(output)
            case Pong(stats=stats):
                self._unanswered, self.stats = 0, stats
            case AdapterStatus():
                self._statuses[frame.digest] = frame
            case CacheReport():
                if self._report is not None and not self._report.done():
                    self._report.set_result(frame)
            case Places():
                self._places.answered(frame)
            case Welcome() | Refused():
                raise ProtocolError("a second answer to Hello")

    def _disconnected(self) -> None:
        self._ready.clear()
        self.stats = None
        self._statuses.clear()
        self._outgoing = []
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        if self._report is not None and not self._report.done():
            self._report.set_exception(RuntimeLost(f"the runtime went away: {self._problem}"))
            self._report.exception()  # seen, should nobody ask any more
        self._places.lost()
        for stream in self._streams.values():
            stream.fail(RuntimeLost(f"the runtime went away: {self._problem}"))


class Running:
    """The outputs of one sequence, as `RuntimeClient.submit` says. Not a generator: that would be one more thing to go
    through at every output. As there, whatever ends the taking of one, a cancellation too, ends the sequence.
    """

    def __init__(self, client: RuntimeClient, request: Submit) -> None:
        self._client = client
        self._request = request
        self._stream: Stream | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        if self._is_over:
            raise StopAsyncIteration
        try:
            if self._stream is None:
                self._stream = await self._client.begin(self._request)
            output = await self._stream.get()
        except BaseException:
            await self.aclose()
            raise
        if output.finish_reason is not None:
            await self.aclose()
        return output

    async def aclose(self) -> None:
        """Nothing is taken any more."""
        self._is_over = True
        self._client.end(self._request.sequence_id)


async def _drained(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.drain()
    except OSError as error:
        raise RuntimeLost("the runtime went away while a prompt was sent") from error
