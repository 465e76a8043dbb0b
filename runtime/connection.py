"""One gateway's connection, on the event loop: the frames that go out, and the sequences that came in on it.

What the gateway does not read waits in the transport's buffer. Above its high-water mark no more frames are taken from
that gateway; above `max_outgoing_bytes` it is cut off. `live` holds the sequences that have not ended, each with its
span, so that a close ends them all.
"""

import asyncio

from opentelemetry.trace import Span

from runtime.codec import encode
from runtime.protocol import AdapterRef, ProtocolError, ServerFrame

HIGH_WATER_BYTES = 256 * 1024


class Connection:
    """`number` is the owner of its sequences in the engine."""

    def __init__(self, number: int, writer: asyncio.StreamWriter, max_outgoing_bytes: int) -> None:
        self.number = number
        self.gateway_id = "?"
        self.live: dict[int, Span | None] = {}
        self.ping_sent_at: float | None = None
        self.cut_reason: str | None = None
        self.pins: tuple[AdapterRef, ...] = ()
        self.asked_for_report = False
        self._writer = writer
        self._max_outgoing_bytes = max_outgoing_bytes
        writer.transport.set_write_buffer_limits(high=min(HIGH_WATER_BYTES, max_outgoing_bytes))

    def send(self, frame: ServerFrame) -> bool:
        """Queues a frame; False when the gateway was cut off for not reading, now or before."""
        if self._writer.transport.is_closing():
            return False
        try:
            self._writer.write(encode(frame))
        except ProtocolError as error:
            self.cut(str(error))
            return False
        if self._writer.transport.get_write_buffer_size() > self._max_outgoing_bytes:
            self.cut(f"over {self._max_outgoing_bytes} bytes were not read")
            return False
        return True

    def cut(self, reason: str) -> None:
        """Closes at once; what is still unsent is lost."""
        self.cut_reason = self.cut_reason or reason
        self._writer.transport.abort()

    async def drained(self) -> None:
        """Returns when the gateway has read enough. Raises OSError when it is gone."""
        await self._writer.drain()

    async def close(self) -> None:
        """Sends what is queued, then closes."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
