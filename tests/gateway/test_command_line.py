"""What the commands say of themselves, and what they refuse before they do anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from gateway.cli import app


def help_texts(command: Any) -> Iterator[str]:
    yield command.help or ""
    yield from (parameter.help or "" for parameter in command.params if hasattr(parameter, "help"))
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


def test_no_word_of_the_help_is_taken_for_markup() -> None:
    texts = list(help_texts(typer.main.get_command(app)))
    assert len(texts) > 30
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e300"])
@pytest.mark.parametrize(
    "command",
    [
        ("accounts", "create", "acme", "--weight"),
        ("accounts", "set", "0" * 32, "--weight"),
        ("tokens", "create", "0" * 32, "--expires-in-days"),
    ],
)
def test_numbers_out_of_range_are_refused(command: tuple[str, ...], number: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*command, number, "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert not (tmp_path / "data").exists()
