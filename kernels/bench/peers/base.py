"""What a peer of the SGMV benchmark is, and how its sources are loaded.

Peers' code is not in this repository: whoever runs the benchmark puts it into a folder (`infra/gpu_peers.sh` fetches
it), and each file here knows how to load one of them. A package's own `__init__` would import a whole server, so its
modules are loaded one by one under their own names, beside stand-ins for the few names that they take from elsewhere.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from kernels.bench.sgmv_points import Problem

Operation = Callable[[], object]


class PeerMissing(Exception):
    """The peer cannot run here; the text is the reason for the table."""


class Peer(Protocol):
    """One implementation of the operation."""

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """One per set of the problem: adds the adapters' part to that set's y. What a server would prepare once a
        step is done here. Raises PeerMissing for a problem that it cannot do."""
        ...


def package(name: str, folder: Path | None = None) -> ModuleType:
    """An empty package of this name, whose modules are found in `folder`."""
    module = ModuleType(name)
    module.__path__ = [str(folder)] if folder is not None else []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def stand_in(name: str, **members: Any) -> ModuleType:
    """A module with only these members."""
    module = package(name)
    for member, value in members.items():
        setattr(module, member, value)
    return module


def load(name: str) -> ModuleType:
    """The real module. Raises PeerMissing."""
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError, AttributeError) as error:
        raise PeerMissing(f"{name}: {type(error).__name__}: {error}") from error


def folder_of(root: Path, *parts: str) -> Path:
    """A folder of a peer's sources. Raises PeerMissing."""
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        raise PeerMissing(f"its sources are not in {Path(root.name).joinpath(*parts)} (infra/gpu_peers.sh)")
    return folder
