"""Starts `lorikeet serve` in a temporary data folder, and makes sure afterwards that nothing of it is left."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True)
class Served:
    """A running deployment: its address, its data folder and its processes by name."""

    url: str
    data_dir: Path
    processes: dict[str, int]


@contextlib.asynccontextmanager
async def serve(data_dir: Path) -> AsyncIterator[Served]:
    """`lorikeet serve` on a free port. Raises DemoFailed when it does not come up or does not go away."""
    process = await asyncio.create_subprocess_exec(
        *command("serve", "--port", "0", "--data-dir", str(data_dir), "--json", "--follow-stdin"),
        stdin=asyncio.subprocess.PIPE,  # a lifeline: should this process be killed, its end stops the deployment
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    served: Served | None = None
    try:
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
            ready = json.loads(line)
        except (TimeoutError, ValueError) as error:
            raise DemoFailed("lorikeet serve did not start; its message is above") from error
        served = Served(ready["url"], data_dir, ready["processes"])
        yield served
    finally:
        await _stop(process)
    left = [f"{name} ({pid})" for name, pid in served.processes.items() if _alive(pid)]
    if left:
        raise DemoFailed(f"still running after the stop: {', '.join(left)}")


def command(*arguments: str) -> list[str]:
    """argv of the `lorikeet` command with this interpreter."""
    return [sys.executable, "-m", "gateway.cli", *arguments]


async def run_command(data_dir: Path, *arguments: str) -> dict[str, str]:
    """Runs a `lorikeet` command with --json beside the running deployment; its JSON. Raises DemoFailed."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments, "--data-dir", str(data_dir), "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise DemoFailed(f"lorikeet {' '.join(arguments)}: {err.decode().strip()}")
    result: dict[str, str] = json.loads(out)
    return result


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
