"""A benchmark's child process: what it measures is written line by line, so that whatever ends it costs one figure.

{"about": {...}}                     once: the card, its copy speed
{"key": name, ...figures...}         one per case; {"key": name, "note": sentence} where there is none
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from infra.bench.gpu.processes import environment_for, run

Line = dict[str, Any]
# What a process takes to start and end, beyond the time in which it may begin another case.
GRACE_S: Final = 8.0


class Out:
    """The child's end of it. seconds: after which no case is begun."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._end = path, time.monotonic() + seconds
        path.write_text("", encoding="utf-8")

    def write(self, line: Line) -> None:
        """At once, in one piece."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def measured(self, key: str, measure: Callable[[], Line], reserve_s: float = 0.0) -> Line | None:
        """Writes what `measure` returns, or why there is nothing; returns it if there is. reserve_s: not begun when
        less is left, which is others'."""
        if time.monotonic() > self._end - reserve_s:
            self.write({"key": key, "note": "no time was left"})
            return None
        try:
            found = measure()
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            self.write({"key": key, "note": f"{type(error).__name__}: {first}"})
            return None
        self.write({"key": key, **found})
        return found


def ask(module: str, seconds: float, device: str, folder: Path) -> tuple[Line, dict[str, Line], str]:
    """Runs a child and returns what it said of itself, its lines by key, and how it ended badly if it did."""
    out, log = folder / f"{module.rpartition('.')[2]}.lines", folder / f"{module.rpartition('.')[2]}.log"
    folder.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    words = [sys.executable, "-m", module, str(out), f"{seconds:.1f}", device]
    ended = run(words, seconds + GRACE_S, log, environment_for(device))
    written = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.exists() else []
    lines: Sequence[Line] = [json.loads(line) for line in written if line.endswith("\n")]
    about: Line = next((line["about"] for line in lines if "about" in line), {})
    return about, {line["key"]: line for line in lines if "key" in line}, f"its process {ended}" if ended else ""


def arguments() -> tuple[Out, str]:
    """Of a child's command line: where it writes, and its device."""
    path, seconds, device = sys.argv[1:4]
    return Out(Path(path), float(seconds)), device


def short_of(line: Line | None, ended: str) -> str:
    """Why a figure is missing."""
    return str(line["note"]) if line is not None and "note" in line else ended or "was not reached"
