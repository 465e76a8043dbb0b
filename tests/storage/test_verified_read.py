"""Reads that are checked: against the whole digest first and after every change to the file, against chunks in parallel
otherwise; every flipped bit.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.buffers import allocate
from storage.errors import ObjectCorrupt
from storage.verified_read import CHUNK_BYTES, Proof, chunk_sums, read_verified, stamp


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


SIZES = [1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 12345]


class Counting:
    """Counts what SHA-256 is computed over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size_bytes = 0
        real = hashlib.sha256

        class Hash:
            def __init__(self) -> None:
                self._inner = real()

            def update(inner, data: memoryview) -> None:  # noqa: N805 - `self` is the counter
                self.size_bytes += len(data)
                inner._inner.update(data)

            def hexdigest(self) -> str:
                return self._inner.hexdigest()

        monkeypatch.setattr("storage.verified_read.hashlib.sha256", Hash)


@pytest.mark.parametrize("size", SIZES)
def test_first_and_later_reads(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = os.urandom(size)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    hashed = Counting(monkeypatch)
    with path.open("rb") as file:
        first, proof = read_verified(file.fileno(), size, digest, None, allocate, pool)
        again, same = read_verified(file.fileno(), size, digest, proof, allocate, pool)
        assert hashed.size_bytes == size, "the second read needs no SHA-256"
        assert same.stamp == stamp(file.fileno())
    assert bytes(first) == bytes(again) == data
    assert proof.sums == same.sums == chunk_sums(memoryview(data), pool)
    assert len(proof.sums) == -(-size // CHUNK_BYTES)


def test_every_chunk_is_checked_all_ways(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Without a proof; with one of before the damage; and with one that says that nobody wrote: the medium's doing."""
    size = 3 * CHUNK_BYTES + 77
    data = os.urandom(size)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    sums = chunk_sums(memoryview(data), pool)
    for place in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, 3 * CHUNK_BYTES, size - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with path.open("rb") as file:
            for known in (None, Proof((0, 0, 0), sums), Proof(stamp(file.fileno()), sums)):
                with pytest.raises(ObjectCorrupt):
                    read_verified(file.fileno(), size, digest, known, allocate, pool)


def test_who_forges_the_sums_is_found_by_the_digest(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A CRC-32 is easily met; but whoever writes to the file, or puts another in its place, cannot help its stamp."""
    data, other = os.urandom(5000), os.urandom(5000)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    with path.open("rb") as file:
        _, proof = read_verified(file.fileno(), 5000, digest, None, allocate, pool)
    forged = Proof(proof.stamp, chunk_sums(memoryview(other), pool))
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system ticks every few milliseconds
        path.write_bytes(other)
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    with path.open("rb") as file, pytest.raises(ObjectCorrupt, match="digest"):
        read_verified(file.fileno(), 5000, digest, forged, allocate, pool)
    (tmp_path / "new").write_bytes(other)
    os.replace(tmp_path / "new", path)
    with path.open("rb") as file, pytest.raises(ObjectCorrupt, match="digest"):
        read_verified(file.fileno(), 5000, digest, forged, allocate, pool)


def test_a_write_during_the_read_leaves_no_proof(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    data = os.urandom(5000)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    path.write_bytes(data)

    def meddling(size_bytes: int) -> memoryview:
        before = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns == before:  # after the look at the file, before its bytes are read
            path.write_bytes(data)
        return allocate(size_bytes)

    with path.open("rb") as file:
        _, proof = read_verified(file.fileno(), 5000, digest, None, meddling, pool)
        assert proof.stamp != stamp(file.fileno())


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("change", [-1, 1, -CHUNK_BYTES])
def test_another_length(tmp_path: Path, pool: ThreadPoolExecutor, known: bool, change: int) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    path, digest = tmp_path / "file", hashlib.sha256(data).hexdigest()
    path.write_bytes((data + b"x")[: len(data) + change])
    with path.open("rb") as file:
        proof = Proof(stamp(file.fileno()), chunk_sums(memoryview(data), pool)) if known else None
        with pytest.raises(ObjectCorrupt, match="instead of"):
            read_verified(file.fileno(), len(data), digest, proof, allocate, pool)
