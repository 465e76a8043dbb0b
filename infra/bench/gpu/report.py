"""The rows of one or more visits as one report: merged files, a table for the terminal, Markdown to paste.

A row is known by its metric and its peer. Of the same row of several visits the last one with a figure counts: a visit
that ran out of time takes nothing away from an earlier one.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from infra.bench.gpu.steps import STEPS, file_of
from kernels.bench.rows import Row, read_rows, table, write_rows

# One of hundreds of places of a grid: its file has it, the table has what they sum up to.
_PLACE: Final = re.compile(r"^sgmv \d+->\d+ ")
REPORT: Final = "gpu-report.md"


def merged(visits: Iterable[Sequence[Row]]) -> list[Row]:
    """In the order in which rows first came."""
    rows: dict[tuple[str, str | None], Row] = {}
    for visit in visits:
        for row in visit:
            key = row.metric, row.peer
            if key not in rows or row.value is not None or row.ratio is not None or _empty(rows[key]):
                rows[key] = row
    return list(rows.values())


def _empty(row: Row) -> bool:
    return row.value is None and row.ratio is None


def merge(folders: Sequence[Path], out: Path) -> list[Row]:
    """Writes the steps' files and pictures of the folders' visits, oldest first, to `out`; returns all rows."""
    found = []
    for step in STEPS:
        rows = merged(read_rows(file_of(step.name, folder)) for folder in folders)
        if rows:
            write_rows(file_of(step.name, out), rows)
        found += rows
    for folder in folders:
        for picture in sorted(folder.glob("gpu-*.png")):
            if folder.resolve() != out.resolve():
                shutil.copyfile(picture, out / picture.name)
    return found


def shown(rows: Iterable[Row]) -> list[Row]:
    """Without the single places of grids."""
    return [row for row in rows if not _PLACE.match(row.metric)]


def text(rows: Sequence[Row]) -> str:
    """For a terminal: the table, then what was missed and what could not be measured, by name."""
    judged = [row for row in rows if row.holds is not None]
    missed = [f"{row.metric} ({row.peer})" if row.peer else row.metric for row in judged if not row.holds]
    blank = sum(_empty(row) for row in rows)
    lines = [table("GPU", shown(rows)), "", f"{len(judged) - len(missed)} of {len(judged)} targets hold"]
    if missed:
        lines.append(f"missed: {', '.join(missed[:20])}{' ...' if len(missed) > 20 else ''}")
    if blank:
        lines.append(f"without a figure: {blank} rows; their notes say why")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """A table with notes, to paste into docs/benchmarks.md."""
    heads = ("metric", "ours", "unit", "peer", "peer's", "ratio", "target", "holds", "note")
    lines = [f"| {' | '.join(heads)} |", "|---|--:|---|---|--:|--:|---|---|---|"]
    for row in shown(rows):
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        holds = {True: "yes", False: "no", None: ""}[row.holds]
        cells = (row.metric, _number(row.value), row.unit, row.peer or "", _number(row.peer_value), ratio)
        lines.append("| " + " | ".join((*cells, row.target or "", holds, row.note.replace("|", "/"))) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
