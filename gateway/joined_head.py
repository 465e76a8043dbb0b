"""A connection's transport that sends the head of an answer together with what follows it at once.

uvicorn writes head and body apart, and each write is a system call that wakes the peer: the head alone tells it
nothing. A head therefore waits for the next write, or for the end of the event loop's turn, whichever comes first.
"""

import asyncio
from typing import Any, Final

_HEAD: Final = b"HTTP/1.1 "
_COPIED: Final = 64 * 1024  # what follows is joined up to this size; above it a copy costs more than a call


class JoinedHead:
    """Passes everything else through, so uvicorn takes it for the transport. Holds one head at most."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """A body that begins like a head waits like one; nothing is reordered."""
        if self._held and len(data) <= _COPIED:
            data, self._held = self._held + data, b""
        elif self._held:
            self._flush()
        elif data.startswith(_HEAD):
            self._held = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """What is held goes first."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Nothing goes any more."""
        self._held = b""
        self._transport.abort()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
