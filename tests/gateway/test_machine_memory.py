"""The limits of containers, as Linux writes them."""

import os
from pathlib import Path

import pytest

from gateway.machine_memory import machine_bytes

MIB = 1024**2
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": f"{256 * MIB}\n"}, 256 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{128 * MIB}\n"}, 128 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{64 * MIB}\n", "a/memory.max": f"{128 * MIB}\n"}, 64 * MIB),
        ("0::/../elsewhere\n", {"memory.max": f"{96 * MIB}\n"}, 96 * MIB),
        ("3:memory:/docker/x\n0::/\n", {"memory/memory.limit_in_bytes": f"{80 * MIB}\n"}, 80 * MIB),
        ("3:cpu,memory:/x\n", {"memory/x/memory.limit_in_bytes": f"{72 * MIB}\n"}, 72 * MIB),
        ("3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
        ("3:memory:/\n0::/u\n", {"unified/u/memory.max": f"{48 * MIB}\n"}, 48 * MIB),
        ("0::/\n", {"memory.max": "max\n"}, PHYSICAL),
        ("0::/\n", {}, PHYSICAL),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    (tmp_path / "cgroup").write_text(groups)
    assert machine_bytes(tmp_path / "cgroup", tmp_path / "fs") == expected


def test_without_cgroups_it_is_the_machine(tmp_path: Path) -> None:
    assert machine_bytes(tmp_path / "none", tmp_path) == PHYSICAL
    assert 0 < machine_bytes() <= PHYSICAL
