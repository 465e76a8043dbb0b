"""What an answer waits for that is not the gateway's doing, asked for as barely as can be: a process on its core.

    python -m infra.bench.gateway_probes runtime SOCKET PROMPT_TOKENS SECONDS
    python -m infra.bench.gateway_probes disk FOLDER BYTES SECONDS

`runtime`: a prompt sent to the mock over its socket and its frame of 16 tokens read, by blocking calls, without an
event loop. `disk`: BYTES appended to a file and fdatasync, as the log does for a record. One after another for so many
seconds; said as JSON, in milliseconds.
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Final

from infra.bench.rounds import percentile
from runtime.codec import decode_server, encode
from runtime.protocol import PROTOCOL_VERSION, Hello, SamplingParams, ServerFrame, Step, Submit, Welcome

_UNCOUNTED: Final = 50  # the first ones find cold caches


class Waits(dict[str, float]):
    """`p50_ms` and `p99_ms`."""


def runtime_waits(path: str, prompt_tokens: int, seconds: float) -> Waits:
    """Round trips to the mock."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(encode(Hello(PROTOCOL_VERSION, "bench", "probe")))
        assert isinstance(_frame(connection), Welcome)
        prompt, sampling = tuple(range(300, 300 + prompt_tokens)), SamplingParams(max_tokens=16)

        def ask() -> None:
            connection.sendall(encode(Submit(1, "probe", prompt, sampling)))
            assert isinstance(_frame(connection), Step)

        return _timed(ask, seconds)


def disk_waits(folder: str, num_bytes: int, seconds: float) -> Waits:
    """Appends that are on the medium when they return."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        fd, record, end = file.fileno(), os.urandom(num_bytes), 0

        def append() -> None:
            nonlocal end
            end += os.pwrite(fd, record, end)
            os.fdatasync(fd)

        return _timed(append, seconds)


def _timed(work: Callable[[], None], seconds: float) -> Waits:
    for _ in range(_UNCOUNTED):
        work()
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return Waits(p50_ms=percentile(took, 0.5), p99_ms=percentile(took, 0.99))


def _frame(connection: socket.socket) -> ServerFrame:
    length = int.from_bytes(_exactly(connection, 4), "big")
    return decode_server(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = connection.recv(length, socket.MSG_WAITALL)
    assert len(found) == length, "the mock went away"
    return found


def main(kind: str, where: str, size: str, seconds: str) -> None:
    """One line."""
    waits = {"runtime": runtime_waits, "disk": disk_waits}[kind](where, int(size), float(seconds))
    print(json.dumps(waits))


if __name__ == "__main__":
    main(*sys.argv[1:])
