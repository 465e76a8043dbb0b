"""`make bench-tiers`: the adapter tiers beside the plain transfers that bound them, and a crowd on the demo base.

    python -m infra.bench.tiers [--quick] [--json | --markdown]

One packed adapter of rank 16 for a 7B model (80 MB): from disk to checked memory beside a plain read of the same file,
warm and cold; parsing; from the object store to memory beside the bare transfer. Then a real runtime process on the
demo base, sixteen callers at once: one adapter, a hot set that fits the device, and 2,000 adapters by Zipf, with the
process's memory all along (bench-results/tiers-memory.png). Rounds alternate; figures are medians.
"""

import argparse
import asyncio
import hashlib
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from gateway.demo import BASE_FOLDER
from gateway.png_plot import write_png
from infra.bench.children import ROOT
from infra.bench.rows import Row, markdown, print_rows, write_rows
from runtime.client import RuntimeClient
from runtime.config import RuntimeConfig
from runtime.protocol import AdapterRef, SamplingParams
from storage.disk_tier import DiskTier
from storage.geometry import MODULES, Geometry
from storage.objects.base import single
from storage.objects.local import LocalObjects
from storage.packed import LoraMatrices, read_packed, write_packed
from storage.tiers import Tiers

RESULTS: Final = ROOT / "bench-results"
SEVEN_B: Final = Geometry("llama", 32, 4096, 11008, 32, 32, 128)
RANK: Final = 16
CALLERS: Final = 16
TOKENS: Final = 24
MEMORY_BYTES: Final = 64 * 1024**2
DISK_BYTES: Final = 512 * 1024**2


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
    await objects.put("adapters/x", single(data), max_bytes=size)
    disk = DiskTier(folder / "disk", 2 * size, giants_share=1.0)
    await disk.open()
    write = await disk.begin(digest, size)
    assert write is not None
    write.append(data)
    await write.publish(memoryview(data))
    path = folder / "disk" / "packed" / digest
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
        rows.append(_beside(f"disk to memory, {'cold' if cold else 'warm'}", ours_s, "plain read", plain_s, 0.8,
                            f"{size} bytes, every chunk's SHA-256 checked"))  # fmt: skip
    buffer = memoryview(data)
    parse_s = [_timed(lambda: read_packed(buffer)) for _ in range(rounds * 3)]
    parse_ms = statistics.median(parse_s) * 1000
    rows.append(Row(metric="parse and validate", value=parse_ms, unit="ms", target="<= 5 ms", holds=parse_ms <= 5))
    bare_s, fetch_s = [], []
    for turn in range(rounds):
        began = time.perf_counter()
        async for _ in objects.get("adapters/x"):
            pass
        bare_s.append(time.perf_counter() - began)
        tiers = Tiers(objects, folder / f"tiers-{turn}", memory_bytes=4 * size, disk_bytes=4 * size, giants_share=1.0)
        await tiers.open()
        began = time.perf_counter()
        (await tiers.fetch(digest, "adapters/x", size)).release()
        fetch_s.append(time.perf_counter() - began)
        await tiers.aclose()
    rows.append(_beside("object store to admitted", fetch_s, "bare transfer from a local folder", bare_s, None,
                        "SHA-256 of the whole as it comes (one core), written to disk beside it"))  # fmt: skip
    await disk.aclose()
    await objects.aclose()
    return rows


