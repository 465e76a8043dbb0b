"""Reads a whole file whose SHA-256 is known, as fast as the disk gives it.

The SHA-256 of a whole file is computed from front to back on one core, which takes longer than reading it. So it is
computed when a file is new to this process, and again whenever anybody has written to it or put another in its place
(`stamp`: its inode, length and time of change, which no writer can set, to a tick of the system's clock). While nothing
of the kind has happened only the medium can have changed the bytes, and for that a CRC-32 of each chunk does, on all
cores and at the speed of the read itself. Everything here blocks.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Final, NamedTuple

from storage.buffers import Allocate
from storage.errors import ObjectCorrupt

CHUNK_BYTES: Final = 1024 * 1024
READERS: Final = 3

Sums = tuple[int, ...]
Stamp = tuple[int, int, int]


class Proof(NamedTuple):
    """These bytes had the right SHA-256 when the file bore this stamp."""

    stamp: Stamp
    sums: Sums


def stamp(fd: int) -> Stamp:
    """What every write to a file and every exchange of it changes. Raises OSError."""
    status = os.fstat(fd)
    return status.st_ino, status.st_size, status.st_ctime_ns


def chunk_sums(data: memoryview, pool: ThreadPoolExecutor) -> Sums:
    """The CRC-32 of each chunk."""
    return tuple(
        pool.map(zlib.crc32, (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)))
    )


def read_verified(
    fd: int, size_bytes: int, digest: str, proof: Proof | None, allocate: Allocate, pool: ThreadPoolExecutor
) -> tuple[memoryview, Proof]:
    """The file's bytes, and the proof for the next time; its modification time says that it was used. `pool` does the
    arithmetic. Raises ObjectCorrupt, OSError.
    """
    before = stamp(fd)
    if before[1] != size_bytes:
        raise ObjectCorrupt(f"adapter {digest} on disk has {before[1]} bytes instead of {size_bytes}")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    data = allocate(size_bytes)
    if proof is None or proof.stamp != before:
        return data, Proof(_touched(fd, before), _read_first(fd, data, digest, pool))
    _read_again(fd, data, digest, proof.sums, pool)
    return data, Proof(_touched(fd, before), proof.sums)


def _touched(fd: int, before: Stamp) -> Stamp:
    """Notes the use, for the order at the next start, and returns the stamp that the file bears from then on; the old
    one when somebody else has changed it meanwhile.
    """
    if stamp(fd) != before:
        return before
    with suppress(OSError):
        os.utime(fd)
    return stamp(fd)


def _read_first(fd: int, data: memoryview, digest: str, pool: ThreadPoolExecutor) -> Sums:
    """Front to back; the whole digest decides. One chunk is read while the one before it is hashed."""
    whole = hashlib.sha256()
    hashed: Future[None] | None = None
    sums: list[int] = []
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            _fill(fd, chunk, start, digest)
            if hashed is not None:
                hashed.result()
            hashed = pool.submit(whole.update, chunk)
            sums.append(zlib.crc32(chunk))
    finally:
        if hashed is not None:
            hashed.result()
    if whole.hexdigest() != digest:
        raise ObjectCorrupt(f"adapter {digest} on disk has digest {whole.hexdigest()}")
    return tuple(sums)


def _read_again(fd: int, data: memoryview, digest: str, sums: Sums, pool: ThreadPoolExecutor) -> None:
    """Each reader takes the next chunk that nobody has taken."""
    turns, lock = iter(range(len(sums))), Lock()

    def work() -> None:
        for number in _shared(turns, lock):
            chunk = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            _fill(fd, chunk, number * CHUNK_BYTES, digest)
            if zlib.crc32(chunk) != sums[number]:
                raise ObjectCorrupt(f"adapter {digest} on disk has other bytes in its chunk {number}")

    others = [pool.submit(work) for _ in range(min(READERS, len(sums)) - 1)]
    try:
        work()
    finally:
        for other in others:
            other.exception()  # nobody writes into the buffer behind a caller that has gone on
    for other in others:
        other.result()


def _shared(turns: Iterator[int], lock: Lock) -> Iterator[int]:
    while True:
        with lock:
            number = next(turns, None)
        if number is None:
            return
        yield number


def _fill(fd: int, chunk: memoryview, offset: int, digest: str) -> None:
    filled = 0
    while filled < len(chunk):
        step = os.preadv(fd, [chunk[filled:]], offset + filled)
        if not step:
            raise ObjectCorrupt(f"adapter {digest} on disk became shorter")
        filled += step
