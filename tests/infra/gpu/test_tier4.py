"""The step that runs tests/gpu: files that pass, fail and end their process, without harm to the others; one hangs."""

import time
from pathlib import Path

import pytest

from infra.bench.gpu import tier4
from kernels.bench.rows import read_rows

FILES = {
    "good": "def test_one():\n    pass\n\n\ndef test_two():\n    pass\n",
    "bad": "import pytest\n\n\ndef test_right():\n    pass\n\n\n@pytest.mark.parametrize('x', ['a b'])\n"
    "def test_wrong(x):\n    raise ValueError('not ' + x)\n",
    "broken": "import nothing_of_this_name\n",
    "fatal": "import os\n\n\ndef test_before():\n    pass\n\n\ndef test_end():\n    os._exit(134)\n",
    "absent": "import pytest\n\npytestmark = pytest.mark.skip(reason='not here')\n\n\ndef test_it():\n    pass\n",
}
HANGING = "import os, signal\n\n\ndef test_before():\n    pass\n\n\ndef test_wait():\n    signal.pause()\n"
INI = "[pytest]\naddopts = --import-mode=importlib\nmarkers =\n    gpu: x\n"
CONFTEST = (
    "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    for item in items:\n"
    "        item.add_marker(pytest.mark.gpu)\n"
)


def test_every_file_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "tests", tmp_path / "gpu-tests.json"
    folder.mkdir()
    (folder / "pytest.ini").write_text(INI)
    (folder / "conftest.py").write_text(CONFTEST)
    for name, text in FILES.items():
        (folder / f"test_{name}.py").write_text(text)
    monkeypatch.setattr(tier4, "AT_ONCE", 9)
    monkeypatch.setattr(tier4, "PARTS", {"test_bad": 2, "test_fatal": 2})
    assert tier4.main(["--out", str(out), "--seconds", "150", "--folder", str(folder)]) == 1
    rows = {row.metric: row for row in read_rows(out)}
    good, bad = rows["tests.test_good"], rows["tests.test_bad"]
    assert (good.value, good.unit, good.holds, good.note) == (2, "of 2 passed", True, "")
    assert (bad.value, bad.unit, bad.holds) == (1, "of 2 passed", False)
    wrong = rows["tests.test_bad.py::test_wrong[a b]"]
    assert (wrong.holds, wrong.note) == (False, "ValueError: not a b")
    assert rows["tests.test_broken"].holds is False
    assert "No module named" in (tmp_path / "gpu-tests" / "test_broken.0.log").read_text()
    fatal = rows["tests.test_fatal"]
    assert (fatal.value, fatal.holds) == (1, False)
    assert "part 2 of 2 ended with 134" in fatal.note
    absent = rows["tests.test_absent"]
    assert (absent.value, absent.holds, absent.note) == (0, None, "1 skipped: not here")


def test_a_file_that_hangs_is_stopped_and_keeps_what_it_passed(tmp_path: Path) -> None:
    folder, out = tmp_path / "tests", tmp_path / "gpu-tests.json"
    folder.mkdir()
    (folder / "pytest.ini").write_text(INI)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_hanging.py").write_text(HANGING)
    assert tier4.main(["--out", str(out), "--seconds", "30", "--folder", str(folder)]) == 1
    rows = {row.metric: row for row in read_rows(out)}
    hanging = rows["tests.test_hanging"]
    assert (hanging.value, hanging.holds) == (1, False)
    assert "was stopped after" in hanging.note


def test_the_files_of_the_repository_are_found() -> None:
    names = [path.stem for path in tier4.files(tier4.FOLDER)]
    assert names[0] == "test_sanitizer"
    assert {"test_sgmv", "test_attention", "test_sampling", "test_device"} < set(names)


def test_parts_are_all_of_a_file_and_each_test_is_in_one(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    path, tests = tmp_path / "test_many.py", [f"def test_{name}():\n    pass\n" for name in "abcde"]
    path.write_text("\n\n".join(tests))
    end, logs = time.monotonic() + 60, tmp_path / "logs"
    parts = [tier4.run_part(path, part, 3, end, logs) for part in range(3)]
    assert [outcome.passed for outcome, _ in parts] == [2, 2, 1]
    assert tier4.joined(parts) == (tier4.Outcome(5, 0, []), "")
    ran = [(logs / f"test_many.{part}.log").read_text().count("::test_a PASSED") for part in range(3)]
    assert ran == [1, 0, 0]


def test_more_parts_than_tests_are_no_failure(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_one.py").write_text("def test_it():\n    pass\n")
    nothing = tier4.run_part(tmp_path / "test_one.py", 1, 2, time.monotonic() + 60, tmp_path / "logs")
    assert nothing == (tier4.Outcome(0, 0, []), "")


def test_no_time_is_said() -> None:
    outcome, ended = tier4.run_part(Path("test_x.py"), 0, 1, end=0.0, logs=Path("nowhere"))
    (row,) = tier4.rows_of("test_x", outcome, ended)
    assert (row.value, row.holds, row.note) == (0, False, "was not begun: no time was left")
