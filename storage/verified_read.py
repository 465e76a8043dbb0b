"""Reads a whole file whose SHA-256 is known, as fast as the disk gives it: hashing goes on beside reading.

The digest of a whole file can only be computed from front to back, on one core. So whoever has verified a file once
also knows the SHA-256 of each of its chunks (`Sums`, kept in memory only), and later reads check chunks in parallel:
the same strength, all cores. Everything here blocks.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Final

from storage.buffers import Allocate
from storage.errors import ObjectCorrupt

CHUNK_BYTES: Final = 2 * 1024 * 1024
READERS: Final = 3

Sums = tuple[bytes, ...]


def chunk_sums(data: memoryview, pool: ThreadPoolExecutor) -> Sums:
    """The SHA-256 of each chunk."""
    return tuple(pool.map(_sha256, (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))))


def read_verified(
    fd: int, size_bytes: int, digest: str, sums: Sums | None, allocate: Allocate, pool: ThreadPoolExecutor
) -> tuple[memoryview, Sums]:
    """The file's bytes and its sums. `pool` does the hashing. Raises ObjectCorrupt, OSError."""
    found = os.fstat(fd).st_size
    if found != size_bytes:
        raise ObjectCorrupt(f"adapter {digest} on disk has {found} bytes instead of {size_bytes}")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    data = allocate(size_bytes)
    if sums is None:
        return data, _read_first(fd, data, digest, pool)
    _read_again(fd, data, digest, sums, pool)
    return data, sums


def _read_first(fd: int, data: memoryview, digest: str, pool: ThreadPoolExecutor) -> Sums:
    """Front to back; the whole digest decides. One chunk is read while the one before it is hashed."""
    whole = hashlib.sha256()
    hashed: Future[None] | None = None
    sums: list[Future[bytes]] = []
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            _fill(fd, chunk, start, digest)
            if hashed is not None:
                hashed.result()
            hashed = pool.submit(whole.update, chunk)
            sums.append(pool.submit(_sha256, chunk))
    finally:
        if hashed is not None:
            hashed.result()
    if whole.hexdigest() != digest:
        raise ObjectCorrupt(f"adapter {digest} on disk has digest {whole.hexdigest()}")
    return tuple(each.result() for each in sums)


def _read_again(fd: int, data: memoryview, digest: str, sums: Sums, pool: ThreadPoolExecutor) -> None:
    """Each reader takes the next chunk that nobody has taken."""
    turns, lock = iter(range(len(sums))), Lock()

    def work() -> None:
        for number in _shared(turns, lock):
            chunk = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            _fill(fd, chunk, number * CHUNK_BYTES, digest)
            if _sha256(chunk) != sums[number]:
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


def _sha256(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()
