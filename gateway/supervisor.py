"""`lorikeet serve`: one parent, one gateway process, one runtime process per base, one process per encoder.

The parent binds the listening socket and hands it down, so a restarting gateway loses no connection attempt. Every
child gets its configuration (with the secrets) as the first line of standard input, never in argv or environment, and
the pipe stays open as a lifeline: whoever reads its end knows that the parent is gone and leaves too. A child says
"ready" on standard output. A dead child is started again with a growing pause; a child that fails before it was ever
ready, with the exit code of a configuration error, ends the whole.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.data_dir import DataDir
from gateway.gateway_config import GatewayConfig
from gateway.machine_memory import machine_bytes
from gateway.memory_budget import MemoryExceeded, RuntimeMemory, plan_memory
from gateway.runtime_address import RuntimeAddress
from gateway.runtime_config import encoder_config, runtime_config
from gateway.serving_places import StartFailed as StartFailed
from gateway.serving_places import listen, owned, private_folder
from gateway.settings import Settings, inherited_environ
from runtime.errors import ModelInvalid

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
HEALTHY_AFTER_S = 30.0
LIVENESS_S = 3.0  # between two looks at the gateway, and how long one look may take
MAX_MISSED = 4
MAX_LINE_BYTES = 1024 * 1024


@dataclass
class Child:
    """One supervised process: argv, the line for its standard input, and how it fared."""

    name: str
    argv: list[str]
    config: bytes
    pass_fds: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    was_ready: bool = False
    starts: int = 0


@dataclass(frozen=True)
class Stack:
    """What runs: the address and the children, the gateway first."""

    url: str
    gateway: Child
    runtimes: dict[str, Child]
    memory: dict[str, RuntimeMemory]
    encoders: dict[str, Child] = field(default_factory=dict)

    @property
    def children(self) -> tuple[Child, ...]:
        """Every child, the gateway first: the order in which they are stopped."""
        return (self.gateway, *self.runtimes.values(), *self.encoders.values())


@contextlib.asynccontextmanager
async def run_stack(
    settings: Settings, folders: dict[str, Path], say: Callable[[str], None] = logger.info
) -> AsyncIterator[Stack]:
    """Starts everything, yields when all are ready, and leaves nothing running.

    `folders` maps the catalogue name of each base whose runtime is started here to its folder; `say` is told how the
    children get on. Raises StartFailed, also later, out of the body, when a child that was restarted cannot start any
    more.
    """
    data_dir = DataDir(Path(settings.data_dir))
    memory = await asyncio.to_thread(_planned_memory, settings, folders)
    with (
        owned(data_dir),
        private_folder(data_dir) as run_dir,
        listen(settings.server.host, settings.server.port) as listener,
    ):
        token = secrets.token_hex(32)
        sockets = {model: run_dir / f"runtime-{index}.sock" for index, model in enumerate(folders)}
        runtimes = {
            model: Child(
                name=f"runtime {model}",
                argv=[sys.executable, "-m", "runtime"],
                config=runtime_config(
                    settings, model, folder, memory[model], RuntimeAddress(str(sockets[model])), token
                ).to_json(),
            )
            for model, folder in folders.items()
        }
        encoder_sockets = {name: run_dir / f"encoder-{index}.sock" for index, name in enumerate(settings.encoders)}
        encoders = {
            name: Child(
                name=f"encoder {name}",
                argv=[sys.executable, "-m", "runtime.encoder"],
                config=msgspec.json.encode(encoder_config(settings, name, encoder_sockets[name], token)),
            )
            for name in settings.encoders
        }
        gateway_config = GatewayConfig(
            settings=settings,
            encoders={name: str(path) for name, path in encoder_sockets.items()},
            listen_fd=listener.fileno(),
            runtimes={model: str(path) for model, path in sockets.items()},
            runtime_token=token,
        )
        gateway = Child(
            name="gateway",
            argv=[sys.executable, "-m", "gateway.process"],
            config=msgspec.json.encode(gateway_config),
            pass_fds=(listener.fileno(),),
        )
        host, port = listener.getsockname()[:2]
        stack = Stack(f"http://{f'[{host}]' if ':' in host else host}:{port}", gateway, runtimes, memory, encoders)
        async with _supervised(stack, data_dir, settings.server.drain_s, say):
            try:
                yield stack
            finally:
                # Newcomers are refused while the gateway drains; they would wait in this socket's queue for nobody.
                listener.close()


def _planned_memory(settings: Settings, folders: dict[str, Path]) -> dict[str, RuntimeMemory]:
    """Raises StartFailed when the parts do not fit into the machine together, or a folder holds no weights."""
    try:
        memory = plan_memory(settings, folders, machine_bytes())
    except (MemoryExceeded, ModelInvalid) as error:
        raise StartFailed(str(error)) from error
    for model, part in memory.items():
        logger.info("memory of runtime %s: %s", model, part)
    return memory


@contextlib.asynccontextmanager
async def _supervised(
    stack: Stack, data_dir: DataDir, drain_s: float, say: Callable[[str], None]
) -> AsyncIterator[None]:
    stopping, watcher = asyncio.Event(), None
    try:
        async with asyncio.TaskGroup() as group:
            for child in stack.children:
                group.create_task(_keep(child, stopping, say))
            try:
                for child in stack.children:
                    await child.ready.wait()
                watcher = group.create_task(_replace_hung(stack.gateway, data_dir.admin_socket))
                yield
            finally:
                stopping.set()
                if watcher is not None:
                    watcher.cancel()
                # The gateway first: it drains its requests while the runtimes still answer.
                for child in stack.children:
                    await _stop(child, drain_s)
    except* StartFailed as failures:
        raise StartFailed(str(failures.exceptions[0])) from None


async def _keep(child: Child, stopping: asyncio.Event, say: Callable[[str], None]) -> None:
    """Starts the child again and again until `stopping`."""
    loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_S
    while not stopping.is_set():
        began = loop.time()
        code = await _run_once(child, say)
        if stopping.is_set():
            return
        if code == os.EX_CONFIG and not child.was_ready:
            raise StartFailed(f"{child.name} cannot start with these settings (see its message above)")
        if not child.was_ready and child.starts >= 5:
            raise StartFailed(f"{child.name} failed {child.starts} times before it was ready; exit code {code}")
        pause = FIRST_PAUSE_S if loop.time() - began > HEALTHY_AFTER_S else pause
        logger.warning("%s ended with code %s; starting it again in %.1f s", child.name, code, pause)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


async def _replace_hung(gateway: Child, admin_socket: Path) -> None:
    """Kills a gateway that does not answer, so that `_keep` starts another. (It does the same for its runtimes.)

    It is asked on the operator's socket, which no stranger can crowd.
    """
    missed = 0
    while True:
        await asyncio.sleep(LIVENESS_S)
        answers = not gateway.ready.is_set() or await _answers(admin_socket)
        missed = 0 if answers else missed + 1
        if missed >= MAX_MISSED and gateway.process is not None:
            logger.error("the gateway (pid %d) does not answer: killed, so that it is replaced", gateway.process.pid)
            gateway.process.kill()
            missed = 0


async def _answers(path: Path) -> bool:
    try:
        async with asyncio.timeout(LIVENESS_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).startswith(b"HTTP/1.1 ")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _run_once(child: Child, say: Callable[[str], None]) -> int:
    child.starts += 1
    process = await asyncio.create_subprocess_exec(
        *child.argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=child.pass_fds,
        env=inherited_environ(),
        limit=MAX_LINE_BYTES,
        # A Ctrl-C in the terminal reaches the parent only, which then stops the children in order.
        start_new_session=True,
    )
    child.process = process
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(child.config + b"\n")
            await process.stdin.drain()
        async for line in process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            if text == "ready":
                child.was_ready = True
                child.ready.set()
            elif text:
                say(text)
        return await process.wait()
    finally:
        child.ready.clear()
        if process.returncode is None:
            process.kill()
            await process.wait()
        child.process = None


async def _stop(child: Child, drain_s: float) -> None:
    """SIGTERM, time to drain, then SIGKILL."""
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), drain_s + 2.0)
        except TimeoutError:
            logger.warning("%s did not stop within %.0f s; killed", child.name, drain_s + 2.0)
            process.kill()
            await process.wait()
