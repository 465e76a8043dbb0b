"""How much memory this deployment may use: the machine's, or less where a container's limit (cgroup v2 or v1) says so.

The one file that knows where Linux writes it. A limit on any group above ours counts as well.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def machine_bytes(groups: Path = Path("/proc/self/cgroup"), mounted: Path = _CGROUP) -> int:
    """Bytes. On a system without cgroups: the machine's."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(groups, mounted)])


def _limits(groups: Path, mounted: Path) -> Iterator[int]:
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            yield from _upwards(mounted, path, "memory.max")
            yield from _upwards(mounted / "unified", path, "memory.max")  # v1 and v2 side by side
        elif "memory" in controllers.split(","):
            yield from _upwards(mounted / "memory", path, "memory.limit_in_bytes")


def _upwards(root: Path, path: str, name: str) -> Iterator[int]:
    """The limits of a group and of all above it. A container may not see its own path: its root is its group then."""
    parts = [part for part in path.split("/") if part]
    inside = [] if ".." in parts else parts
    for depth in range(len(inside), -1, -1):
        try:
            yield int((root.joinpath(*inside[:depth]) / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
