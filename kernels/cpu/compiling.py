"""Where the CPU kernels' machine code comes from: Numba compiles them for this processor, once, and keeps the result.

What was compiled is kept in a folder named for the contents of every file of this package and for Numba's version, so
that a changed kernel is never served by old code: Numba itself looks at one file only. The folder lies in this
package's `__pycache__`, where Python keeps its own compiled code, or else in the user's cache; it must belong to this
user. Where neither can be had, every process compiles anew, some fifteen seconds for each kind (`kind_of`).

Without Numba there are no CPU kernels: `available` is False and the torch references do the work.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

available: Final = importlib.util.find_spec("numba") is not None

_HERE: Final = Path(__file__).parent
_DONE: Final = ".compiled"


def compiled(function: Function) -> Function:
    """For functions that compiled code calls."""
    import numba

    jit: Callable[[Function], Function] = numba.njit(nogil=True, error_model="numpy")
    return jit(function)


def compiled_as(name: str) -> Callable[[Function], Function]:
    """For functions that are made several times from one definition: each needs a name of its own.

    The linker takes two functions of one name for one. Numba numbers what it compiles in this process, and what it kept
    was numbered in another: with the definition's name alone, a tile of eight rows took the place of one of four.
    """

    def rename(function: Function) -> Function:
        function.__qualname__ = name
        return compiled(function)

    return rename


def entry(function: Function) -> Function:
    """For functions that Python calls: their code, with all that they call, is kept on disk."""
    import numba

    folder = code_folder()
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    jit: Callable[[Function], Function] = numba.njit(nogil=True, error_model="numpy", cache=folder is not None)
    return jit(function)


def instruction(define: Callable[..., Any]) -> Callable[..., Any]:
    """For what is written in LLVM's own language: `define` gets Numba's types and gives a signature and a generator."""
    from numba.extending import intrinsic

    made: Callable[..., Any] = intrinsic(define)
    return made


@functools.cache
def code_folder() -> Path | None:
    """Where compiled code is kept; None where it cannot be."""
    prefix = f"kernels-{sys.implementation.cache_tag}-"
    for base in _bases():
        folder = base / f"{prefix}{_digest()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
                continue
        except OSError:
            continue
        for other in base.glob(f"{prefix}*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder
    return None


def kind_of(weights: str, dtype: str) -> str:
    """The name in `vectors.KINDS` for a base's weights in one dtype, and cache and adapters in another or the same."""
    return dtype if weights == dtype else f"{dtype}-of-{weights}"


def is_compiled(kind: str) -> bool:
    """Whether the kernels of this kind are kept."""
    folder = code_folder()
    return folder is not None and (folder / f"{kind}{_DONE}").is_file()


def note_compiled(kind: str) -> None:
    """They are from now on, if there is a folder."""
    folder = code_folder()
    if folder is not None:
        (folder / f"{kind}{_DONE}").touch(mode=0o600)


def compile_elsewhere(kind: str) -> None:
    """In a process that ends: the compiler leaves 300 MB behind. When it fails, whoever needs the kernels compiles."""
    if code_folder() is None or is_compiled(kind):
        return
    command = [sys.executable, "-m", __package__, "--lifeline", kind]
    # Its standard input ends with this process, however that ends, and it leaves then.
    with subprocess.Popen(  # noqa: S603 - our own module
        command, cwd=_HERE.parents[1], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as child:
        child.wait()


def _bases() -> tuple[Path, ...]:
    try:
        return _HERE / "__pycache__", Path.home() / ".cache" / "lorikeet"
    except RuntimeError:  # nobody's home
        return (_HERE / "__pycache__",)


def _digest() -> str:
    digest = hashlib.sha256(importlib.metadata.version("numba").encode())
    for file in sorted(_HERE.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
