"""An encoder's process, as the supervisor starts it."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from runtime.encoder.config import EncoderConfig, Task

TOKEN = "t"


@contextlib.asynccontextmanager
async def encoder_child(
    folder: Path, name: str = "m", task: Task = "embed", *, code: str | None = None
) -> AsyncIterator[tuple[Process, str]]:
    """Ready: the process and the path of its socket. `code` runs instead of the module; its end is not looked at."""
    socket_path = str(folder / "encoder.sock")
    arguments = ("-m", "runtime.encoder") if code is None else ("-c", code)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    config = EncoderConfig(model=name, model_folder=str(folder), task=task, socket_path=socket_path, token=TOKEN)
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield process, socket_path
    finally:
        if process.returncode is None:
            process.terminate() if code is None else process.kill()
        status = await process.wait()
        assert status == 0 or code is not None
        process.stdin.close()
