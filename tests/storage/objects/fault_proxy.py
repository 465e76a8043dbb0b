"""Stands before a real S3 server and does to its answers what it would not do by itself: throttles, resets, cuts, slows
down, flips a bit. Requests pass as they are, signatures included; each planned fault meets one GET of an object.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["throttle", "error", "reset", "cut", "flip", "slow", "silent"]
_ANSWERS = {
    "throttle": (b"503 Slow Down", b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"),
    "error": (b"500 Internal Server Error", b"<Error><Code>InternalError</Code><Message>Oops</Message></Error>"),
}


@dataclass
class FaultProxy:
    """`plan` is used up from the left by GETs; `always` meets every GET when the plan is empty."""

    upstream_port: int
    port: int = 0
    plan: deque[Fault | None] = field(default_factory=deque)
    always: Fault | None = None
    gets: list[str] = field(default_factory=list)  # the Range of each, or ""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        fault = None
        if head.startswith(b"GET ") and b"/" in head.split(b" ")[1][1:]:
            self.gets.append(headers.get(b"range", b"").decode())
            fault = self.plan.popleft() if self.plan else self.always
        if fault in _ANSWERS:
            status, text = _ANSWERS[fault]
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))
            await writer.drain()
            return True
        if fault == "silent":
            await reader.read()
            return False
        answer, payload = await self._ask(head, body)
        await self._send(writer, answer, payload, fault)
        return fault is None or fault == "flip"

    async def _ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        line, rest = head.split(b"\r\n", 1)
        rest = b"\r\n".join(each for each in rest.split(b"\r\n") if not each.lower().startswith(b"connection:"))
        try:
            writer.write(line + b"\r\nConnection: close\r\n" + rest + body)
            whole = await reader.read()
        finally:
            writer.transport.abort()
        answer, _, payload = whole.partition(b"\r\n\r\n")
        lines = [each for each in answer.split(b"\r\n") if not each.lower().startswith(b"connection:")]
        return b"\r\n".join(lines) + b"\r\n\r\n", payload

    async def _send(self, writer: asyncio.StreamWriter, answer: bytes, payload: bytes, fault: Fault | None) -> None:
        half = len(payload) // 2
        if fault == "flip" and payload:
            payload = payload[:half] + bytes([payload[half] ^ 0x10]) + payload[half + 1 :]
        writer.write(answer)
        if fault == "slow":
            for start in range(0, len(payload), 1000):
                writer.write(payload[start : start + 1000])
                await writer.drain()
                await asyncio.sleep(0.2)  # slowness is the input of the test
        writer.write(payload[:half] if fault in ("reset", "cut") else payload)
        await writer.drain()
        if fault == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@contextlib.asynccontextmanager
async def before(upstream_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy before the server of this port."""
    proxy = FaultProxy(upstream_port)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, limit=2**20)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
        server.close()
        for task in list(proxy.tasks):
            task.cancel()
        if proxy.tasks:
            await asyncio.wait(proxy.tasks)
        await asyncio.sleep(0)  # aborted sockets are closed in the next turn
