"""Reads that are checked: against the whole digest first, against chunks in parallel afterwards; every flipped bit."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.buffers import HUGE_PAGE_BYTES, allocate
from storage.errors import ObjectCorrupt
from storage.verified_read import CHUNK_BYTES, chunk_sums, read_verified


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


SIZES = [1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 12345]


@pytest.mark.parametrize("size", SIZES)
def test_first_and_later_reads(tmp_path: Path, pool: ThreadPoolExecutor, size: int) -> None:
    data = os.urandom(size)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    with path.open("rb") as file:
        first, sums = read_verified(file.fileno(), size, digest, None, allocate, pool)
        again, same = read_verified(file.fileno(), size, digest, sums, allocate, pool)
    assert bytes(first) == bytes(again) == data
    assert sums == same == chunk_sums(memoryview(data), pool)
    assert len(sums) == -(-size // CHUNK_BYTES)


def test_every_chunk_is_checked_both_ways(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    size = 3 * CHUNK_BYTES + 77
    data = os.urandom(size)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    sums = chunk_sums(memoryview(data), pool)
    for place in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, 3 * CHUNK_BYTES, size - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with path.open("rb") as file:
            for known in (None, sums):
                with pytest.raises(ObjectCorrupt):
                    read_verified(file.fileno(), size, digest, known, allocate, pool)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("change", [-1, 1, -CHUNK_BYTES])
def test_another_length(tmp_path: Path, pool: ThreadPoolExecutor, known: bool, change: int) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    sums = chunk_sums(memoryview(data), pool) if known else None
    path.write_bytes((data + b"x")[: len(data) + change])
    with path.open("rb") as file, pytest.raises(ObjectCorrupt, match="instead of"):
        read_verified(file.fileno(), len(data), digest, sums, allocate, pool)


@pytest.mark.parametrize("size", [1, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5])
def test_buffers_are_exactly_so_large_and_writable(size: int) -> None:
    buffer = allocate(size)
    assert (len(buffer), buffer.readonly, buffer.nbytes) == (size, False, size)
    buffer[-1] = 7
    view = buffer[:size]
    del buffer
    assert view[-1] == 7
