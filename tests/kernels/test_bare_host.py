"""A GPU host has torch, triton, numpy, safetensors and pytest, and for tests transformers and PEFT, no more; a CPU
user's machine lacks triton. Every module of the package must be imported on both, and launching a kernel without triton
must be a clear error."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GIVEN = ("torch", "triton", "numpy", "safetensors", "pytest", "kernels")
# `kernels.cpu` is for machines without a GPU and has numba.
ELSEWHERE = ("kernels.cpu",)

CHILD = """
import builtins, importlib, pkgutil, sys

allowed, elsewhere = set(sys.argv[1].split(",")) | set(sys.stdlib_module_names), tuple(sys.argv[2].split(","))
original = builtins.__import__
sys.modules.update(dict.fromkeys(("msgspec", "numba")))  # for what asks first whether they are there


def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = str((globals or {}).get("__name__"))
    ours = importer.startswith(("kernels", "runtime", "storage", "tests"))
    if ours and level == 0 and name.partition(".")[0] not in allowed:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return original(name, globals, locals, fromlist, level)


builtins.__import__ = guarded
import kernels

names = [found.name for found in pkgutil.walk_packages(kernels.__path__, "kernels.")]
for name in names:
    if not name.startswith(elsewhere):
        importlib.import_module(name)
"""


def run(allowed: tuple[str, ...], more: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", CHILD + more, ",".join(allowed), ",".join(ELSEWHERE)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


def test_a_gpu_host_can_import_every_module() -> None:
    result = run(GIVEN)
    assert result.returncode == 0, result.stderr


def test_the_guard_sees_a_missing_package() -> None:
    result = run(tuple(name for name in GIVEN if name != "torch"))
    assert "imports torch" in result.stderr


def test_without_triton_modules_import_and_kernels_refuse() -> None:
    more = """
from kernels.errors import TritonMissing
from kernels.triton_jit import HAS_TRITON, jit, tl

assert not HAS_TRITON


@jit
def _kernel(x, BLOCK: tl.constexpr):
    pass


try:
    _kernel[(1,)](None, BLOCK=1)
except TritonMissing as error:
    print(error)
"""
    result = run(tuple(name for name in GIVEN if name != "triton"), more)
    assert result.stdout == "_kernel needs Triton: pip install 'lorikeet[gpu]'\n", result.stderr


def test_a_gpu_host_can_import_its_tests_and_what_they_share() -> None:
    names = [f"tests.gpu.{path.stem}" for path in (ROOT / "tests" / "gpu").glob("*.py")]
    assert len(names) > 3
    given = (*GIVEN, "transformers", "peft", "runtime", "storage", "tests")
    result = run(given, "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert result.returncode == 0, result.stderr
