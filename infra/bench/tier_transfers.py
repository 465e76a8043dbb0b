"""One large adapter on its way up, leg by leg, beside the bare move of the same bytes. A part of `bench-tiers`."""

import asyncio
import hashlib
import io
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from infra.bench.rows import Row
from storage.buffers import Allocate, Recycled, allocate
from storage.disk_tier import DiskTier
from storage.downloads import Downloads
from storage.geometry import MODULES, Geometry
from storage.objects.base import ObjectStore, single
from storage.objects.local import LocalObjects
from storage.objects.s3 import S3Objects
from storage.packed import LoraMatrices, read_packed, write_packed
from storage.tiers import Tiers
from tests.storage.objects import swift

SEVEN_B: Final = Geometry("llama", 32, 4096, 11008, 32, 32, 128)
RANK: Final = 16
KEY: Final = "adapters/x"


def packed(geometry: Geometry, rank: int, seed: int) -> bytes:
    """A packed adapter with every module, small random values."""
    rng = np.random.default_rng(seed)
    matrices = []
    for layer in range(geometry.num_layers):
        for module in MODULES:
            rows, columns = geometry.shape(module)
            a, b = _bits(rng, rank, columns), _bits(rng, rows, rank)
            matrices.append(LoraMatrices(layer, module, 1.0, a, b))
    out = io.BytesIO()
    write_packed(out, geometry, "bfloat16", matrices)
    return out.getvalue()


def _bits(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """bfloat16 bits of small numbers: the upper half of float32."""
    values = rng.standard_normal((rows, columns), np.float32) * np.float32(0.01)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


async def transfers(rounds: int, folder: Path) -> list[Row]:
    """One large adapter, tier by tier."""
    data = await asyncio.to_thread(packed, SEVEN_B, RANK, 1)
    digest, size = hashlib.sha256(data).hexdigest(), len(data)
    objects = LocalObjects(folder / "objects")
    await objects.put(KEY, single(data), max_bytes=size)
    rows = [
        *await _from_disk(data, digest, 4 * rounds, folder / "disk", Recycled(2 * size).allocate, "", 0.8),
        *await _from_disk(data, digest, rounds, folder / "fresh", allocate, ", fresh pages", None),
    ]
    buffer = memoryview(data)
    parse_s = [_timed(lambda: read_packed(buffer)) for _ in range(rounds * 3)]
    parse_ms = statistics.median(parse_s) * 1000
    rows.append(Row(metric="parse and validate", value=parse_ms, unit="ms", target="<= 5 ms", holds=parse_ms <= 5))
    rows.append(await _from_store("a local folder", objects, digest, size, rounds, folder / "local"))
    await objects.aclose()
    rows.append(await _over_s3(data, digest, rounds, folder))
    return rows


async def _from_disk(
    data: bytes, digest: str, rounds: int, folder: Path, allocate: Allocate, pages: str, target: float | None
) -> list[Row]:
    """A checked read beside a plain one of the same file, in and out of the page cache."""
    disk = DiskTier(folder, 2 * len(data), giants_share=1.0, allocate=allocate)
    await disk.open()
    write = await disk.begin(digest, len(data))
    assert write is not None
    write.append(data)
    await write.publish(memoryview(data))
    path = folder / "packed" / digest
    rows = []
    for cold in (False, True):
        plain_s: list[float] = []
        ours_s: list[float] = []
        for _ in range(rounds):
            for kind, times in (("plain", plain_s), ("ours", ours_s)):
                if cold:
                    _forget_pages(path)
                began = time.perf_counter()
                if kind == "plain":
                    await asyncio.to_thread(_plain_read, path)
                else:
                    await disk.read(digest)
                times.append(time.perf_counter() - began)
        where = "into fresh pages" if pages else "into the pages of an adapter that is gone"
        rows.append(_beside(f"disk to memory, {'cold' if cold else 'warm'}{pages}", ours_s, "plain read", plain_s,
                            target, f"{len(data)} bytes {where}, the CRC-32 of every MiB checked"))  # fmt: skip
    await disk.aclose()
    return rows


async def _from_store(
    name: str, objects: ObjectStore, digest: str, size: int, rounds: int, folder: Path, parallel: int = 1
) -> Row:
    """Cold tiers each time, beside the same download whose bytes nobody takes."""
    bare_s, fetch_s = [], []
    for turn in range(rounds):
        downloads = Downloads(objects, parallel=parallel)
        began = time.perf_counter()
        async for _ in downloads.chunks(KEY, size):
            pass
        bare_s.append(time.perf_counter() - began)
        directory = folder / f"{turn}"
        tiers = Tiers(
            objects, directory, memory_bytes=4 * size, disk_bytes=4 * size, giants_share=1.0, downloads=downloads
        )
        await tiers.open()
        began = time.perf_counter()
        (await tiers.fetch(digest, KEY, size)).release()
        fetch_s.append(time.perf_counter() - began)
        await tiers.aclose()
        await asyncio.to_thread(shutil.rmtree, directory)
    return _beside(f"object store ({name}) to admitted", fetch_s, "the bare transfer", bare_s, None,
                   "SHA-256 as it comes (one core), written to disk beside it")  # fmt: skip


async def _over_s3(data: bytes, digest: str, rounds: int, folder: Path) -> Row:
    """The same from a real S3 server, in ranges."""
    if reason := swift.why_not(folder):
        return Row(metric="object store (S3 on loopback) to admitted", value=None, unit="ms", note=reason)
    server = await asyncio.to_thread(swift.start, folder / "swift")
    try:
        store = await S3Objects.open(
            bucket="bench", endpoint=server.endpoint, region=swift.REGION, access_key_id=swift.ACCESS_KEY_ID,
            secret_access_key=swift.SECRET_ACCESS_KEY,
        )  # fmt: skip
        await store._client.create_bucket(Bucket="bench")
        await store.put(KEY, single(data), max_bytes=len(data))
        row = await _from_store("S3 on loopback", store, digest, len(data), rounds, folder / "s3", parallel=4)
        await store.aclose()
    finally:
        await asyncio.to_thread(server.stop)
    return row


def _plain_read(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read()


def _forget_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _timed(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _beside(
    metric: str, ours: Sequence[float], peer: str, theirs: Sequence[float], target: float | None, note: str
) -> Row:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return Row(
        metric=metric,
        value=statistics.median(ours) * 1000,
        unit="ms",
        peer=peer,
        peer_value=statistics.median(theirs) * 1000,
        ratio=ratio,
        target=None if target is None else f">= {target}x",
        holds=None if target is None else ratio >= target,
        note=note,
    )
