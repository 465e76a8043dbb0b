"""Threads at barriers: everything is done once, and nothing of the next operation before the last is over."""

from typing import Any

import numpy as np
import pytest

from kernels.cpu.compiling import compiled
from kernels.cpu.team import Team, barrier, take


@compiled
def rounds(control: int, threads: int, thread: int, done: Any, seen: Any) -> None:
    """Each round adds 1 to every place, and then notes the sum of all places, which must be complete."""
    for number in range(len(seen)):
        while True:
            first = take(control, 3)
            if first >= len(done):
                break
            for place in range(first, min(first + 3, len(done))):
                done[place] += 1
        barrier(control, threads)
        if thread == number % threads:
            seen[number] = done.sum()
        barrier(control, threads)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_operations_follow_one_another(size: int) -> None:
    team = Team(size)
    done, seen = np.zeros(101, np.int64), np.zeros(300, np.int64)
    control = team.control.ctypes.data
    rounds(control, 1, 0, np.zeros(0, np.int64), np.zeros(1, np.int64))  # compiled before threads meet
    for _ in range(3):
        done[:], seen[:] = 0, 0
        team.run(lambda thread: rounds(control, size, thread, done, seen))
        assert done.tolist() == [300] * 101
        assert seen.tolist() == [101 * (number + 1) for number in range(300)]
    team.close()
    assert not any(thread.is_alive() for thread in team._threads)
