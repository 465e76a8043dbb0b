"""`make bench-runtime`: the runtime beside transformers + PEFT and llama.cpp, on two CPU threads, as ratios in one run.

    python -m infra.bench.runtime [--quick] [--only TEXT] [--json | --markdown]

Every side loads the same random weights (`folders.py`) in a process of its own; one process computes at a time, in
interleaved rounds (`rounds.py`). What a case measures stands at the head of its file: `batch_cases.py`,
`single_cases.py`, `serving_cases.py`. Rows go to bench-results/runtime.json after every case, throughput over callers
to bench-results/runtime.svg. --only takes the cases whose name (model.type.case) contains the text.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from infra.bench.case import Effort
from infra.bench.cases import CASES, FULL, QUICK, plan
from infra.bench.children import ROOT, ChildFailed
from infra.bench.plot import write_plot
from infra.bench.rows import Row, markdown, print_rows, write_rows
from infra.bench.shapes import Shape
from infra.bench.stage import Stage

RESULTS = ROOT / "bench-results"


def main() -> None:
    """Entry point; exit code 1 when no case matches."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.runtime")
    parser.add_argument("--quick", action="store_true", help="under three minutes: the small model in bf16, few rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the rows as a Markdown table")
    options = parser.parse_args()
    chosen, left_out = plan(options.quick, options.only)
    if not chosen:
        raise SystemExit(
            f"no case contains {options.only!r}; cases are {', '.join(CASES)}, after small.bf16. and so on"
        )
    rows = list(measure(chosen, QUICK if options.quick else FULL, RESULTS))
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    elif options.markdown:
        print(markdown(rows))
    else:
        print_rows(Console(width=None if sys.stdout.isatty() else 150), "runtime, two CPU threads", rows)
    if left_out:
        print(f"left out for time (--only NAME runs it): {', '.join(left_out)}", file=sys.stderr)


def measure(chosen: list[tuple[Shape, str, str]], efforts: dict[Shape, Effort], results: Path) -> Iterator[Row]:
    """The rows of the chosen cases, as they come; each is in `results / "runtime.json"` by then."""
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("cases", total=len(chosen))
        for (shape, dtype), group in itertools.groupby(chosen, key=lambda item: item[:2]):
            folder = _folder(shape, results / "cache", progress)
            with Stage(shape, dtype, folder, results / "logs") as stage:
                for _, _, name in group:
                    progress.update(bar, description=f"{stage.prefix}.{name}")
                    try:
                        found = CASES[name](stage, efforts[shape])
                    except ChildFailed as error:
                        found = [Row(metric=f"{stage.prefix}.{name}", value=None, unit="", note=str(error))]
                    rows += found
                    write_rows(results / "runtime.json", rows)
                    write_plot(results / "runtime.svg", rows)
                    progress.advance(bar)
                    yield from found


def _folder(shape: Shape, cache: Path, progress: Progress) -> Path:
    from infra.bench.folders import make_folders  # imports torch: not before it is needed

    making = progress.add_task(f"weights of {shape.title}", total=1.0)
    folder = make_folders(cache, shape, lambda done: progress.update(making, completed=done))
    progress.remove_task(making)
    return folder


if __name__ == "__main__":
    main()
