"""The compatibility table of docs/compatibility.md: written by the run of the clients, never by hand.

`make test-clients` rewrites the part between the two marks with what was really seen; a client that was skipped keeps
the row it had.
"""

import os
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "compatibility.md"
BEGIN: Final = "<!-- clients: written by make test-clients -->"
END: Final = "<!-- end of clients -->"


class Table:
    """Client x call: works, fails, or not asked for."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, bool]] = {}

    def add(self, client: str, call: str, works: bool) -> None:
        """One cell."""
        self._rows.setdefault(client, {})[call] = works

    def lines(self, kept: dict[str, str]) -> list[str]:
        """One line a client, by name; `kept` are the lines of those that did not run."""
        said = dict(kept)
        for client, calls in self._rows.items():
            good = "; ".join(sorted(call for call, works in calls.items() if works))
            bad = "; ".join(sorted(call for call, works in calls.items() if not works)) or "-"
            said[client] = f"| {client} | {good} | {bad} |"
        return ["| client | works | fails |", "|---|---|---|", *(said[client] for client in sorted(said))]

    def write(self) -> None:
        """Rewrites the page, if the run was asked to."""
        if os.environ.get("WRITE_TABLE") and self._rows:
            page = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(with_table(page, self), encoding="utf-8")


def with_table(page: str, table: Table) -> str:
    """The page with the rows of this run."""
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = {match[1]: match[0] for match in re.finditer(r"^\| (?!client |-)(.+?) \|.*$", old, re.MULTILINE)}
    return "\n".join([before + BEGIN, *table.lines(kept), END + after])
