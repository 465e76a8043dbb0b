"""`make bench-tiers`: the adapter tiers beside the plain transfers that bound them, and a crowd on the demo base.

    python -m infra.bench.tiers [--quick] [--json | --markdown]

One packed adapter of rank 16 for a 7B model (80 MB): from disk to checked memory beside a plain read of the same file,
warm and cold; parsing; from the object store to memory beside the bare transfer, for a local folder and, where the
tests' S3 server is installed, for that (`tier_transfers.py`). Then a real runtime process on the demo base, sixteen
callers at once, in turn: one adapter, the hottest, which fit the device, and all 2,000, by Zipf. All its requests are
replayed through the simulator, whose own time for a million is measured last (`simulator.py`). Rounds alternate;
figures are medians. Pictures of that run: bench-results/tiers-memory.png (the process all along) and tiers-curves.png
(what other sizes and policies would have missed); its requests, for `cache simulate --from`: tiers-trace.jsonl.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from gateway.commands.cache_simulate import draw, replay
from gateway.demo import BASE_FOLDER
from gateway.png_plot import write_png
from gateway.settings import Settings
from infra.bench.busy import Clocks
from infra.bench.children import ROOT
from infra.bench.rows import Row, markdown, print_rows, write_rows
from infra.bench.simulator import simulator
from infra.bench.tier_transfers import packed, transfers
from runtime.client import RuntimeClient
from runtime.config import RuntimeConfig
from runtime.protocol import AdapterRef, CacheReport, SamplingParams
from storage.geometry import Geometry
from storage.objects.base import single
from storage.objects.local import LocalObjects
from storage.simulation import Adapter, Trace

RESULTS: Final = ROOT / "bench-results"
CALLERS: Final = 16
TOKENS: Final = 24
CROWD_RANK: Final = 8
HOT: Final = 48
ADAPTER_ROWS: Final = 512
MEMORY_BYTES: Final = 64 * 1024**2
DISK_BYTES: Final = 512 * 1024**2
KV_BYTES: Final = 16 * 1024**2


class Crowd:
    """CALLERS at once, each asking again as soon as it is answered. `asked`: every adapter, in order."""

    def __init__(self, client: RuntimeClient) -> None:
        self._client = client
        self.asked: list[AdapterRef] = []

    async def run(self, choose: Callable[[], AdapterRef], seconds: float) -> float:
        """Tokens a second."""
        total, began = 0, time.monotonic()

        async def caller() -> None:
            nonlocal total
            while time.monotonic() - began < seconds:
                total += await self.ask(choose(), TOKENS)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return total / (time.monotonic() - began)

    async def ask(self, adapter: AdapterRef, tokens: int) -> int:
        """One answer of so many tokens."""
        self.asked.append(adapter)
        done = 0
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        ids = (5, 6, 7, 8)
        async for output in self._client.submit(account_id="a", token_ids=ids, sampling=sampling, adapter=adapter):
            if output.failure is not None:
                raise RuntimeError(output.failure.message)
            done = output.completion_tokens or done
        return done


async def crowd(quick: bool, folder: Path) -> list[Row]:
    """A real runtime with two thousand adapters: all of them by Zipf, and a hot set that fits the device, both beside
    one adapter.
    """
    count, seconds, rounds = (300, 2.0, 3) if quick else (2000, 5.0, 8)
    refs = await _adapters(count, folder / "objects")
    rng = random.Random(1)
    hot, zipf = refs[:HOT], [1 / (n + 1) for n in range(count)]
    kinds: dict[str, Callable[[], AdapterRef]] = {
        "one": lambda: refs[0],
        "hot": lambda: rng.choices(hot, zipf[: len(hot)])[0],
        "all": lambda: rng.choices(refs, zipf)[0],
    }
    memory: list[tuple[float, float]] = []
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    async with _runtime(folder) as (client, pid):
        callers = Crowd(client)
        await callers.run(kinds["one"], 2.0)
        before, began = _resident(pid), time.monotonic()
        watching = asyncio.create_task(_watch(pid, began, memory))
        await callers.run(kinds["all"], seconds * 4)
        for _ in range(rounds):
            for kind, choose in kinds.items():
                for each in hot if kind == "hot" else ():
                    await callers.ask(each, 1)
                rates[kind].append(await callers.run(choose, seconds))
        watching.cancel()
        report = await client.cache_report()
    size = refs[0].size_bytes
    budgets = (MEMORY_BYTES + KV_BYTES + ADAPTER_ROWS // CROWD_RANK * size) / 1e6
    lines = {"RUNTIME": memory, "BEFORE": _level(memory, before), "AND BUDGETS": _level(memory, before + budgets)}
    write_png(RESULTS / "tiers-memory.png", [(f"MEMORY, MB: {count} ADAPTERS", lines, "SECONDS")], log_x=False)
    grown = max(y for _, y in memory) - before
    one = statistics.median(rates["one"])
    shares = {kind: statistics.median(a / b for a, b in zip(rates[kind], rates["one"], strict=True)) for kind in kinds}
    turns = f"{rounds} rounds of {seconds:g} s each in turn"
    return [
        Row(metric=f"the {HOT} hottest of {count} adapters by Zipf, which fit the device", unit="tokens/s",
            value=statistics.median(rates["hot"]), peer="one adapter", peer_value=one, ratio=shares["hot"],
            target=">= 0.9x", holds=shares["hot"] >= 0.9, note=turns),
        Row(metric=f"all {count} by Zipf, of which it holds {ADAPTER_ROWS // CROWD_RANK}", unit="tokens/s",
            value=statistics.median(rates["all"]), peer="one adapter", peer_value=one, ratio=shares["all"],
            note=f"{turns}; {size} bytes each, {count * size / 1e6:.0f} MB in all"),
        Row(metric="memory grown meanwhile", value=grown, unit="MB", peer="budgets", peer_value=budgets,
            target="<= budgets + 16 MB", holds=grown <= budgets + 16,
            note="memory tier, key/value cache and device pool, which are taken as they are used"),
        *_simulated(callers.asked, report),
    ]  # fmt: skip


def _simulated(asked: list[AdapterRef], report: CacheReport) -> list[Row]:
    """The same requests through the simulator: its hit ratios beside the measured ones, and its curves."""
    trace = Trace([each.digest for each in asked], {each.digest: Adapter(each.size_bytes, each.rank) for each in asked})
    lines = (json.dumps({"adapter": a.digest, "size_bytes": a.size_bytes, "rank": a.rank}) for a in asked)
    (RESULTS / "tiers-trace.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told: dict[str, Any] = {"tiers": [msgspec.structs.asdict(tier) for tier in report.tiers]}
    for tier in told["tiers"]:
        tier["loads"] = msgspec.structs.asdict(tier["loads"])
    found = replay(trace, Settings(), told)
    draw(RESULTS / "tiers-curves.png", found)
    rows = []
    for tier in report.tiers[:3]:
        measured = tier.hits / max(1, tier.hits + tier.misses)
        now = found["now"][tier.tier]
        simulated = now["hits"] / max(1, now["hits"] + now["misses"])
        near = abs(measured - simulated) <= 0.02
        rows.append(Row(metric=f"hits of what arrives at {tier.tier}, simulated", value=simulated * 100, unit="%",
                        peer="measured", peer_value=measured * 100, target="within two points", holds=near,
                        note=f"{tier.hits + tier.misses} arrived"))  # fmt: skip
    return rows


async def _adapters(count: int, folder: Path) -> list[AdapterRef]:
    """Different ones for the demo base, in an object store."""
    geometry, objects = Geometry.from_folder(BASE_FOLDER), LocalObjects(folder)
    refs = []
    for number in range(count):
        data = await asyncio.to_thread(packed, geometry, CROWD_RANK, number)
        digest = hashlib.sha256(data).hexdigest()
        await objects.put(f"adapters/{digest}", single(data), max_bytes=len(data))
        refs.append(AdapterRef(digest, f"adapters/{digest}", len(data), CROWD_RANK, f"finetune-{number}"))
    await objects.aclose()
    return refs


@asynccontextmanager
async def _runtime(folder: Path) -> AsyncIterator[tuple[RuntimeClient, int]]:
    socket = folder / "r.sock"
    config = RuntimeConfig(
        model="demo", model_folder=str(BASE_FOLDER), socket_path=str(socket), token="t",
        objects_root=str(folder / "objects"),
        tier_dir=str(folder / "tier"), tier_memory_bytes=MEMORY_BYTES, tier_disk_bytes=DISK_BYTES,
        tier_memory_policy="gdsf", tier_disk_policy="gdsf", kv_bytes=KV_BYTES, adapter_rows=ADAPTER_ROWS,
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


async def _watch(pid: int, began: float, memory: list[tuple[float, float]]) -> None:
    while True:
        memory.append((time.monotonic() - began, _resident(pid)))
        await asyncio.sleep(0.25)


def _level(memory: list[tuple[float, float]], value: float) -> list[tuple[float, float]]:
    return [(memory[0][0], value), (memory[-1][0], value)]


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


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
            begun = Clocks.read(os.getpid())
            rows = await transfers(5 if options.quick else 15, Path(folder) / "one")
            write_rows(RESULTS / "tiers.json", rows)
            between = Clocks.read(os.getpid())
            (Path(folder) / "many").mkdir()
            rows += await crowd(options.quick, Path(folder) / "many")
            ended = Clocks.read(os.getpid())
            rows.append(simulator(options.quick, Path(folder)))
            shares = {"transfers": between.others(begun), "the crowd": ended.others(between)}
            told = ", ".join(f"{share:.0%} during {name}" for name, share in shares.items())
            note = f"{told}: of {os.cpu_count()} CPUs"
            return [*rows, Row(metric="CPU taken by others", value=max(shares.values()) * 100, unit="%", note=note)]

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
