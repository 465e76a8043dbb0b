"""Attention, element-wise work and sampling beside the byte floor and torch: `python -m kernels.bench.steps`.

Each work of `step_works.py` is timed in a CUDA graph of many; ours and the peer take turns, and medians count. Beside
each time: what the card's measured copy speed needs for the bytes that must move (the floor), and for prefill the
arithmetic done in a second. Each family of works has a process of its own: one that damages the device takes only its
own rows with it. Where we and the peer compute different things, the row says so instead of giving times.

Adds its rows to bench-results/gpu-kernels.json (rows of an earlier visit that are not measured again stay) and prints
them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import torch

from kernels.bench.clock import Timed, copy_bandwidth, in_turns, launch_us
from kernels.bench.rows import Row, merge_rows, read_rows, table
from kernels.bench.shares import Shares
from kernels.bench.step_sizes import SIZES, Work
from kernels.bench.step_works import FAMILIES
from kernels.triton_jit import interpreting

ROOT: Final = Path(__file__).resolve().parents[2]
FLOOR: Final = "byte floor"
SHARE_TARGET: Final = 0.8
# Bytes dominate where they need so many times what two empty launches take.
DOMINATE: Final = 2.0
MOST_WRONG: Final = 1e-2


def rows_of(work: Work, device: torch.device, bandwidth: float, launches: float, repeats: int) -> list[Row]:
    """Against the floor, and against the peer if there is one."""
    if work.results is not None:
        ours, theirs = (result().double() for result in work.results)
        wrong = float((ours - theirs).norm() / theirs.norm())
        if not wrong <= MOST_WRONG:
            return [Row(work.metric, None, "us", FLOOR, note=f"ours and {work.peer} differ by {wrong:.1e}")]
    lists = [Timed(operations, device) for operations in (work.ours, work.theirs) if operations]
    times = in_turns(lists, repeats)
    floor = 1e6 * work.bytes / bandwidth
    judged = floor >= DOMINATE * launches and not work.flops
    note = f"{work.bytes / 1e6:.2f} MB, {len(work.ours)} sets"
    if work.flops:
        note += f", {work.flops / times[0] / 1e6:.0f} TFLOP/s"
    made = [
        Row(
            work.metric,
            times[0],
            "us",
            FLOOR,
            floor,
            floor / times[0],
            f">= {SHARE_TARGET:.0%} of the copy speed" if judged else None,
            floor / times[0] >= SHARE_TARGET if judged else None,
            note,
        )
    ]
    if work.theirs:
        ratio = times[1] / times[0]
        made.append(Row(work.metric, times[0], "us", work.peer, times[1], ratio, "faster", ratio > 1, note))
    return made


def measured(family: str, arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of one work after the other; what fails is a row with the reason."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    bandwidth, launches = copy_bandwidth(device), launch_us(device)
    end = time.monotonic() + arguments.seconds
    for work in FAMILIES[family](SIZES[arguments.points], device, dtype):
        if time.monotonic() > end:
            yield [Row(work.metric, None, "us", FLOOR, note="no time was left")]
            continue
        try:
            yield rows_of(work, device, bandwidth, launches, arguments.repeats)
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            yield [Row(work.metric, None, "us", FLOOR, note=f"{type(error).__name__}: {first}")]


def parser() -> argparse.ArgumentParser:
    """Options of the parent and its children."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--points", default="quick", choices=list(SIZES))
    options.add_argument("--families", default=",".join(FAMILIES), help="names, separated by commas")
    options.add_argument("--seconds", type=float, default=45.0, help="for each family")
    options.add_argument("--within", type=float, default=0.0, help="seconds for all families together, over --seconds")
    options.add_argument("--grace", type=float, default=60.0, help="seconds after which a family's process is ended")
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--device", default="cuda")
    options.add_argument("--out", type=Path, default=Path("bench-results/gpu-kernels.json"))
    options.add_argument("--child", default="", help=argparse.SUPPRESS)
    return options


def ask(family: str, arguments: argparse.Namespace) -> None:
    """Runs the family's process, which writes its rows; adds one that says how it ended if it ended badly."""
    passed = ("points", "seconds", "repeats", "device", "out")
    words = [word for name in passed for word in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, "-m", "kernels.bench.steps", "--child", family, *words]
    try:
        ended = subprocess.run(
            command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=arguments.seconds + arguments.grace
        )
        said = (ended.stderr.strip().splitlines() or ["without a word"])[-1]
        note = f"its process ended with {ended.returncode}: {said}" if ended.returncode else ""
    except subprocess.TimeoutExpired:
        note = "its process was stopped: it did not end"
    if note:
        merge_rows(arguments.out, [Row(f"{family}, as a whole", None, "us", FLOOR, note=note)])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows of this run; returns 1 when nothing at all could be measured."""
    arguments = parser().parse_args(argv)
    arguments.out = arguments.out.absolute()
    if arguments.child:
        inside: AbstractContextManager[None] = nullcontext() if arguments.device == "cuda" else interpreting()
        with inside, torch.inference_mode():
            for made in measured(arguments.child, arguments):
                merge_rows(arguments.out, made)
        return 0
    before = read_rows(arguments.out)
    families = arguments.families.split(",")
    shares = Shares(arguments.within, len(families))
    for family in families:
        if arguments.within:
            arguments.seconds = shares.next()
        ask(family, arguments)
    rows = [row for row in read_rows(arguments.out) if row not in before]
    print(table(f"Attention, element-wise work and sampling, {arguments.points} points", rows))
    return 0 if any(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
