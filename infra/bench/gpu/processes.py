"""A process that may hang or take the device down with it: it has a group of its own and a time at which it ends.

Processes that start others this way call `ends_with_children` first: whoever ends them reaches only their own group.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
# Between asking a group to end and ending it.
MERCY_S: Final = 3.0
_running: Final = set[int]()


def run(words: Sequence[str], limit_s: float, log: Path, environment: Mapping[str, str] | None = None) -> str:
    """Returns how it ended badly, empty if it did not. What it says is in `log`; none of its group is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        _running.add(process.pid)
        try:
            code = process.wait(limit_s)
            note = "" if code == 0 else f"ended with {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            note = f"was stopped after {limit_s:.0f} s"
        finally:
            _end(process)
            _running.discard(process.pid)
    return note


def ends_with_children() -> None:
    """From now on SIGTERM ends the groups of all processes that `run` has started, and then this one."""

    def end(number: int, frame: object) -> None:
        for pid in list(_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def environment_for(device: str) -> dict[str, str]:
    """Ours, with kernels interpreted if and only if the device is a CPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return environment if device == "cuda" else {**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


def last_line(log: Path) -> str:
    """What it said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "without a word"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The whole group: a benchmark's children hold the device's memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(MERCY_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The device's memory is free when the last of them is gone.
    end = time.monotonic() + MERCY_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
