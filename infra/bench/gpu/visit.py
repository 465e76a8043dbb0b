"""One visit to a GPU: every step in a process of its own, in at most nine minutes; the table comes last.

    python -m infra.bench.gpu [--step NAME ...] [--minutes 9] [--out bench-results] [--markdown]
    python -m infra.bench.gpu --merge VISIT VISIT ... --out REPORT

Runs with the host's own Python: torch, triton, numpy, safetensors, transformers, peft and pytest, no network. A step
gets its share of the time that is left, so what one does not use goes to those that follow. A step that fails, hangs or
ends the device leaves what it wrote so far and a row that says how it ended; the next one runs. Files: those of
`steps.py`, gpu-visit.json (the machine), gpu-report.md, and what each process said in gpu-logs/. A step's file is begun
anew; the one before is kept as .before.json. --merge makes one report from the folders of several visits, oldest first.

Exit codes: 0, 1 (a step ended badly or a test failed; missed targets of speed are no failure), 69 (no GPU here).
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra.bench.gpu import report
from infra.bench.gpu.processes import ROOT, environment_for, run
from infra.bench.gpu.steps import STEPS, Step, commands, file_of, line_of
from kernels.bench.rows import Row, merge_rows, read_rows

NO_GPU: Final = 69
# Of the whole: what starting, ending and the report take.
SPARE_S: Final = 8.0
_PROBE: Final = """
import json, sys
try:
    import torch, triton
except ImportError as error:
    sys.exit(f"{error.name} is not installed for {sys.executable}")
if not torch.cuda.is_available():
    sys.exit("no CUDA device is visible to torch " + torch.__version__)
free, total = torch.cuda.mem_get_info()
print(json.dumps({"card": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability(),
    "memory_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1), "torch": torch.__version__,
    "cuda": torch.version.cuda, "triton": triton.__version__, "python": sys.version.split()[0]}))
"""


class NoGpu(Exception):
    """Nothing can be measured here; the text says why."""


def machine() -> dict[str, Any]:
    """What the card and its software are, asked in a process that ends. Raises NoGpu."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE], check=False, capture_output=True, text=True, timeout=120, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise NoGpu("the device does not answer") from None
    if asked.returncode:
        said = asked.stderr.strip().splitlines()
        raise NoGpu(said[-1] if said else f"torch ended with {asked.returncode}")
    found: dict[str, Any] = json.loads(asked.stdout.strip().splitlines()[-1])
    return {**found, "host": platform.node(), "at": time.strftime("%Y-%m-%d %H:%M:%S %z"), "commit": _commit()}


def run_step(step: Step, seconds: float, folder: Path, device: str) -> bool:
    """True when it ended well. Its file holds at least one row afterwards."""
    out, well = file_of(step.name, folder), True
    if out.exists():
        out.replace(out.with_suffix(".before.json"))
    end, before = time.monotonic() + seconds, list[Row]()
    given = commands(step.name, seconds, folder, device)
    for index, command in enumerate(given):
        log = folder / "gpu-logs" / f"{step.name}{index if len(given) > 1 else ''}.log"
        # What an earlier command did not use is the last one's.
        limit = end - time.monotonic() if index == len(given) - 1 else command.limit_s
        ended = run(line_of(command), max(1.0, limit), log, environment_for(device))
        rows = read_rows(out)
        # A code of 1 is a command's word for rows that say what went wrong.
        if ended and not (ended.startswith("ended with 1:") and len(rows) > len(before)):
            merge_rows(out, [Row(f"{step.name}, {command.words[0]}", None, "", note=f"its process {ended}")])
        well, before = well and not ended, rows
    if not read_rows(out):
        merge_rows(out, [Row(f"{step.name}, as a whole", None, "", note="nothing was measured")])
        well = False
    return well


def run_steps(chosen: Sequence[Step], seconds: float, folder: Path, device: str) -> bool:
    """True when all ended well."""
    end, well = time.monotonic() + seconds - SPARE_S, True
    for index, step in enumerate(chosen):
        share = step.weight / sum(later.weight for later in chosen[index:])
        given = max(2.0, (end - time.monotonic()) * share)
        print(f"{step.name}: at most {given:.0f} s ...", flush=True)
        began = time.monotonic()
        ended_well = run_step(step, given, folder, device)
        took, well = time.monotonic() - began, well and ended_well
        print(f"{step.name}: {took:.0f} s{'' if ended_well else ', not all well: gpu-logs'}", flush=True)
    return well


def finish(rows: Sequence[Row], folder: Path, as_markdown: bool) -> None:
    """Prints the table, which is the last thing that is said, and writes the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / report.REPORT).write_text(report.markdown(rows), encoding="utf-8")
    print(report.markdown(rows) if as_markdown else report.text(rows))
    print(f"files: {folder}")


def parser() -> argparse.ArgumentParser:
    """See the file's header."""
    options = argparse.ArgumentParser(prog="python -m infra.bench.gpu", description=__doc__.partition("\n")[0])
    options.add_argument("--step", action="append", choices=[step.name for step in STEPS], help="only this; repeatable")
    options.add_argument("--minutes", type=float, default=9.0, help="for the whole visit")
    options.add_argument("--out", type=Path, default=Path("bench-results"))
    options.add_argument("--merge", type=Path, nargs="+", metavar="FOLDER", help="make one report of several visits")
    options.add_argument("--markdown", action="store_true", help="print the report as Markdown")
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: toy sizes, for tests")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """See the file's header for the exit codes."""
    began, arguments = time.monotonic(), parser().parse_args(argv)
    folder = arguments.out.absolute()
    if arguments.merge:
        finish(report.merge(arguments.merge, folder), folder, arguments.markdown)
        return 0
    if arguments.device == "cuda":
        try:
            facts = machine()
        except NoGpu as reason:
            print(f"no GPU, nothing measured: {reason}", file=sys.stderr)
            return NO_GPU
        print(f"{facts['card']}, torch {facts['torch']}, triton {facts['triton']}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu-visit.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    chosen = [step for step in STEPS if not arguments.step or step.name in arguments.step]
    well = run_steps(chosen, 60 * arguments.minutes - (time.monotonic() - began), folder, arguments.device)
    finish(report.merge([folder], folder), folder, arguments.markdown)
    return 0 if well else 1


def _commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True, timeout=10, cwd=ROOT
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
