"""Rows of a benchmark: the record that is written, the table that is printed, the Markdown that is pasted.

`ratio` is how many times better than the peer we are (above 1: we are faster), the median over rounds of the ratio
within each round. `target` is a sentence, `holds` says whether it is met, both null where there is none.
`peer_value` null: the peer did not run, and `note` says why.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
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


_HEADS = ("metric", "ours", "unit", "peer", "peer's", "ratio", "target", "holds")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The list as JSON, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "[\n" + ",\n".join(json.dumps(msgspec.to_builtins(row)) for row in rows) + "\n]\n", encoding="utf-8"
    )


def print_rows(console: Console, title: str, rows: Iterable[Row]) -> None:
    """The table; notes come with the JSON and the Markdown."""
    table = Table(title=title, title_justify="left")
    for head in _HEADS:
        table.add_column(head, justify="right" if head in ("ours", "peer's", "ratio") else "left", overflow="fold")
    for row in rows:
        style = {True: "green", False: "red", None: None}[row.holds]
        table.add_row(*_cells(row), style=style)
    console.print(table)


def markdown(rows: Iterable[Row]) -> str:
    """A table with notes, to paste into docs/benchmarks.md."""
    lines = ["| " + " | ".join((*_HEADS, "note")) + " |", "|---|--:|---|---|--:|--:|---|---|---|"]
    lines += ["| " + " | ".join((*_cells(row), row.note.replace("|", "/"))) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    holds = {True: "yes", False: "no", None: ""}[row.holds]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    value, peer_value = _number(row.value), _number(row.peer_value)
    return row.metric, value, row.unit, row.peer or "", peer_value, ratio, row.target or "", holds


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
