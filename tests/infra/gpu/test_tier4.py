"""The step that runs tests/gpu: files that pass, fail, end their process and hang, each without harm to the others."""

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
    "hanging": "import os, signal\n\n\ndef test_before():\n    pass\n\n\ndef test_wait():\n    signal.pause()\n",
    "absent": "import pytest\n\npytestmark = pytest.mark.skip(reason='not here')\n\n\ndef test_it():\n    pass\n",
}
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
    monkeypatch.setattr(tier4, "AT_ONCE", 6)
    assert tier4.main(["--out", str(out), "--seconds", "12", "--folder", str(folder)]) == 1
    rows = {row.metric: row for row in read_rows(out)}
    good, bad = rows["tests.test_good"], rows["tests.test_bad"]
    assert (good.value, good.unit, good.holds, good.note) == (2, "of 2 passed", True, "")
    assert (bad.value, bad.unit, bad.holds) == (1, "of 2 passed", False)
    wrong = rows["tests.test_bad.py::test_wrong[a b]"]
    assert (wrong.holds, wrong.note) == (False, "ValueError: not a b")
    assert rows["tests.test_broken"].holds is False
    assert "No module named" in (tmp_path / "gpu-tests" / "test_broken.log").read_text()
    fatal, hanging = rows["tests.test_fatal"], rows["tests.test_hanging"]
    assert (fatal.value, fatal.holds) == (1, False)
    assert "ended with 134" in fatal.note
    assert (hanging.value, hanging.holds) == (1, False)
    assert "was stopped after" in hanging.note
    absent = rows["tests.test_absent"]
    assert (absent.value, absent.holds, absent.note) == (0, None, "1 skipped: not here")


def test_the_files_of_the_repository_are_found() -> None:
    names = [path.stem for path in tier4.files(tier4.FOLDER)]
    assert names[0] == "test_sanitizer"
    assert {"test_sgmv", "test_attention", "test_sampling", "test_device"} < set(names)


def test_no_time_is_said() -> None:
    (row,) = tier4.test_file(Path("test_x.py"), end=0.0, logs=Path("nowhere"))
    assert (row.value, row.note) == (None, "no time was left")
