"""Reading frames from a byte stream: the four-byte length, its limit, and the body. Both ends of the socket use it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from runtime.protocol import MAX_FRAME_BYTES, ProtocolError

_PREFIX_BYTES: Final = 4


async def read_frame(reader: asyncio.StreamReader, max_bytes: int = MAX_FRAME_BYTES) -> bytes | None:
    """The next frame's body, or None when the peer closed between two frames.

    Raises ProtocolError for a length over `max_bytes` (nothing of the body is read then) and for a close inside a
    frame; connection errors of the transport (OSError) pass through.
    """
    try:
        prefix = await reader.readexactly(_PREFIX_BYTES)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ProtocolError("the connection closed inside a frame's length") from error
        return None
    length = int.from_bytes(prefix, "big")
    if length > max_bytes:
        raise ProtocolError(f"frame of {length} bytes announced; at most {max_bytes}")
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ProtocolError(f"the connection closed after {len(error.partial)} of {length} bytes of a frame") from error


class FrameStream(asyncio.StreamReader):
    """All frames of one connection, given away in the transport's own callback: no task is woken for a frame.

    For `asyncio.StreamReaderProtocol`, whose reader it is; nothing else may read from it. States: waiting for the first
    frame, delivering, ended.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []  # of a frame that is not whole
        self._missing = _PREFIX_BYTES  # so many bytes at least, until one is
        self._early: list[bytes] = []
        self._take_one = self._early.append
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(_seen)

    async def first(self) -> bytes | None:
        """The first frame's body; None when the peer closed before it. Raises as `deliver`."""
        await asyncio.wait((self._began, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not self._early:
            self._ended.result()
            return None
        return self._early.pop(0)

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Gives every further body to `take`, until the peer closes between two frames.

        Raises ProtocolError as `read_frame`, the transport's errors (OSError), and what `take` raises; frames before a
        bad one are given first, and none after it.
        """
        early, self._take_one = self._early, take
        for body in early:
            take(body)
        await self._ended

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # the same, by a wider name
        """What one read brought."""
        if self._ended.done():
            return
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            for body in self._cut(whole):
                self._take_one(body)
        except Exception as error:  # the transport cannot do anything with it
            self._end(error)
        if self._early and not self._began.done():
            self._began.set_result(None)

    def feed_eof(self) -> None:
        """The peer closed."""
        rest = sum(map(len, self._parts))
        if rest:
            self._end(ProtocolError(f"the connection closed inside a frame, {rest} bytes from its start"))
        elif not self._ended.done():
            self._ended.set_result(None)
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        """The connection broke."""
        self._end(exc)
        super().set_exception(exc)

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        start = 0
        while True:
            self._missing = start + _PREFIX_BYTES - len(data)
            if self._missing > 0:
                break
            length = int.from_bytes(data[start : start + _PREFIX_BYTES], "big")
            if length > self._max_bytes:
                raise ProtocolError(f"frame of {length} bytes announced; at most {self._max_bytes}")
            end = start + _PREFIX_BYTES + length
            self._missing = end - len(data)
            if self._missing > 0:
                break
            yield data[start + _PREFIX_BYTES : end]
            start = end
        self._parts = [data[start:]] if start < len(data) else []


def _seen(ended: "asyncio.Future[None]") -> None:
    """Nobody need wait for the end, and then nobody need be warned of how it came."""
    if not ended.cancelled():
        ended.exception()
