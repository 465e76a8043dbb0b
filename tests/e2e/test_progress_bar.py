"""On a terminal `lorikeet serve` shows a bar for each base that loads."""

import os
import pty
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gateway.commands.loading import LoadingBars
from tests.e2e.deployment import MODEL

pytestmark = pytest.mark.timeout(120)


def test_bars_follow_what_the_runtimes_say() -> None:
    screen = Console(file=StringIO(), force_terminal=True, width=100)
    with LoadingBars(["@cf/one", "@cf/two"], console=screen) as bars:
        for line in ("loading @cf/one: 30 %", "loading @cf/two: 100 %", "loading @cf/three: 70 %", "listening on x:1"):
            bars.said(line)
        bars.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"loading @cf/one ━+.* 30%", shown)
    assert re.search(r"loading @cf/two ━+ 100%", shown)
    assert "three" not in shown


def test_nothing_is_shown_where_nobody_looks() -> None:
    log = Console(file=StringIO(), force_terminal=False)
    with LoadingBars(["@cf/one"], console=log) as bars:
        bars.said("loading @cf/one: 30 %")
    quiet = Console(file=StringIO(), force_terminal=True)
    with LoadingBars(["@cf/one"], quiet=True, console=quiet) as bars:
        bars.said("loading @cf/one: 30 %")
    assert log.file.getvalue() == quiet.file.getvalue() == ""  # type: ignore[attr-defined]


def test_serve_shows_it_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while b"Ctrl-C stops it" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    percents = [int(told) for told in re.findall(rf"loading {re.escape(MODEL)} ━+.* +(\d+)%", text)]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
