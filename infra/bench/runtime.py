"""`make bench-runtime`: the runtime beside transformers + PEFT and llama.cpp, on two CPU threads, as ratios in one run.

    python -m infra.bench.runtime [--quick] [--only TEXT] [--json] [--markdown]

Every side loads the same random weights (`folders.py`) in a process of its own; one process computes at a time, in
interleaved rounds (`rounds.py`). What a case measures stands at the head of its file. Rows go to
bench-results/runtime.json. --only takes the cases whose name (model.type.case) contains the text, so
`--only small.bf16.batch8.mixed` is one case.
"""

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from infra.bench.cases import CASES, Effort
from infra.bench.children import ROOT
from infra.bench.rows import Row, markdown, print_rows, write_rows
from infra.bench.shapes import HALF, SMALL, Shape
from infra.bench.stage import SHORT, Stage

RESULTS = ROOT / "bench-results"
QUICK = ("batch8.mixed", "single.base", "single.adapter")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.bench.runtime", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes: the small model, few rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print the rows as a Markdown table")
    options = parser.parse_args()
    effort = Effort(rounds=3, tokens=32) if options.quick else Effort()
    rows = measure((SMALL,) if options.quick else (SMALL, HALF), effort, options.only, options.quick)
    write_rows(RESULTS / "runtime.json", rows)
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    elif options.markdown:
        print(markdown(rows))
    else:
        print_rows(Console(width=None if sys.stdout.isatty() else 150), "runtime, two CPU threads", rows)


def measure(shapes: tuple[Shape, ...], effort: Effort, only: str, quick: bool) -> list[Row]:
    """All rows of the chosen cases."""
    rows: list[Row] = []
    plan = [
        (shape, dtype, name)
        for shape in shapes
        for dtype in SHORT
        for name in CASES
        if only in f"{shape.name}.{SHORT[dtype]}.{name}" and (not quick or name in QUICK)
    ]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("cases", total=len(plan))
        for shape, dtype in dict.fromkeys((shape, dtype) for shape, dtype, _ in plan):
            folder = _folder(shape, progress)
            with Stage(shape, dtype, folder, RESULTS / "logs") as stage:
                for name in (name for *where, name in plan if where == [shape, dtype]):
                    progress.update(bar, description=f"{stage.prefix}.{name}")
                    rows += CASES[name](stage, effort)
                    progress.advance(bar)
    return rows


def _folder(shape: Shape, progress: Progress) -> Path:
    from infra.bench.folders import make_folders

    making = progress.add_task(f"weights of {shape.title}", total=1.0)
    folder = make_folders(RESULTS / "cache", shape, lambda done: progress.update(making, completed=done))
    progress.remove_task(making)
    return folder


if __name__ == "__main__":
    main()
