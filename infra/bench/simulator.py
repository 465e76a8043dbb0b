"""How long `lorikeet cache simulate` takes for a long trace: the whole command, from the file to tables and picture."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

from infra.bench.children import ROOT
from infra.bench.rows import Row
from storage.simulation import zipf_trace

ADAPTERS: Final = 2000
LIMIT_S: Final = 30.0


def simulator(quick: bool, folder: Path) -> Row:
    """Seconds of one core for a million requests by Zipf, of adapters of three ranks; fewer when `quick`."""
    requests = 100_000 if quick else 1_000_000
    trace = folder / "trace.jsonl"
    with trace.open("w", encoding="utf-8") as file:
        for name in zipf_trace(ADAPTERS, 1.0, requests, 1).requests:
            rank = 8 << (int(name.rpartition("-")[2]) % 3)
            file.write(json.dumps({"adapter": name, "size_bytes": rank * 5_000_000, "rank": rank}) + "\n")
    command = ["cache", "simulate", "--from", str(trace), "-o", str(folder / "curves.png"), "--data-dir", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "gateway.cli", *command], cwd=ROOT, env={**os.environ, "COLUMNS": "150"},
                   stdout=subprocess.DEVNULL, check=True)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Row(
        metric=f"{requests} requests simulated, every policy and size",
        value=seconds,
        unit="s of one core",
        target=None if quick else f"< {LIMIT_S:g} s",
        holds=None if quick else seconds < LIMIT_S,
        note=f"{ADAPTERS} adapters of three ranks, by Zipf, from a file; table, picture and settings",
    )
