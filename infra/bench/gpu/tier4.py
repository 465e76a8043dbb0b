"""The step `tests`: every file of tests/gpu in a pytest of its own, a few at once, as rows.

A test that damages the device (an address that is not there ends all work of its process) takes only its file with it.
What a file's process said is in gpu-tests/<file>.log beside the rows. `passed` is the figure of a file; a test that
failed is a row of its own, and a file whose time was up says how far it came.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from infra.bench.gpu.processes import ROOT, ends_with_children, environment_for, run
from kernels.bench.rows import Row, merge_rows

FOLDER: Final = ROOT / "tests" / "gpu"
AT_ONCE: Final = 4
# What takes longest is started first.
_FIRST: Final = ("test_sanitizer", "test_sgmv", "test_attention", "test_sampling")
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
    """ended: how its process ended badly, empty when it did not. A code of 1 is pytest's word for failed tests."""
    note = f"{outcome.skipped} skipped: {outcome.why}" if outcome.skipped else ""
    if ended and not (outcome.failed and ended.startswith("ended with 1:")):
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
        return (_FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST)), path.stem

    return sorted(folder.glob("test_*.py"), key=place)


def test_file(path: Path, end: float, logs: Path) -> list[Row]:
    """Runs one file until `end` (by time.monotonic) at the latest."""
    log, left = logs / f"{path.stem}.log", end - time.monotonic()
    if left < 1:
        return [Row(f"tests.{path.stem}", None, "", target="all", note="no time was left")]
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-ra",
        "--color=no",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        str(path),
    ]
    # Reasons are cut to the width of the terminal.
    ended = run(words, left, log, {**environment_for("cuda"), "COLUMNS": "300"})
    return rows_of(path.stem, read(log.read_text(encoding="utf-8", errors="replace")), ended)


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
        for made in pool.map(lambda path: test_file(path, end, logs), files(arguments.folder)):
            rows += made
            merge_rows(arguments.out, rows)
    return 0 if any(row.holds for row in rows) and all(row.holds is not False for row in rows) else 1


if __name__ == "__main__":
    ends_with_children()
    sys.exit(main())
