"""The gateway's end of the connection to one encoder. No torch: the gateway imports this file.

One owned task connects and reads, again and again with a pause; requests are futures by number. When the connection
ends, every one of them ends at once with RuntimeLost.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from runtime.encoder.config import Pooling
from runtime.encoder.protocol import Encode, Encoded, EncodeFailed, Greeted, Greeting, frame, read_answer
from runtime.errors import RuntimeLost
from runtime.framing import read_frame
from runtime.protocol import ProtocolError

PAUSE_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 5.0
MAX_OPEN: Final = 1024


class EncoderClient:
    """Use as `async with`. `model` is what the encoder said of itself, None while there is none."""

    def __init__(self, socket_path: str, token: str) -> None:
        self._socket_path, self._token = socket_path, token
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
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, self._writer = await asyncio.open_unix_connection(self._socket_path)
            self._writer.write(frame(Greeting(self._token)))
            body = await read_frame(reader)
        welcome = None if body is None else read_answer(body)
        if not isinstance(welcome, Greeted):
            raise RuntimeLost("the encoder did not greet back")
        self.model = welcome
        self._ready.set()
        while (body := await read_frame(reader)) is not None:
            answer = read_answer(body)
            if isinstance(answer, Greeted):
                raise ProtocolError("a second greeting")
            told = self._waiting.get(answer.number)
            if told is not None and not told.done():
                told.set_result(answer.values if isinstance(answer, Encoded) else answer)
