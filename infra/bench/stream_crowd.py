"""Many streams at once, by raw sockets: how many came to their end, and how much memory the gateway took for them.

    python -m infra.bench.stream_crowd HOST PORT < one JSON line {"head", "streams", "pid"}

Every stream is opened before any is read to its end; memory is looked at while all are under way.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any


async def _stream(host: str, port: int, request: bytes, begun: asyncio.Semaphore, counts: dict[str, int]) -> None:
    reader, writer = await asyncio.open_connection(host, port, limit=4096)
    writer.write(request)
    first, tail, said = True, b"", 0
    while chunk := await reader.read(4096):
        if first:
            first = False
            begun.release()
        said += (tail[-5:] + chunk).count(b"data: ") - tail[-5:].count(b"data: ")
        tail = (tail + chunk)[-32:]
        if tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            counts["complete"] += 1
            break
    counts["events"] += said
    writer.close()


async def crowd(host: str, port: int, asked: dict[str, Any]) -> dict[str, int]:
    """Counts, and the gateway's resident bytes at the height."""
    counts = {"complete": 0, "events": 0, "memory_bytes": 0}
    begun = asyncio.Semaphore(0)
    request = asked["head"].encode()
    async with asyncio.TaskGroup() as group:
        for _ in range(asked["streams"]):
            group.create_task(_stream(host, port, request, begun, counts))
        for _ in range(asked["streams"]):
            await begun.acquire()
        pages = int(Path(f"/proc/{asked['pid']}/statm").read_text(encoding="ascii").split()[1])  # noqa: ASYNC240
        counts["memory_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return counts


if __name__ == "__main__":
    print(json.dumps(asyncio.run(crowd(sys.argv[1], int(sys.argv[2]), json.loads(sys.stdin.readline())))))
