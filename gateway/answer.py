"""One inference from the first byte of its body to the last byte of its answer.

    body > parse > resolve > generate ──> whole:  text gathered, record on disk, one body
                                     └──> stream: piece after piece, record on disk, the end

The order at the end is the promise of the log: the record is durable before the last byte leaves. An error before the
first piece is an ordinary JSON answer with its status; after it, one typed event and no proper end (`[DONE]`). A caller
who goes away is noticed at once in every phase: the generator is closed, which frees the runtime, and the record is
still written, as `client_abort`. One deadline covers everything from arrival on, a caller that does not read included.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.body_budget import BodyHold
from gateway.choices import Choices
from gateway.deadline import Deadline
from gateway.departure import SCOPE_KEY as DEPARTURE_KEY
from gateway.departure import Departure
from gateway.errors import InternalError, LorikeetError, RequestTimeout, StorageUnavailable
from gateway.exchange import CLIENT_ABORT_STATUS, Exchange
from gateway.messages import ChatRequest, Chunk, Identity, Usage
from gateway.open_body import SCOPE_KEY as BODY_KEY
from gateway.open_body import OpenBody
from gateway.services import Services
from gateway.wire import sse
from gateway.wire.envelope import as_lorikeet_error, error_headers
from gateway.wire.json_body import read_body
from gateway.wire.reply import Reply
from storage.errors import StorageError

logger = logging.getLogger(__name__)

# After the deadline a stalled reader gets this long for the last event; then the connection is given up.
_LAST_WORDS_S: Final = 2.0
# Each takes about 3 microseconds to write down.
_INLINE_SCORES: Final = 2048

Parse = Callable[[bytes], ChatRequest]


class CallerGone(Exception):
    """The caller disconnected; there is nobody to answer."""


class Answer(Response):
    """A response that makes itself while it is sent. One request, one object."""

    def __init__(
        self, request: Request, exchange: Exchange, identity: Identity, services: Services, parse: Parse, reply: Reply
    ) -> None:
        self.background: BackgroundTask | None = None
        self.status_code = 200
        self._request = request
        self._exchange = exchange
        self._identity = identity
        self._services = services
        self._parse = parse
        self._reply = reply
        self._body: OpenBody | None = request.scope.get(BODY_KEY)
        self._sent: list[bytes] = []
        self._choices = Choices()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Never raises for what a caller or a backend did; a bug becomes InternalError and a line in our log."""
        error: LorikeetError | None = None
        last: Chunk | None = None
        server = self._services.settings.server
        timeout_s = server.request_timeout_s
        announced = self._request.headers.get("content-length")
        try:
            account_id = self._identity.account_id
            bodies = self._services.bodies
            with bodies.reserve(account_id, announced, server.max_body_bytes) as hold, Deadline(timeout_s):
                last = await self._converse(receive, send, hold)
        except (CallerGone, ClientDisconnect):
            await self._abandoned()
            return
        except asyncio.CancelledError:  # the server is going down
            await self._abandoned()
            raise
        except TimeoutError:
            error = RequestTimeout(
                f"the answer was not complete within {timeout_s:g} s; ask for fewer tokens or try again"
            )
        except LorikeetError as failure:
            error = failure
        except StorageError as failure:
            logger.error("log %s: storage failed: %s", self._exchange.log_id, failure)
            error = as_lorikeet_error(failure)
        except Exception:
            logger.exception("log %s: the inference failed", self._exchange.log_id)
            error = InternalError("Internal error; give the operator the cf-aig-log-id of this answer")
        if self._sent and error is None:
            await self._end_stream(last, None, send)
        elif self._sent:
            with contextlib.suppress(TimeoutError):  # an answer without an end: the server closes the connection
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._end_stream(last, error, send)
        else:
            await self._send_whole(last, error, send)

    async def _converse(self, receive: Receive, send: Send, hold: BodyHold) -> Chunk:
        """Everything up to the last chunk. Raises CallerGone and every LorikeetError."""
        exchange, services = self._exchange, self._services
        exchange.body = await read_body(self._request, services.settings.server.max_body_bytes, hold.cover)
        exchange.check_gateway()
        asked = self._parse(exchange.body)
        exchange.asked(asked)
        exchange.check_log(services.logs)
        resolved = await services.pipeline.resolve(asked, self._identity, exchange.log_id, exchange.session)
        exchange.resolved(resolved)
        connected = _WhileConnected(receive, self._request.scope.get(DEPARTURE_KEY))
        async with connected, contextlib.aclosing(services.pipeline.generate(resolved)) as chunks:
            return await self._take(chunks, send if asked.stream else None)

    async def _take(self, chunks: AsyncGenerator[Chunk, None], send: Send | None) -> Chunk:
        """Sends or gathers the pieces; returns the chunk that ended the answer, the last choice of it."""
        begun = False
        async for chunk in chunks:
            if chunk.text or chunk.tool_calls or chunk.finish_reason is not None:
                if not begun:
                    begun = True
                    self._exchange.first_byte()
                if send is not None:
                    await self._stream(chunk, send)
                else:
                    self._choices.add(chunk)
            if chunk.usage is not None:
                self._exchange.finished(chunk)
                return chunk
        raise InternalError("the model's answer ended without an end; try again")

    async def _stream(self, chunk: Chunk, send: Send) -> None:
        if not self._sent:
            await send(self._start(200, sse.CONTENT_TYPE, [(b"x-accel-buffering", b"no")]))
        piece = self._reply.piece(chunk)
        self._sent.append(piece)
        if piece and (self._body is None or not self._body.write(piece)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _end_stream(self, last: Chunk | None, error: LorikeetError | None, send: Send) -> None:
        """The record, then the last events in one write."""
        ending = b""
        if last is not None and last.finish_reason is not None and last.usage is not None and error is None:
            ending = self._reply.ending(last, last.usage)
            if (failed := await self._record(200, [*self._sent, ending], sse.CONTENT_TYPE)) is None:
                await _finish(send, ending)
                return
            error = failed
        error = error or InternalError("the model's answer ended without usage")
        words = self._reply.failure_event(error)
        await self._record(error.status, [*self._sent, words], sse.CONTENT_TYPE, error)
        await _finish(send, words)

    async def _send_whole(self, last: Chunk | None, error: LorikeetError | None, send: Send) -> None:
        """The record, then the whole answer."""
        body = b""
        if last is not None and last.finish_reason is not None and last.usage is not None and error is None:
            try:
                body = await self._whole(last.usage)
            except LorikeetError as failure:
                error = failure
            else:
                error = await self._record(200, [body], "application/json")
        elif error is None:
            error = InternalError("the model's answer ended without usage")
        if error is None:
            await send(self._start(200, "application/json", [(b"content-length", b"%d" % len(body))]))
        else:
            body = self._reply.failure(error)
            error = await self._record(error.status, [body], "application/json", error) or error
            body = self._reply.failure(error)
            extra = [(b"content-length", b"%d" % len(body))]
            extra += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
            await send(self._start(error.status, "application/json", extra))
        await _finish(send, body)

    async def _whole(self, usage: Usage) -> bytes:
        """Long lists of log-probabilities leave the event loop."""
        choices = self._choices.whole()
        if self._choices.num_scores <= _INLINE_SCORES:
            return self._reply.whole(choices, usage)
        return await asyncio.to_thread(self._reply.whole, choices, usage)

    def _start(self, status: int, content_type: str, extra: Sequence[tuple[bytes, bytes]]) -> Message:
        headers = [(b"content-type", content_type.encode()), *extra, *self._exchange.headers]
        return {"type": "http.response.start", "status": status, "headers": headers}

    async def _record(
        self, status: int, response: Sequence[bytes], content_type: str, error: LorikeetError | None = None
    ) -> LorikeetError | None:
        """Closes the exchange; returns why it could not be logged. Waits for the disk in mode `ack`."""
        try:
            await self._exchange.close(
                self._services.logs,
                status,
                b"".join(response),
                outcome="error" if error else None,
                error=error,
                content_type=content_type,
            )
        except (LorikeetError, StorageError) as failure:
            logger.error("log %s: not recorded: %s", self._exchange.log_id, failure)
            return StorageUnavailable("this exchange cannot be logged at the moment; try again later", retry_after_s=5)
        return None

    async def _abandoned(self) -> None:
        """Nobody waits for the answer any more; what was sent so far is recorded."""
        kind = sse.CONTENT_TYPE if self._sent else "application/json"
        try:
            await self._exchange.close(
                self._services.logs,
                CLIENT_ABORT_STATUS,
                b"".join(self._sent),
                outcome="client_abort",
                content_type=kind,
            )
        except (LorikeetError, StorageError) as failure:
            logger.error("log %s: not recorded: %s", self._exchange.log_id, failure)


async def _finish(send: Callable[[Message], Awaitable[None]], body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _WhileConnected:
    """Cancels its body, and raises CallerGone instead, when the caller disconnects. Works like `asyncio.timeout`.

    Where the server tells of departures, that is all; else a task watches, which is owned by the block: it is cancelled
    and awaited at the end of it.
    """

    def __init__(self, receive: Receive, departure: Departure | None) -> None:
        self._receive = receive
        self._departure = departure
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        if self._departure is None:
            self._watcher = asyncio.create_task(self._watch(), name="watch-caller")
        elif self._departure.left:
            raise CallerGone
        else:
            self._departure.watch(self._left)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._departure is not None:
            self._departure.unwatch()
        if self._gone:
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise CallerGone from value
            return
        if self._watcher is None:
            return
        self._watcher.cancel()
        await asyncio.wait({self._watcher})
        if not self._watcher.cancelled() and (error := self._watcher.exception()) is not None and value is None:
            raise error

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._gone = True
        self._task.cancel()
