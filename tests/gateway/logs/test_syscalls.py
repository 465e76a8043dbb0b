"""The real writer on the real file system, killed or failed at every system call that it makes there (strace)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.logs.disk import OsDisk
from gateway.logs.segment import HEADER_BYTES, file_name, read_frames, read_seed, segment_id_of
from gateway.logs.writer import recover
from tests.gateway.logs.writing_child import write_groups

STRACE = shutil.which("strace")
ROOT = Path(__file__).parents[3]
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink")

pytestmark = pytest.mark.skipif(STRACE is None, reason="no strace here: the sweep over system calls DID NOT RUN")


def _run(folder: Path, inject: str) -> tuple[bool, list[int]]:
    """Whether the fault came, and the numbers acknowledged."""
    assert STRACE is not None
    trace = folder.with_suffix(".trace")
    strace = [
        STRACE,
        "-f",
        "-qq",
        "-o",
        str(trace),
        "-e",
        f"trace={inject.partition(':')[0]}",
        "-e",
        f"inject={inject}",
    ]
    command = [*strace, sys.executable, "-m", "tests.gateway.logs.writing_child", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if not trace.exists() or "ptrace" in done.stderr:
        pytest.skip("strace may not attach here: the sweep over system calls DID NOT RUN")
    came = "(INJECTED)" in trace.read_text() or "killed by SIGKILL" in trace.read_text()
    return came, [int(line) for line in done.stdout.split()]


def _records(folder: Path) -> list[int]:
    disk = OsDisk(folder)
    recover(disk)
    found: dict[int, None] = {}
    for segment_id in sorted(filter(None, map(segment_id_of, disk.names()))):
        seed, end, position = read_seed(disk, segment_id), disk.size(file_name(segment_id)), HEADER_BYTES
        while position < end:
            frames = read_frames(disk, segment_id, seed, position, end, max_bytes=1 << 20)
            if not frames.frames:
                break
            found.update({int(payload.split()[1]): None for _, payload in frames.frames})
            position = frames.next_offset
    disk.close()
    return list(found)


@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_any_system_call_may_be_the_last(tmp_path: Path, fault: str) -> None:
    num_faults = 0
    for name in CALLS:
        for call in range(1, 30):
            folder = tmp_path / f"{name}{call}"
            came, acked = _run(folder, f"{name}:{fault}:when={call}")
            later: list[int] = []
            write_groups(folder, range(100, 103), later.append)
            found = _records(folder)
            assert later == [100, 101, 102], (name, call)
            assert {*acked, *later} <= set(found) <= {*range(6), *later}, (name, call, acked, found)
            assert [one for one in found if one in acked] == acked
            if not came:
                assert acked == list(range(6))
                break
            num_faults += 1
        else:
            pytest.fail(f"{name}: no end of calls")
    assert num_faults >= 20
