"""Where compiled kernels are kept, and what happens where they cannot be, or where there is no Numba."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from kernels.cpu import compiling
from kernels.cpu.executing import execute


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package and a home of our own; what was found before is forgotten."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "kernel.py").write_text("one")
    monkeypatch.setattr(compiling, "_HERE", folder)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    compiling.code_folder.cache_clear()
    return folder


@pytest.fixture(autouse=True)
def forget() -> object:
    yield
    compiling.code_folder.cache_clear()


def test_a_changed_kernel_has_another_folder_and_the_old_one_goes(package: Path) -> None:
    first = compiling.code_folder()
    assert first is not None
    assert first.parent == package / "__pycache__"
    assert first.stat().st_mode & 0o777 == 0o700
    other = package / "__pycache__" / "kernels-cpython-399-ff"
    other.mkdir()
    (package / "kernel.py").write_text("two")
    compiling.code_folder.cache_clear()
    second = compiling.code_folder()
    assert second is not None
    assert second != first
    assert not first.exists()
    assert other.exists()  # another Python's


def test_the_users_cache_stands_in(package: Path) -> None:
    (package / "__pycache__").write_text("not a folder")
    found = compiling.code_folder()
    assert found is not None
    assert found.parent == package.parent / "home" / ".cache" / "lorikeet"


def test_somebody_elses_folder_is_not_trusted(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is code."""
    monkeypatch.setattr("kernels.cpu.compiling.os.getuid", lambda: 4_000_000)
    assert compiling.code_folder() is None


def test_nowhere_to_keep_it(package: Path) -> None:
    (package / "__pycache__").write_text("")
    (package.parent / "home").write_text("")
    assert compiling.code_folder() is None
    compiling.note_compiled("float32")
    assert not compiling.is_compiled("float32")
    compiling.compile_elsewhere("float32")  # nothing to gain


def test_compiling_happens_elsewhere_and_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiling.code_folder() is not None
    compiling.compile_elsewhere("bfloat16")
    assert compiling.is_compiled("bfloat16")
    monkeypatch.setattr("kernels.cpu.compiling.subprocess.Popen", None)
    compiling.compile_elsewhere("bfloat16")  # not again


def test_the_compiler_leaves_with_the_one_that_wants_it() -> None:
    command = [sys.executable, "-m", "kernels.cpu", "--lifeline", "int8"]
    code = "import threading; threading.Event().wait()"  # what never ends by itself
    blocked = [sys.executable, "-c", f"import kernels.cpu.__main__ as m; m._leave_with_input(); {code}"]
    assert subprocess.run(blocked, stdin=subprocess.DEVNULL, check=False).returncode == 1
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 1


def test_without_numba_the_command_says_so() -> None:
    blocked = "import sys; sys.modules['numba'] = None; from kernels.cpu import compiling, __main__ as m; "
    code = blocked + "compiling.available = False; m.main([]); import runtime.runner"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Numba is not installed" in done.stdout


def test_an_unknown_dtype_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "kernels.cpu", "int8"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there are bfloat16, float16, float32" in done.stderr


def test_no_two_compiled_functions_have_one_name() -> None:
    """Or a process that compiles some and loads others from the folder would run one in place of the other."""
    found = dict[int, str]()

    def note(function: object) -> None:
        if isinstance(function, Dispatcher) and id(function) not in found:
            python = function.py_func
            found[id(function)] = f"{python.__module__}.{python.__qualname__}"
            seen = inspect.getclosurevars(python)
            for other in (*seen.globals.values(), *seen.nonlocals.values()):
                note(other)

    note(execute)
    assert len(found) > 30
    assert len(set(found.values())) == len(found)
