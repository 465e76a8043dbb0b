"""The runtime's face: gateways connect, the engine thread answers.

    asyncio (this file): accept > Hello > frames in  ──offer/post──>  engine thread: commands, step, step, ...
                         Step, AdapterStatus, Pong out  <──call_soon_threadsafe──┘

Only the engine thread touches engine, runner and device; only the event loop touches connections, loader and tiers.
A connection that closes, breaks the protocol or does not read loses its own sequences and nobody else's. `run` ends
when it is told to stop, after draining, or with EngineStopped when the engine died or does not come back from a step.
"""

import asyncio
import contextlib
import functools
import hmac
import itertools
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import msgspec

from runtime.adapter import Loads
from runtime.answers import Output
from runtime.cache_report import cache_report
from runtime.codec import decode_client
from runtime.connection import Connection
from runtime.constraining import Constraining
from runtime.engine import Engine, StepResult
from runtime.engine_thread import EngineThread
from runtime.errors import DuplicateId, EngineStopped
from runtime.framing import read_frame
from runtime.grammars.cache import GrammarCache
from runtime.grammars.constraint import Constraint
from runtime.loader import AdapterLoader, AdapterTiers, LoadArrived, LoadFailed, LoadResult, LoadStopped, ThreadLoads
from runtime.protocol import (
    PROTOCOL_VERSION,
    Abort,
    AdapterStatus,
    Alive,
    CacheQuery,
    ClientFrame,
    Failure,
    Forget,
    Hello,
    ModelInfo,
    Ping,
    Pins,
    Places,
    Pong,
    Prefetch,
    ProtocolError,
    Refused,
    SequenceOutput,
    Stats,
    Step,
    Submit,
    Tier,
    Welcome,
    Where,
)
from runtime.tracing import SequenceSpans

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S: Final = 5.0
FLUSH_TIMEOUT_S: Final = 2.0
JOIN_TIMEOUT_S: Final = 5.0


