"""A visit without a GPU, and at toy sizes on a CPU: processes, time, failures, files and table are the real ones."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from infra.bench.gpu import steps, visit
from infra.bench.gpu.processes import ROOT, run
from infra.bench.gpu.steps import STEPS, Command, Step
from kernels.bench.rows import Row, read_rows, write_rows

ROWS = "import sys; from pathlib import Path; from kernels.bench.rows import *; "


def _python(code: str, limit_s: float = 60.0) -> Command:
    return Command((code,), limit_s)


@pytest.fixture
def plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of `_python` are run."""
    monkeypatch.setattr(visit, "line_of", lambda command: [sys.executable, "-c", command.words[0]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "infra.bench.gpu", "--out", str(tmp_path / "out")]
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == visit.NO_GPU
    assert asked.stdout == ""
    assert asked.stderr.startswith("no GPU, nothing measured: ")
    assert asked.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_kernels_step_runs_as_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real benchmarks in their own processes, interpreted."""
    assert visit.main(["--device", "cpu", "--step", "kernels", "--minutes", "2", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "gpu-kernels.json")
    assert {"torch grouped_mm", "cuBLAS all slots", "byte floor"} <= {row.peer for row in rows}
    assert any(row.metric.startswith("norm with residual") for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kernels: at most 1")
    assert lines[-1] == f"files: {tmp_path}"
    assert not any(line.startswith("sgmv 48->32") for line in lines)
    assert "sgmv, all points" in (tmp_path / "gpu-report.md").read_text()


@pytest.mark.usefixtures("plain_python")
def test_one_failure_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(step: str, seconds: float, folder: Path, device: str) -> list[Command]:
        out = steps.file_of(step, folder)
        write = f"{ROWS} merge_rows(Path({str(out)!r}), [Row({step!r}, 1.0, 'us')])"
        return {
            "tests": [_python("import os; os.abort()")],
            "kernels": [_python(f"{write}; import threading; threading.Event().wait()", 2.0), _python(write)],
            "decode": [_python(f"{write}; sys.exit(1)")],
            "loads": [_python("pass")],
            "adapters": [_python(write)],
        }[step]

    monkeypatch.setattr(visit, "commands", commands)
    names = ("tests", "kernels", "decode", "loads", "adapters")
    assert not visit.run_steps([Step(name, 1) for name in names], 60.0, tmp_path, "cpu")
    found = {name: read_rows(steps.file_of(name, tmp_path)) for name in names}
    assert "ended with -6" in found["tests"][0].note
    assert {row.value for row in found["kernels"]} == {1.0, None}
    assert any("was stopped after 2 s" in row.note for row in found["kernels"])
    # A code of 1 with rows: the rows say what there is to say.
    assert [(row.metric, row.value) for row in found["decode"]] == [("decode", 1.0)]
    assert found["loads"][0].note == "nothing was measured"
    assert [(row.metric, row.value) for row in found["adapters"]] == [("adapters", 1.0)]


@pytest.mark.usefixtures("plain_python")
def test_a_step_is_begun_anew_and_the_file_before_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = steps.file_of("loads", tmp_path)
    write_rows(out, [Row("old", 1.0, "us")])
    code = f"{ROWS} merge_rows(Path({str(out)!r}), [Row('new', 1.0, 'us')])"
    monkeypatch.setattr(visit, "commands", lambda *_: [_python(code)])
    assert visit.run_steps([Step("loads", 1)], 60.0, tmp_path, "cpu")
    assert [row.metric for row in read_rows(out)] == ["new"]
    assert [row.metric for row in read_rows(tmp_path / "gpu-loads.before.json")] == ["old"]


def test_time_is_shared_and_what_is_left_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[float]()

    def run_step(step: Step, seconds: float, folder: Path, device: str) -> bool:
        given.append(seconds)
        return True

    monkeypatch.setattr(visit, "run_step", run_step)
    assert visit.run_steps([Step("tests", 3), Step("loads", 1)], 48.0, tmp_path, "cpu")
    assert given == pytest.approx([30.0, 40.0], abs=0.5)


@pytest.mark.skipif(torch.cuda.is_available() or shutil.which("make") is None, reason="there is a GPU, or no make")
def test_make_gpu_passes_the_steps_on() -> None:
    # A make around this one would have it say which folder it enters, and hand its own options on.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}

    def make(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, env=outside)

    asked = make("-n", "gpu", "STEP=tests kernels")
    assert asked.stdout == "python3 -m infra.bench.gpu --step tests --step kernels \n"
    ran = make("gpu", f"GPU_PYTHON={sys.executable}")
    assert ran.returncode
    assert "no GPU, nothing measured: " in ran.stderr


@pytest.mark.parametrize("step", [step.name for step in STEPS])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_limits_of_a_steps_commands_add_up_to_its_time(step: str, device: str, tmp_path: Path) -> None:
    found = steps.commands(step, 100.0, tmp_path, device)
    assert sum(command.limit_s for command in found) == pytest.approx(100.0)
    assert all(str(steps.file_of(step, tmp_path)) in command.words for command in found)


def test_a_process_ends_with_its_group(tmp_path: Path) -> None:
    """A child of the process that is stopped writes its number; it must not run any more."""
    child = "import os, threading; open(r'{}', 'w').write(str(os.getpid())); threading.Event().wait()"
    number = tmp_path / "pid"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child.format(number)!r}])"
    began = time.monotonic()
    ended = run([sys.executable, "-c", code], 2.0, tmp_path / "log")
    assert ended == "was stopped after 2 s"
    assert time.monotonic() - began < 10
    status = Path(f"/proc/{number.read_text()}/stat")
    # Where nobody buries orphans it stays a zombie.
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_visit_writes_down_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "machine", lambda: {"card": "a card", "torch": "2", "triton": "3"})
    monkeypatch.setattr(visit, "run_step", lambda *_: True)
    assert visit.main(["--step", "tests", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "gpu-visit.json").read_text())["card"] == "a card"
