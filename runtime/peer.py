"""Who is at the other end of a Unix socket, also when it never says a word."""

import asyncio
import socket
import struct


def peer_pid(writer: asyncio.StreamWriter) -> int | None:
    """Its process; None where no kernel tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid) or None
