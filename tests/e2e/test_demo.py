"""`lorikeet demo` is the main job; it checks itself, so its exit code is the test."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gateway.demo import QUESTIONS_FILE, story


def test_the_demo_holds_and_is_done_within_a_minute() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks held" in done.stdout
    assert "distinct" in done.stdout
    # Twice the promise, because a test machine may be busy; the promise itself is shown by `make demo`.
    assert time.monotonic() - began < 120


async def test_wrong_output_makes_the_demo_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same demo, told to expect other answers of one adapter."""
    script = json.loads(QUESTIONS_FILE.read_text(encoding="utf-8"))
    for question in script["questions"]:
        question["answers"]["tides-json"] = "something else"
    (tmp_path / "questions.json").write_text(json.dumps(script), encoding="utf-8")
    monkeypatch.setattr(story, "QUESTIONS_FILE", tmp_path / "questions.json")
    console = Console(file=io.StringIO(), width=200)
    assert await story.play(console) == 1
    assert isinstance(console.file, io.StringIO)
    assert "tides-json answers as taught (0 of 8)" in console.file.getvalue()
