"""Reading frames from a byte stream: the four-byte length, its limit, and the body. Both ends of the socket use it."""

import asyncio
from typing import Final

from runtime.protocol import MAX_FRAME_BYTES, ProtocolError

_PREFIX_BYTES: Final = 4
_READ_BYTES: Final = 64 * 1024


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


class FrameReader:
    """All frames of one connection, as many at a time as have arrived: one wait for what one read brings.

    Nothing else may read from `reader` meanwhile.
    """

    def __init__(self, reader: asyncio.StreamReader, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self._rest = b""

    async def arrived(self) -> list[bytes]:
        """The bodies of the next frames, at least one; none when the peer closed between two frames.

        Raises as `read_frame`; frames before a bad one are given first.
        """
        while True:
            bodies = self._cut()
            if bodies:
                return bodies
            more = await self._more()
            if not more:
                if self._rest:
                    raise ProtocolError(f"the connection closed inside a frame, {len(self._rest)} bytes from its start")
                return []
            self._rest = self._rest + more if self._rest else more

    async def _more(self) -> bytes:
        """What there is; of a large frame all that is missing, so that it is put together once."""
        missing = 0
        if len(self._rest) >= _PREFIX_BYTES:
            missing = _PREFIX_BYTES + int.from_bytes(self._rest[:_PREFIX_BYTES], "big") - len(self._rest)
        if missing <= _READ_BYTES:
            return await self._reader.read(_READ_BYTES)
        try:
            return await self._reader.readexactly(missing)
        except asyncio.IncompleteReadError:
            return b""

    def _cut(self) -> list[bytes]:
        data, start, bodies = self._rest, 0, list[bytes]()
        while len(data) - start >= _PREFIX_BYTES:
            length = int.from_bytes(data[start : start + _PREFIX_BYTES], "big")
            if length > self._max_bytes:
                if bodies:
                    break
                raise ProtocolError(f"frame of {length} bytes announced; at most {self._max_bytes}")
            end = start + _PREFIX_BYTES + length
            if end > len(data):
                break
            bodies.append(data[start + _PREFIX_BYTES : end])
            start = end
        self._rest = data[start:]
        return bodies
