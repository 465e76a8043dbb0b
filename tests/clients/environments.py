"""An environment of its own for each client, with exactly the pinned packages; made once, kept in `.clients/`.

The folder's name holds a digest of the pins, so another pin is another environment, and `make clean` throws all away.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".clients"
SCRIPTS: Final = Path(__file__).parent / "scripts"
OLDEST_NODE: Final = (20, 3)
_INSTALL_S: Final = 600


def python_env(name: str, pins: tuple[str, ...]) -> Path:
    """The interpreter of a virtual environment with these packages."""

    def fill(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", str(folder))
        pip = (
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "-q",
        )
        _run(*pip, *pins)

    return _made(name, pins, fill) / "bin" / "python"


def node_env(name: str, pins: tuple[str, ...]) -> Path:
    """A folder with `node_modules`; the scripts are copied in, because Node looks for packages beside them."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip(f"{name}: Node.js is not installed")
    version = tuple(int(part) for part in re.findall(r"\d+", _run(node, "--version"))[:2])
    if version < OLDEST_NODE:
        pytest.skip(f"{name}: Node.js {'.'.join(map(str, OLDEST_NODE))} or newer is needed, {version} is installed")

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        _run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *pins)

    folder = _made(name, pins, fill)
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder / script.name)
    return folder


def _made(name: str, pins: tuple[str, ...], fill: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:10]
    folder = FOLDER / f"{name}-{digest}"
    ready = folder / ".ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        FOLDER.mkdir(exist_ok=True)
        fill(folder)
        ready.touch()
    return folder


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
