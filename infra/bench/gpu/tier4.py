"""The step `tests`: every file of tests/gpu in one pytest or several, many at once, as rows.

A test that damages the device (an address that is not there ends all work of its process) takes only its part of its
file with it. Most of the time goes into compiling, so files with many tests are cut into parts. What a process said is
in gpu-tests/<file>.<part>.log beside the rows. `passed` is the figure of a file; a test that failed is a row of its
own, and a file whose time was up says how far it came.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from infra.bench.gpu.processes import ROOT, ends_with_children, environment_for, run
from infra.bench.gpu.tier4_part import VARIABLE
from kernels.bench.rows import Row, merge_rows

FOLDER: Final = ROOT / "tests" / "gpu"
AT_ONCE: Final = min(10, max(2, (os.cpu_count() or 2) * 2 // 3))
# What takes longest is started first, in so many parts; all others in one.
PARTS: Final = {
    "test_sanitizer": 2, "test_device_runner": 2, "test_sgmv": 4, "test_attention": 2, "test_sampling": 2,
}  # fmt: skip
_VERDICT: Final = re.compile(r"^(?P<name>\S+::.*?) (?P<verdict>PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)
_REASON: Final = re.compile(r"^(?:FAILED|ERROR) (?P<name>\S+::.*?)(?: - (?P<reason>.*))?$", re.MULTILINE)


_SKIPPED: Final = re.compile(r"^SKIPPED \[\d+\] \S+: (?P<reason>.*)$", re.MULTILINE)


class Outcome(NamedTuple):
    """Of one file. failed: names with reasons. why: of the skipped, each reason once."""

    passed: int
    skipped: int
    failed: list[tuple[str, str]]
    why: str = ""


def read(log: str) -> Outcome:
    """From what `pytest -v -ra` printed, however far it came."""
    verdicts = {found["name"]: found["verdict"] for found in _VERDICT.finditer(log)}
    reasons = {found["name"]: found["reason"] or "" for found in _REASON.finditer(log)}
    failed = {name for name, verdict in verdicts.items() if verdict in ("FAILED", "ERROR")} | reasons.keys()
    counts = [sum(verdict == wanted for verdict in verdicts.values()) for wanted in ("PASSED", "SKIPPED")]
    why = ", ".join(dict.fromkeys(found["reason"] for found in _SKIPPED.finditer(log)))
    return Outcome(counts[0], counts[1], [(name, reasons.get(name, "")) for name in sorted(failed)], why)


def rows_of(name: str, outcome: Outcome, ended: str) -> list[Row]:
    """ended: how its processes ended badly, empty when they did not."""
    note = f"{outcome.skipped} skipped: {outcome.why}" if outcome.skipped else ""
    if ended:
        note = f"{note}; {ended}" if note else ended
    whole = outcome.passed + len(outcome.failed)
    holds: bool | None = not outcome.failed and not ended and outcome.passed > 0
    if outcome.skipped and not whole and not ended:
        holds = None  # nothing was tested, and nothing is wrong
    rows = [Row(f"tests.{name}", outcome.passed, f"of {whole} passed", target="all", holds=holds, note=note)]
    for test, reason in outcome.failed:
        rows.append(Row(f"tests.{test.rpartition('/')[2]}", None, "", target="passes", holds=False, note=reason))
    return rows


def files(folder: Path) -> list[Path]:
    """The files, slowest first."""

    def place(path: Path) -> tuple[int, str]:
        return (list(PARTS).index(path.stem) if path.stem in PARTS else len(PARTS)), path.stem

    return sorted(folder.glob("test_*.py"), key=place)


def run_part(path: Path, part: int, parts: int, end: float, logs: Path) -> tuple[Outcome, str]:
    """Runs one part of a file until `end` (by time.monotonic) at the latest; also returns how it ended badly."""
    log, left = logs / f"{path.stem}.{part}.log", end - time.monotonic()
    if left < 1:
        return Outcome(0, 0, []), "was not begun: no time was left"
    words = [sys.executable, "-m", "pytest", "-v", "-ra", "--color=no", "-p", "no:cacheprovider", "-m", "gpu"]
    words += ["-p", "infra.bench.gpu.tier4_part", str(path)]
    # Reasons are cut to the width of the terminal.
    environment = {**environment_for("cuda"), "COLUMNS": "300", VARIABLE: f"{part}/{parts}"}
    ended = run(words, left, log, environment)
    outcome = read(log.read_text(encoding="utf-8", errors="replace"))
    if ended.startswith("ended with 5:") or (outcome.failed and ended.startswith("ended with 1:")):
        ended = ""  # pytest's words for a part without tests, and for tests that failed and are named
    return outcome, ended


def joined(outcomes: Sequence[tuple[Outcome, str]]) -> tuple[Outcome, str]:
    """Of the parts of a file."""
    found = [outcome for outcome, _ in outcomes]
    why = ", ".join(dict.fromkeys(outcome.why for outcome in found if outcome.why))
    failed = sorted(name for outcome in found for name in outcome.failed)
    whole = Outcome(sum(one.passed for one in found), sum(one.skipped for one in found), failed, why)
    count = len(outcomes)
    ends = [f"part {part} of {count} {end}" if count > 1 else end for part, (_, end) in enumerate(outcomes, 1) if end]
    return whole, "; ".join(ends)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a test failed or none could be run."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=120.0)
    options.add_argument("--device", default="cuda", help="of no account: each test names its own")
    options.add_argument("--folder", type=Path, default=FOLDER)
    arguments = options.parse_args(argv)
    end, rows = time.monotonic() + arguments.seconds, list[Row]()
    logs = arguments.out.with_suffix("")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = [
            (path.stem, [pool.submit(run_part, path, part, parts, end, logs) for part in range(parts)])
            for path in files(arguments.folder)
            for parts in (PARTS.get(path.stem, 1),)
        ]
        for name, running in begun:
            rows += rows_of(name, *joined([part.result() for part in running]))
            merge_rows(arguments.out, rows)
    return 0 if any(row.holds for row in rows) and all(row.holds is not False for row in rows) else 1


if __name__ == "__main__":
    ends_with_children()
    sys.exit(main())
