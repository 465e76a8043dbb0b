"""What all commands share: settings from file, environment and flags; tables or JSON; failures as sentences."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from gateway.data_dir import DataDir as DataFolder
from gateway.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (default: LORIKEET_CONFIG, else ./lorikeet.toml).")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data folder; overrides the settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class CommandFailed(Exception):
    """The command cannot do what was asked; the text says what to change."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def settings_of(config: Path | None, data_dir: Path | None = None) -> Settings:
    """Settings with an absolute data folder. Raises CommandFailed (exit code 78) for a bad file or value."""
    try:
        settings = load(config)
    except SettingsError as error:
        raise CommandFailed(f"settings: {error}", os.EX_CONFIG) from error
    chosen = Path(settings.data_dir) if data_dir is None else data_dir
    return msgspec.structs.replace(settings, data_dir=str(chosen.expanduser().resolve()))


@contextlib.asynccontextmanager
async def admin(settings: Settings, *, create: bool = False) -> "AsyncIterator[AdminClient]":
    """The operator's verbs, beside a running gateway or without one. Refusals become CommandFailed.

    Only with `create` may a data folder come into being: a mistyped one shall not look like an empty deployment.
    """
    from gateway.admin_client import AdminRefused, open_admin

    if not create and not DataFolder(Path(settings.data_dir)).database.exists():
        raise CommandFailed(f"{settings.data_dir}: no deployment has its data there; give its folder with --data-dir")
    try:
        async with open_admin(settings) as client:
            yield client
    except AdminRefused as refusal:
        raise CommandFailed(str(refusal)) from refusal


def print_json(value: Any) -> None:
    """One line of JSON, for programs."""
    print(json.dumps(value, ensure_ascii=False))


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    for index, column in enumerate(columns):
        # The first column is the id, to be copied: never cut or folded.
        width = max((len(row[index]) for row in rows), default=0) if index == 0 else None
        table.add_column(column, overflow="fold", no_wrap=index == 0, min_width=width)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
