"""A benchmark's child and its parent, whatever ends the child."""

import json
from pathlib import Path

import pytest

from infra.bench.gpu import child
from infra.bench.gpu.child import Out, ask, short_of


def _lines(path: Path) -> list[child.Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_case_that_fails_is_a_line_and_the_next_one_runs(tmp_path: Path) -> None:
    def fail() -> child.Line:
        raise MemoryError("too much\nmore")

    out = Out(tmp_path / "lines", 60.0)
    assert out.measured("a", fail) is None
    assert out.measured("b", lambda: {"ms": 1.0}) == {"ms": 1.0}
    late = Out(tmp_path / "late", -1.0)
    assert late.measured("c", lambda: {"ms": 1.0}) is None
    assert _lines(tmp_path / "lines") == [{"key": "a", "note": "MemoryError: too much"}, {"key": "b", "ms": 1.0}]
    assert _lines(tmp_path / "late") == [{"key": "c", "note": "no time was left"}]


def test_what_was_written_before_the_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys\nfrom infra.bench.gpu.child import arguments\n"
        "out, device = arguments()\nout.write({'about': {'device': device}})\n"
        "out.write({'key': 'a', 'ms': 1.5})\nopen(sys.argv[1], 'a').write('{\"key\": \"b\"')\nos._exit(3)\n"
    )
    (tmp_path / "dying.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    about, lines, ended = ask("dying", 30.0, "cpu", tmp_path / "out")
    assert (about, lines) == ({"device": "cpu"}, {"a": {"key": "a", "ms": 1.5}})
    assert ended == "its process ended with 3: without a word"
    assert short_of(lines.get("b"), ended) == ended
    assert short_of(None, "") == "was not reached"
    assert short_of({"note": "x"}, ended) == "x"
    monkeypatch.setattr(child, "GRACE_S", 1.0)
    (tmp_path / "hanging.py").write_text("import signal\nsignal.pause()\n")
    assert ask("hanging", 0.5, "cpu", tmp_path / "out") == ({}, {}, "its process was stopped after 2 s")
