"""The gateway's end of the connection to one encoder. No torch: the gateway imports this file.

One owned task connects and reads, again and again with a pause; a second one sends a Ping every interval. Requests are
futures by number. When the connection ends, every one of them ends at once with RuntimeLost. Restarting an encoder is
the supervisor's work: `on_hung` tells it.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from runtime.encoder.config import Pooling
from runtime.encoder.protocol import Encode, Encoded, EncodeFailed, Greeted, Greeting, Ping, Pong, frame, read_answer
from runtime.errors import RuntimeLost
from runtime.framing import read_frame
from runtime.peer import peer_pid
from runtime.protocol import ProtocolError

logger = logging.getLogger(__name__)
PAUSE_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 5.0
MISSED_PONGS: Final = 10
MAX_OPEN: Final = 1024


class EncoderClient:
    """Use as `async with`. `model` is what the encoder said of itself, None while there is none. `on_hung` is called
    with the encoder's pid when it took a connection and did not greet, or left MISSED_PONGS pings in a row unanswered.
    """

    def __init__(
        self,
        socket_path: str,
        token: str,
        *,
        ping_interval_s: float = 1.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        on_hung: Callable[[int], None] | None = None,
    ) -> None:
        self._socket_path, self._token = socket_path, token
        self._ping_interval_s, self._connect_timeout_s, self._on_hung = ping_interval_s, connect_timeout_s, on_hung
        self._unanswered = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes | EncodeFailed]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.model: Greeted | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected(), name="encoder-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    @property
    def problem(self) -> str | None:
        """None when texts can be sent."""
        return None if self._ready.is_set() else "its encoder is not connected yet"

    async def encode(
        self,
        token_ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] = (),
        *,
        pooling: Pooling = "mean",
        wait_s: float = 10.0,
    ) -> bytes | EncodeFailed:
        """float32 values, little-endian, in the order of the texts; or why not. Raises RuntimeLost."""
        try:
            async with asyncio.timeout(wait_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise RuntimeLost(f"no encoder within {wait_s:g} s") from error
        if self._writer is None:
            raise RuntimeLost("the encoder went away")
        number = next(self._numbers)
        if len(self._waiting) >= MAX_OPEN:
            return EncodeFailed(number, "overloaded", "too many requests wait for this encoder")
        told: asyncio.Future[bytes | EncodeFailed] = asyncio.get_running_loop().create_future()
        self._waiting[number] = told
        try:
            self._writer.write(frame(Encode(number, tuple(map(tuple, token_ids)), tuple(map(tuple, types)), pooling)))
            return await told
        except ProtocolError as error:
            return EncodeFailed(number, "too_long", str(error))
        finally:
            del self._waiting[number]

    async def _keep_connected(self) -> None:
        while True:
            try:
                with contextlib.suppress(OSError, ProtocolError, TimeoutError, RuntimeLost):
                    await self._serve_connection()
            finally:
                self._disconnected()
            await asyncio.sleep(PAUSE_S)

    def _disconnected(self) -> None:
        self._ready.clear()
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        for told in self._waiting.values():
            if not told.done():
                told.set_exception(RuntimeLost("the encoder went away"))

    async def _serve_connection(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._socket_path)
                self._writer = writer
                writer.write(frame(Greeting(self._token)))
                body = await read_frame(reader)
        except TimeoutError:
            if self._writer is not None:
                self._hung(self._writer, f"it said nothing for {self._connect_timeout_s:g} s after a connect")
            raise
        welcome = None if body is None else read_answer(body)
        if not isinstance(welcome, Greeted):
            raise RuntimeLost("the encoder did not greet back")
        self.model, self._unanswered = welcome, 0
        self._ready.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                pings = tasks.create_task(self._ping(writer))
                while (body := await read_frame(reader)) is not None:
                    self._take(read_answer(body))
                pings.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the reader's or the pinger's; the other one was cancelled

    def _take(self, answer: Greeted | Encoded | EncodeFailed | Pong) -> None:
        match answer:
            case Greeted():
                raise ProtocolError("a second greeting")
            case Pong():
                self._unanswered = 0
            case Encoded() | EncodeFailed():
                told = self._waiting.get(answer.number)
                if told is not None and not told.done():
                    told.set_result(answer.values if isinstance(answer, Encoded) else answer)

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        while self._unanswered < MISSED_PONGS:
            self._unanswered += 1
            writer.write(frame(Ping()))
            await asyncio.sleep(self._ping_interval_s)
        self._hung(writer, f"it answered none of {self._unanswered} pings")
        raise RuntimeLost("the encoder hangs")

    def _hung(self, writer: asyncio.StreamWriter, problem: str) -> None:
        pid = peer_pid(writer)
        logger.error("the encoder (pid %s) hangs: %s", pid, problem)
        if self._on_hung is not None and pid is not None:
            self._on_hung(pid)
