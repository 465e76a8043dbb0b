"""How the demo looks: tables and lines, no decisions."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.demo.api import Answer
from gateway.demo.checks import Checks
from gateway.demo.stack import Served

TIER_NAMES = {"object": "object store", "disk": "disk", "memory": "memory", "device": "device rows"}


def started(console: Console, served: Served) -> None:
    """The processes and the address."""
    processes = ", ".join(f"{name} (pid {pid})" for name, pid in served.processes.items())
    console.print(f"[green]up:[/] {escape(processes)} at {served.url}", highlight=False)


def adapter(console: Console, owner: str, name: str, details: dict[str, Any], description: str) -> None:
    """One uploaded adapter."""
    console.print(
        f"[bold]{owner}[/] uploaded [cyan]{name}[/]: rank {details['rank']}, {len(details['modules'])} modules, "
        f"{details['size_bytes'] / 1000:.0f} kB, {details['status']} - {escape(description)}",
        highlight=False,
    )


def answers(console: Console, questions: list[dict[str, Any]], given: dict[str, list[Answer]]) -> None:
    """Side by side; green is exactly what was taught, red is not, plain has no expectation."""
    table = Table("question", *given, show_lines=True)
    for index, question in enumerate(questions):
        cells = [escape(question["question"])]
        for column, asked in given.items():
            text, want = asked[index].text.strip(), question["answers"].get(column)
            style = "" if want is None else ("green" if text == want else "red")
            cells.append(f"[{style}]{escape(text)}[/]" if style else escape(text))
        table.add_row(*cells)
    console.print(table)


def throughput(console: Console, tokens: int, seconds: float, batch: dict[str, int]) -> None:
    """Tokens per second, and who shared a batch."""
    console.print(
        f"{tokens} tokens in {seconds:.2f} s: [bold]{tokens / seconds:.0f} tokens/s[/]; the fullest step held "
        f"{batch['batch_rows']} sequences with [bold]{batch['batch_adapters']} distinct adapters[/] "
        f"of {batch['batch_accounts']} accounts",
        highlight=False,
    )


def tiers(console: Console, ways: dict[str, dict[str, Any]]) -> None:
    """One row per adapter, one column per tier."""
    table = Table("adapter", *TIER_NAMES.values(), "now in")
    for name, way in ways.items():
        legs = {leg["tier"]: leg for leg in way["path"]}
        cells = [f"{legs[t]['ms']:.1f} ms, {legs[t]['bytes'] / 1000:.0f} kB" if t in legs else "-" for t in TIER_NAMES]
        table.add_row(name, *cells, TIER_NAMES.get(way["tier"] or "", "nowhere"))
    console.print(table)


def refusal(console: Console, what: str, status: int, errors: list[dict[str, Any]]) -> None:
    """The error as the caller gets it."""
    for error in errors:
        console.print(
            f"[yellow]{what}[/]: HTTP {status}, code {error['code']}: {escape(error['message'])}", highlight=False
        )


def logs(console: Console, account: str, rows: list[dict[str, Any]], count: int) -> None:
    """The newest rows of one account."""
    table = Table("log", "lora", "tokens in/out", "ms", "ok", title=f"logs of {account}: {count} rows, newest first")
    for row in rows:
        table.add_row(
            row["id"], row["lora"] or "(base)", f"{row['tokens_in']}/{row['tokens_out']}", str(row["duration"]),
            "yes" if row["success"] else str(row["status_code"]),
        )  # fmt: skip
    console.print(table)


def dataset(console: Console, path: Path) -> None:
    """The exported file as it is."""
    console.print(f"[bold]{path.name}[/] (marked with feedback 1, OpenAI chat JSONL):")
    for line in path.read_text(encoding="utf-8").splitlines():
        console.print_json(json.dumps(json.loads(line)), indent=None)


def verdict(console: Console, checks: Checks, seconds: float) -> None:
    """The last line."""
    if checks.failed:
        console.print(f"[bold red]{len(checks.failed)} of {checks.count} checks failed[/] ({seconds:.1f} s)")
        for claim in checks.failed:
            console.print(f"  - {claim}", highlight=False)
    else:
        console.print(f"[bold green]all {checks.count} checks held[/] in {seconds:.1f} s; nothing is left running")
