"""Reading frames from a byte stream: the four-byte length, its limit, and the body. Both ends of the socket use it."""

import asyncio

from runtime.protocol import MAX_FRAME_BYTES, ProtocolError


async def read_frame(reader: asyncio.StreamReader, max_bytes: int = MAX_FRAME_BYTES) -> bytes | None:
    """The next frame's body, or None when the peer closed between two frames.

    Raises ProtocolError for a length over `max_bytes` (nothing of the body is read then) and for a close inside a
    frame; connection errors of the transport (OSError) pass through.
    """
    try:
        prefix = await reader.readexactly(4)
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
