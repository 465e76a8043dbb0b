"""Rows of a benchmark on a GPU: the record, the file, the table. Nothing but the standard library.

The fields are those of `infra/bench/rows.py`: `ratio` is how many times better than the peer we are (above 1: we are
faster). `target` is a sentence, `holds` says whether it is met, both null where there is none. `peer_value` null: the
peer did not run, and `note` says why.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_HEADS = ("metric", "ours", "unit", "peer", "peer's", "ratio", "target", "holds", "note")


class Row(NamedTuple):
    """One figure beside its peer's."""

    metric: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: str | None = None
    holds: bool | None = None
    note: str = ""


def read_rows(path: Path) -> list[Row]:
    """What an earlier visit left; empty when there was none."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def merge_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Writes the rows over an earlier visit's of the same metric and peer, beside its others; returns all."""
    made = {(row.metric, row.peer) for row in rows}
    merged = [*(row for row in read_rows(path) if (row.metric, row.peer) not in made), *rows]
    write_rows(path, merged)
    return merged


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The list as JSON, one row a line; whole or not at all, for whoever writes may be ended at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row._asdict()) for row in rows)
    part = path.with_suffix(".part")
    part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    part.replace(path)


def table(title: str, rows: Iterable[Row]) -> str:
    """Plain text, for a terminal without colours."""
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([title, *lines])


def _cells(row: Row) -> tuple[str, ...]:
    holds = {True: "yes", False: "NO", None: ""}[row.holds]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    values = _number(row.value), row.unit, row.peer or "", _number(row.peer_value)
    return (row.metric, *values, ratio, row.target or "", holds, row.note)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
