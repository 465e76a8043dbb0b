"""Who used the CPUs while something was measured: the child that we measure, or somebody else.

A measurement on a machine that does other work says little, and it is the peers that suffer most: a thread pool that
waits actively at a barrier stands still when its other half is not scheduled. Linux's /proc says how much there was;
where there is none (`others` is then 0) nothing is known.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Clocks:
    """CPU seconds so far: of the machine (all that is not idle, theft by the hypervisor included) and of one tree."""

    wall: float
    machine: float
    tree: float

    @classmethod
    def read(cls, pid: int) -> "Clocks":
        """Now; `pid` is the root of the tree of processes."""
        return cls(time.monotonic(), _machine_s(), _tree_s(pid))

    def others(self, before: "Clocks") -> float:
        """The share of all CPUs that went to others since `before`, 0 to 1."""
        available = (self.wall - before.wall) * (os.cpu_count() or 1)
        used = (self.machine - before.machine) - (self.tree - before.tree)
        return min(1.0, max(0.0, used / available)) if available > 0 else 0.0


def _machine_s() -> float:
    try:
        fields = [int(text) for text in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _tree_s(root: int) -> float:
    """Of `root` and all that descend from it, those included that have ended and were waited for."""
    seconds, parents = {}, {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        seconds[pid] = sum(int(text) for text in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    tree, found = {root}, {root}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found} - tree
        tree |= found
    return sum(seconds.get(pid, 0.0) for pid in tree)