async def crowd(quick: bool, folder: Path) -> list[Row]:
    """A real runtime: one adapter, a hot set that fits, two thousand by Zipf."""
    geometry, objects = Geometry.from_folder(BASE_FOLDER), LocalObjects(folder / "objects")
    count, seconds = (300, 4.0) if quick else (2000, 20.0)
    refs = []
    for number in range(count):
        data = await asyncio.to_thread(packed, geometry, 8, number)
        digest = hashlib.sha256(data).hexdigest()
        await objects.put(f"adapters/{digest}", single(data), max_bytes=len(data))
        refs.append(AdapterRef(digest, f"adapters/{digest}", len(data), 8, f"finetune-{number}"))
    rng = random.Random(1)
    hot = refs[:32]
    zipf = [1 / (n + 1) for n in range(count)]
    async with _runtime(folder) as (client, pid):
        await _load(client, lambda: refs[0], 2.0)
        for each in hot:
            await _ask(client, each, 1)
        memory: list[tuple[float, float]] = []
        began = time.monotonic()
        one, fits = [], []
        for _ in range(2 if quick else 3):
            one.append(await _load(client, lambda: refs[0], seconds / 2))
            fits.append(await _load(client, lambda: rng.choices(hot, zipf[: len(hot)])[0], seconds / 2))
        before = _resident(pid)
        watching = asyncio.create_task(_watch(pid, began, memory))
        everybody = await _load(client, lambda: rng.choices(refs, zipf)[0], seconds * 2)
        watching.cancel()
        report = await client.cache_report()
    await objects.aclose()
    write_png(RESULTS / "tiers-memory.png", [("RUNTIME MEMORY, MB", {"RSS": memory}, "SECONDS")], log_x=False)
    grown = max(y for _, y in memory) - before
    budget = MEMORY_BYTES / 1e6
    ratio = statistics.median(f / o for f, o in zip(fits, one, strict=True))
    hits = {tier.tier: tier.hits / max(1, tier.hits + tier.misses) for tier in report.tiers}
    size = refs[0].size_bytes
    return [
        Row(metric="hot set of 32 that fits", value=statistics.median(fits), unit="tokens/s", peer="one adapter",
            peer_value=statistics.median(one), ratio=ratio, target=">= 0.9x", holds=ratio >= 0.9),
        Row(metric=f"{count} adapters by Zipf", value=everybody, unit="tokens/s", peer="one adapter",
            peer_value=statistics.median(one), ratio=everybody / statistics.median(one),
            note=f"of {size} bytes each; hits: " + ", ".join(f"{k} {v:.0%}" for k, v in hits.items())),
        Row(metric="memory grown meanwhile", value=grown, unit="MB", peer="memory tier's budget", peer_value=budget,
            target="<= budget + 32 MB", holds=grown <= budget + 32,
            note=f"the adapters together take {count * size / 1e6:.0f} MB"),
    ]  # fmt: skip


@asynccontextmanager
async def _runtime(folder: Path) -> AsyncIterator[tuple[RuntimeClient, int]]:
    socket = folder / "r.sock"
    config = RuntimeConfig(
        model="demo", model_folder=str(BASE_FOLDER), socket_path=str(socket), token="t",
        objects_root=str(folder / "objects"),
        tier_dir=str(folder / "tier"), tier_memory_bytes=MEMORY_BYTES, tier_disk_bytes=DISK_BYTES,
        tier_memory_policy="gdsf", tier_disk_policy="gdsf", kv_bytes=128 * 1024**2, adapter_rows=512,
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "runtime", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(config.to_json() + b"\n")
        while (line := await process.stdout.readline()).strip() != b"ready":
            if not line:
                raise RuntimeError("the runtime did not start")
        async with RuntimeClient(socket_path=socket, token="t", gateway_id="bench") as client:
            await client.wait_ready(60)
            yield client, process.pid
    finally:
        process.kill()
        await process.wait()


async def _ask(client: RuntimeClient, adapter: AdapterRef, tokens: int) -> int:
    done = 0
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    async for output in client.submit(account_id="a", token_ids=(5, 6, 7, 8), sampling=sampling, adapter=adapter):
        if output.failure is not None:
            raise RuntimeError(output.failure.message)
        done = output.completion_tokens or done
    return done


async def _load(client: RuntimeClient, choose: object, seconds: float) -> float:
    """Tokens a second of CALLERS at once."""
    assert callable(choose)
    total, began = 0, time.monotonic()

    async def caller() -> None:
        nonlocal total
        while time.monotonic() - began < seconds:
            total += await _ask(client, choose(), TOKENS)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return total / (time.monotonic() - began)


async def _watch(pid: int, began: float, memory: list[tuple[float, float]]) -> None:
    while True:
        memory.append((time.monotonic() - began, _resident(pid)))
        await asyncio.sleep(0.25)


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.tiers")
    parser.add_argument("--quick", action="store_true", help="half a minute: few rounds, 300 adapters")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the rows as a Markdown table")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)

    async def measure() -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="bench-tiers-", dir=RESULTS) as folder:
            rows = await transfers(5 if options.quick else 15, Path(folder) / "one")
            write_rows(RESULTS / "tiers.json", rows)
            (Path(folder) / "many").mkdir()
            return rows + await crowd(options.quick, Path(folder) / "many")

    rows = asyncio.run(measure())
    write_rows(RESULTS / "tiers.json", rows)
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    elif options.markdown:
        print(markdown(rows))
    else:
        print_rows(Console(width=None if sys.stdout.isatty() else 150), "adapter tiers", rows)


if __name__ == "__main__":
    main()