class RuntimeService:
    """Serves one engine. `make_engine` builds it around the loads that this service brings."""

    def __init__(
        self,
        make_engine: Callable[[Loads], Engine],
        clock: Callable[[], float],
        model: ModelInfo,
        tiers: AdapterTiers,
        *,
        token: str,
        refill: bool = False,
        spans: SequenceSpans | None = None,
        grammars: GrammarCache | None = None,
        max_connections: int = 64,
        max_outgoing_bytes: int = 8 * 1024**2,
        drain_s: float = 10.0,
        max_step_s: float = 120.0,
        start_s: float = 0.0,
    ) -> None:
        self._make_engine, self._clock, self._model, self._tiers = make_engine, clock, model, tiers
        self._token, self._max_connections = token.encode(), max_connections
        self._max_outgoing_bytes, self._drain_s, self._max_step_s = max_outgoing_bytes, drain_s, max_step_s
        self._start_s = start_s
        self._spans = spans or SequenceSpans(None, model.name)
        self._loader = AdapterLoader(tiers, self._loaded, refill=refill)
        self._grammars = grammars
        self._connections: dict[int, Connection] = {}
        self._on_device: set[str] = set()  # adapters
        self._numbers = itertools.count(1)
        self._conversations: set[asyncio.Task[None]] = set()
        self._draining = False
        self._nothing_live = asyncio.Event()
        self._died: asyncio.Future[None]
        self._thread: EngineThread
        self._loop: asyncio.AbstractEventLoop
        self._constraining: Constraining
        self.num_cut = 0

    async def run(self, listener: socket.socket, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Serves the bound socket, which it closes, until `stop`; then drains. Raises EngineStopped."""
        self._loop = asyncio.get_running_loop()
        self._died = self._loop.create_future()
        engine = self._make_engine(ThreadLoads(self._loader, self._loop))
        self._thread = EngineThread(engine, self._clock, on_step=self._stepped, on_end=self._ended)
        async with asyncio.TaskGroup() as tasks:
            self._constraining = Constraining(self._grammars, self._clock, tasks)
            background = [tasks.create_task(self._loader.run()), tasks.create_task(self._watch())]
            try:
                self._thread.start()
                await self._serve(listener, stop, on_ready)
            finally:
                self._thread.stop()
                if not await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S):
                    logger.error("the engine is still in a step; leaving without it")
                self._constraining.stop_all()
                for task in background:
                    task.cancel()
        if self._died.done():
            error = self._died.exception()
            raise EngineStopped(f"the engine died: {error or 'see the log above'}") from error

    async def _serve(self, listener: socket.socket, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        start = asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
        server = await start(self._accepted, sock=listener)
        stopping = asyncio.ensure_future(stop.wait())
        try:
            on_ready()
            await asyncio.wait((stopping, self._died), return_when=asyncio.FIRST_COMPLETED)
            self._draining = True
            server.close()
            if not self._died.done():
                await self._drain()
        finally:
            stopping.cancel()
            server.close()
            await self._hang_up()

    async def _watch(self) -> None:
        """A step that does not come back is as bad as a dead engine: this process must be replaced."""
        while not self._died.done():
            await asyncio.sleep(min(1.0, self._max_step_s / 4))
            if self._thread.busy_s() > self._max_step_s and not self._died.done():
                self._died.set_exception(EngineStopped(f"a step has not come back for {self._max_step_s:g} s"))

    async def _drain(self) -> None:
        """Sequences that run may end; new ones are refused by then."""
        if self._live():
            self._nothing_live.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s):
                    await self._nothing_live.wait()
        if self._live():
            logger.warning("stopping with %d sequences unfinished", self._live())

    async def _hang_up(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await asyncio.gather(*(connection.close() for connection in list(self._connections.values())))
        for task in self._conversations:
            task.cancel()
        if self._conversations:
            await asyncio.wait(self._conversations)

    def _live(self) -> int:
        return sum(len(connection.live) for connection in self._connections.values())

    # One connection.

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The server's task of one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        connection = Connection(next(self._numbers), writer, self._max_outgoing_bytes)
        try:
            if await self._greeted(connection, reader):
                await self._converse(connection, reader)
        except ProtocolError as error:
            logger.warning("gateway %s broke the protocol: %s", connection.gateway_id, error)
        except (OSError, TimeoutError) as error:
            logger.info("gateway %s is gone: %s", connection.gateway_id, error or type(error).__name__)
        except asyncio.CancelledError:
            logger.debug("gateway %s is hung up on", connection.gateway_id)
        finally:
            self._conversations.discard(task)
            self._closed(connection)

    async def _greeted(self, connection: Connection, reader: asyncio.StreamReader) -> bool:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            body = await read_frame(reader, max_bytes=64 * 1024)
        hello = None if body is None else decode_client(body)
        if not isinstance(hello, Hello):
            return False
        connection.gateway_id = hello.gateway_id[:64]
        reason = self._refusal(hello)
        if reason is not None:
            logger.warning("gateway %r refused: %s", connection.gateway_id, reason)
            connection.send(Refused(reason))
            await connection.drained()
            await connection.close()
            return False
        self._connections[connection.number] = connection
        connection.send(Welcome(PROTOCOL_VERSION, self._model, os.getpid()))
        self._thread.post(lambda engine: self._tell(connection, engine.adapters()))
        return True

    def _refusal(self, hello: Hello) -> str | None:
        if not hmac.compare_digest(hello.token.encode(), self._token):
            return "wrong token"
        if hello.version != PROTOCOL_VERSION:
            return f"protocol version {hello.version}; this runtime speaks {PROTOCOL_VERSION}"
        if self._draining:
            return "this runtime is stopping"
        if len(self._connections) >= self._max_connections:
            return f"{self._max_connections} gateways are connected already"
        return None

    async def _converse(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        while (body := await read_frame(reader)) is not None:
            self._take(connection, decode_client(body))
            await connection.drained()

    def _closed(self, connection: Connection) -> None:
        if connection.cut_reason is not None:
            self.num_cut += 1
            logger.warning("gateway %s was cut off: %s", connection.gateway_id, connection.cut_reason)
        connection.cut("closed")
        self._connections.pop(connection.number, None)
        if connection.pins:
            self._pin()
        for sequence_id, span in connection.live.items():
            self._constraining.stop((connection.number, sequence_id))
            self._spans.end(span, None)
        connection.live.clear()
        self._note_ends()
        self._thread.post(lambda engine: _discard(engine.abort_owner(connection.number)))

    def _take(self, connection: Connection, frame: ClientFrame) -> None:
        """One frame of a gateway. Raises ProtocolError."""
        match frame:
            case Submit():
                self._submit(connection, frame)
            case Abort(sequence_id):
                if sequence_id in connection.live:
                    self._constraining.stop((connection.number, sequence_id))
                    self._spans.end(connection.live.pop(sequence_id), None)
                    self._note_ends()
                    self._thread.post(lambda engine: engine.abort(connection.number, sequence_id))
            case Prefetch(adapter, soon):
                self._loader.warm(adapter, soon=soon)
            case Forget(digest):
                self._thread.post(lambda engine: engine.forget_adapter(digest))
            case Pins(adapters):
                connection.pins = adapters
                self._pin()
            case CacheQuery(number):
                if not connection.asked_for_report:  # as with pings: one question at a time
                    connection.asked_for_report = True
                    self._thread.post(lambda engine: self._report(connection, number, engine))
            case Where(number, digests):
                connection.send(Places(number, tuple(self._place(digest) for digest in digests)))
            case Ping(sent_at):
                connection.send(Alive())
                # At most one question to the engine per connection: a hung engine must not pile them up.
                if connection.ping_sent_at is None:
                    self._thread.post(lambda engine: self._pong(connection, engine.stats()))
                connection.ping_sent_at = sent_at
            case Hello():
                raise ProtocolError("a second Hello")

    def _pin(self) -> None:
        """Every gateway's pins together."""
        self._loader.pin(adapter for connection in self._connections.values() for adapter in connection.pins)

    def _submit(self, connection: Connection, request: Submit) -> None:
        if request.sequence_id in connection.live:
            raise ProtocolError(f"sequence {request.sequence_id} is still running")

        connection.live[request.sequence_id] = self._spans.begin(request)
        if self._draining:
            self._turn_away(connection, request, Failure("overloaded", "this runtime is stopping", 1.0))
        elif request.grammar is None:
            self._hand_over(connection, request)
        else:
            self._constraining.begin(
                (connection.number, request.sequence_id),
                request,
                request.grammar,
                functools.partial(self._hand_over, connection, request),
                functools.partial(self._turn_away, connection, request),
            )

    def _hand_over(
        self,
        connection: Connection,
        request: Submit,
        constraint: Constraint | None = None,
        arrived_at: float | None = None,
    ) -> None:
        """To the engine, which answers for the sequence from now on."""

        def submit(engine: Engine) -> None:
            try:
                engine.submit(connection.number, request, constraint, arrived_at)
            except DuplicateId as error:
                # An abort of this id is still on its way to the engine: the gateway used the id again.
                self._loop.call_soon_threadsafe(connection.cut, str(error))

        refusal = "this runtime is behind with its commands"
        try:
            if self._thread.offer(submit):
                return
        except EngineStopped as error:
            refusal = str(error)
        self._turn_away(connection, request, Failure("overloaded", refusal, 1.0))

    def _turn_away(self, connection: Connection, request: Submit, failure: Failure) -> None:
        """A sequence that never reaches the engine."""
        output = SequenceOutput(
            sequence_id=request.sequence_id,
            finish_reason="error",
            failure=failure,
            prompt_tokens=len(request.token_ids),
        )
        self._spans.end(connection.live.pop(request.sequence_id), output)
        connection.send(Step((output,)))
        self._note_ends()

    # From the engine thread to the event loop.

    def _stepped(self, result: StepResult) -> None:
        self._loop.call_soon_threadsafe(self._deliver, result)

    def _tell(self, connection: Connection, statuses: list[AdapterStatus]) -> None:
        if statuses:
            self._loop.call_soon_threadsafe(lambda: [connection.send(status) for status in statuses])

    def _pong(self, connection: Connection, stats: Stats) -> None:
        self._loop.call_soon_threadsafe(self._answer_ping, connection, stats)

    def _report(self, connection: Connection, number: int, engine: Engine) -> None:
        (device, copies, on_device), stats = engine.device_report(), engine.stats()

        def send() -> None:
            connection.asked_for_report = False
            below, residents = self._tiers.stats(), self._tiers.residents()
            whole = self._with_own_figures(stats)
            connection.send(cache_report(number, device, copies, on_device, below, residents, whole))

        self._loop.call_soon_threadsafe(send)

    def _ended(self, error: BaseException | None) -> None:
        def note() -> None:
            if error is not None and not self._died.done():
                self._died.set_exception(error)

        self._loop.call_soon_threadsafe(note)

    # On the event loop.

    def _loaded(self, result: LoadResult) -> None:
        def tell(engine: Engine) -> None:
            match result:
                case LoadArrived(digest, packed, way):
                    engine.adapter_loaded(digest, packed, way)
                case LoadFailed(digest, failure):
                    engine.adapter_failed(digest, failure)
                case LoadStopped(digest):
                    engine.adapter_stopped(digest)
                case _:
                    engine.adapter_warmed(result.digest, result.way)

        self._thread.post(tell)

    def _deliver(self, result: StepResult) -> None:
        by_owner: defaultdict[int, list[Output]] = defaultdict(list)
        for item in result.outputs:
            by_owner[item.owner].append(item)
        for owner, items in by_owner.items():
            connection = self._connections.get(owner)
            if connection is None:
                continue
            outputs = tuple(item.output for item in items if item.output.sequence_id in connection.live)
            for output in outputs:
                if output.finish_reason is not None:
                    self._spans.end(connection.live.pop(output.sequence_id), output)
            if outputs:
                connection.send(Step(outputs))
        for status in result.statuses:
            if status.resident == "device":
                self._on_device.add(status.digest)
            else:
                self._on_device.discard(status.digest)
            for connection in list(self._connections.values()):
                connection.send(status)
        self._note_ends()

    def _place(self, digest: str) -> Tier | None:
        return "device" if digest in self._on_device else self._tiers.resident(digest)

    def _answer_ping(self, connection: Connection, stats: Stats) -> None:
        sent_at, connection.ping_sent_at = connection.ping_sent_at, None
        if sent_at is not None:
            connection.send(Pong(sent_at, self._with_own_figures(stats)))

    def _with_own_figures(self, stats: Stats) -> Stats:
        """The engine's, and what it does not know."""
        tiers = self._tiers.stats()
        return msgspec.structs.replace(
            stats,
            memory_bytes=tiers["memory"].used_bytes,
            disk_bytes=tiers["disk"].used_bytes,
            cut_connections=self.num_cut,
            start_s=self._start_s,
        )

    def _note_ends(self) -> None:
        if not self._live():
            self._nothing_live.set()


def _discard(_: object) -> None:
    """Makes a command of a call whose result nobody needs."""
