"""A gateway's requests to one runtime: what is under way on the link, and what every runtime that comes is told.

Each sequence has a `Stream` that holds at most one merged output, so a slow reader costs no more than the tokens of its
own answer. When the connection ends, for whatever reason, every waiting stream ends at once with `RuntimeLost`. Deleted
adapters and pins outlive connections and are told again. No torch: the gateway imports this file.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cachetools

from runtime.codec import encode
from runtime.errors import RuntimeLost as RuntimeLost
from runtime.link import PING_INTERVAL_S, Address, Link, LinkOptions
from runtime.outputs import Outputs
from runtime.places import PlacesAsked, placed
from runtime.protocol import (
    Abort,
    AdapterRef,
    AdapterStatus,
    CacheQuery,
    CacheReport,
    Failure,
    Forget,
    Grammar,
    ModelInfo,
    Pins,
    Places,
    Prefetch,
    ProtocolError,
    SamplingParams,
    SequenceOutput,
    ServerFrame,
    Stats,
    Step,
    Submit,
    Where,
)
from runtime.stream import Beat, Stream

MAX_STATUSES: Final = 4096
MAX_FORGOTTEN: Final = 1_000


class RuntimeClient:
    """Use as `async with RuntimeClient(...) as client`; everything is freed at the end of the block.

    socket_path, or host and port, name the runtime; of the others see `link.LinkOptions`. Outputs of one sequence that
    come within `max_gap_s` may be given together, see `stream.py`.
    """

    def __init__(
        self,
        *,
        socket_path: Path | str | None = None,
        host: str | None = None,
        port: int | None = None,
        token: str = "",
        gateway_id: str,
        ping_interval_s: float = PING_INTERVAL_S,
        max_missed_pongs: int | None = None,
        connect_timeout_s: float = 5.0,
        max_streams: int = 4096,
        on_hung: Callable[[int], None] | None = None,
        check: Callable[[ModelInfo], str | None] | None = None,
        max_gap_s: float = 0.0,
    ) -> None:
        options = LinkOptions(
            token, gateway_id, ping_interval_s, max_missed_pongs, connect_timeout_s, on_hung, check
        )  # fmt: skip
        self._link = Link(Address(socket_path, host, port), options, self)
        self._max_streams, self._max_gap_s = max_streams, max_gap_s
        self._beat: Beat | None = None
        self._ids = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._statuses: cachetools.LRUCache[str, AdapterStatus] = cachetools.LRUCache(MAX_STATUSES)
        self._forgotten: dict[str, None] = {}  # in order; told again to every runtime that is connected to
        self._pins: tuple[AdapterRef, ...] = ()
        self._on_connect: Callable[[], None] | None = None
        self._report: asyncio.Future[CacheReport] | None = None
        self._places = PlacesAsked()

    async def __aenter__(self) -> Self:
        if self._max_gap_s > 0:
            loop = asyncio.get_running_loop()
            self._beat = Beat(self._max_gap_s, loop.time, loop.call_later)
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.__aexit__(kind, value, trace)

    def hang_up(self) -> None:
        """Ends the connection for good: every stream, and whoever waits for a runtime, gets RuntimeLost at once."""
        self._link.hang_up()

    @property
    def ready(self) -> bool:
        """True while a runtime has welcomed this client."""
        return self._link.ready

    @property
    def problem(self) -> str | None:
        """None when ready, else a sentence that says what is missing."""
        return self._link.problem

    @property
    def model(self) -> ModelInfo | None:
        """Of the latest runtime."""
        return self._link.model

    @property
    def stats(self) -> Stats | None:
        """With the latest Pong of this connection."""
        return self._link.stats

    @property
    def pid(self) -> int | None:
        """The latest runtime's process."""
        return self._link.pid

    async def wait_ready(self, timeout_s: float) -> ModelInfo:
        """Waits for a welcome. Raises RuntimeLost with the latest problem when none comes in time."""
        return await self._link.wait_ready(timeout_s)

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
    ) -> Outputs:
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
        return Outputs(request, self._begin, self._end)

    async def _begin(self, request: Submit) -> Stream:
        """Sends it and opens its stream; what is not worth sending fails in there."""
        writer, stream = self._link.connected(), Stream(self._beat)
        if request.adapter is not None:
            self._forgotten.pop(request.adapter.digest, None)  # the same weights were uploaded again
        frame = self._acceptable(request)
        if isinstance(frame, Failure):
            stream.put(SequenceOutput(request.sequence_id, finish_reason="error", failure=frame))
            return stream
        self._streams[request.sequence_id] = stream
        self._count_streams()
        self._link.send(frame)
        try:
            await writer.drain()
        except OSError as error:
            self._end(request.sequence_id)
            raise RuntimeLost("the runtime went away while a prompt was sent") from error
        except BaseException:
            self._end(request.sequence_id)
            raise
        return stream

    def _end(self, sequence_id: int) -> None:
        """Nobody takes its outputs any more. Aborts it if there would have been some."""
        stream = self._streams.pop(sequence_id, None)
        if stream is not None:
            self._count_streams()
            if not stream.ended:
                self._link.tell(Abort(sequence_id))

    async def prefetch(self, adapter: AdapterRef, *, soon: bool = False) -> None:
        """Asks the runtime to bring an adapter up to host memory; `soon`: for a request that follows in a moment.

        Best effort: nothing happens while disconnected.
        """
        self._link.tell(Prefetch(adapter, soon))

    async def forget(self, digest: str) -> None:
        """Asks the runtime to drop a deleted adapter from every tier, and each runtime that comes after it: one that is
        killed may not have come to it, and its disk tier outlives it."""
        self._statuses.pop(digest, None)
        self._forgotten.pop(digest, None)
        self._forgotten[digest] = None
        if len(self._forgotten) > MAX_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]
        if self.ready:
            self._link.tell(Forget(digest))

    def pin(self, adapters: Sequence[AdapterRef]) -> None:
        """Asks the runtime to keep exactly these in host memory, now and after every reconnect."""
        self._pins = tuple(adapters)
        self._link.tell(Pins(self._pins))

    def on_connect(self, told: Callable[[], None]) -> None:
        """`told` is called whenever a runtime has welcomed this client, and now if one has."""
        self._on_connect = told
        if self.ready:
            told()

    async def cache_report(self, timeout_s: float = 10.0) -> CacheReport:
        """What is in the runtime's tiers. Who asks while a question is under way shares its answer. Raises
        RuntimeLost.
        """
        self._link.connected()
        if self._report is None or self._report.done():
            self._report = asyncio.get_running_loop().create_future()
            self._link.tell(CacheQuery(next(self._ids)))
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
            places = await self._places.ask(self._link.tell, Where(next(self._ids), tuple(digests)), timeout_s)
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

    def welcomed(self) -> None:
        """The link's: what every runtime must know goes first."""
        for digest in self._forgotten:
            self._link.tell(Forget(digest))
        if self._pins:
            self._link.tell(Pins(self._pins))
        if self._on_connect is not None:
            self._on_connect()

    def arrived(self, frame: ServerFrame) -> None:
        """The link's."""
        match frame:
            case Step(outputs):
                for output in outputs:
                    stream = self._streams.get(output.sequence_id)
                    if stream is not None:
                        stream.put(output)
            case AdapterStatus():
                self._statuses[frame.digest] = frame
            case CacheReport():
                if self._report is not None and not self._report.done():
                    self._report.set_result(frame)
            case Places():
                self._places.answered(frame)
            case _:
                raise ProtocolError(f"{type(frame).__name__} is no answer to a client")

    def lost(self, problem: str) -> None:
        """The link's: nothing more comes of what was asked."""
        self._statuses.clear()
        if self._report is not None and not self._report.done():
            self._report.set_exception(RuntimeLost(f"the runtime went away: {problem}"))
            self._report.exception()  # seen, should nobody ask any more
        self._places.lost()
        for stream in self._streams.values():
            stream.fail(RuntimeLost(f"the runtime went away: {problem}"))
