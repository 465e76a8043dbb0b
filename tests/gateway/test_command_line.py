"""What the commands say of themselves, and what they refuse before they do anything."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
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


def test_a_reader_who_has_enough_of_the_logs_hears_no_complaint(tmp_path: Path) -> None:
    """`lorikeet logs export | head -1`: the gateway is real HTTP, the output a pipe that nobody reads."""
    server = HTTPServer(("127.0.0.1", 0), _Lines)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "gateway.cli", "logs", "export"]
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [*command, "--account", "a", "--token", "t", "--url", f"http://127.0.0.1:{server.server_port}"],
            stdout=write,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=60,
        )
    finally:
        os.close(write)
        server.shutdown()
        server.server_close()
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_full_device_is_a_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "gateway.cli", "accounts", "create", "acme", "--data-dir", str(tmp_path / "data")]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == b"lorikeet: No space left on device\n"


class _Lines(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "300000")
        self.end_headers()
        self.wfile.write(b'{"a":1}\n' * 37_500)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the test's output."""
