"""The gateway process: `python -m gateway.process`, started by the supervisor.

The first line of standard input is its configuration; the pipe's end means that the parent is gone. Two faces are
served: the public one on the socket handed down, and the operator's on `admin.sock` in the data folder, which only
the owner of that folder can open.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
from starlette.types import ASGIApp

from gateway.admin import admin_app
from gateway.app import build_app
from gateway.data_dir import DataDir
from gateway.diagnostics import log_to_stderr
from gateway.errors import StorageUnavailable
from gateway.gateway_config import GatewayConfig
from gateway.http_protocol import GuardedHttpProtocol
from gateway.interruption import until_stdin_ends
from gateway.open_files import raise_limit
from gateway.settings import SettingsError
from storage.errors import StorageError

logger = logging.getLogger(__name__)


# A request makes some thousand objects and hardly any cycle: at Python's own 700 the collector takes 4 % of the time.
GC_THRESHOLD: Final = (20_000, 20, 20)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling (this process decides, and stops both faces together); says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


async def run(config: GatewayConfig, stop: asyncio.Event, lifeline: asyncio.Future[None]) -> None:
    """Serves until `stop` is set, then drains, unless `lifeline` is done: the runtimes are gone with the parent then.

    Raises what `build_app` says when a part cannot be opened.
    """
    settings = config.settings
    app = build_app(
        settings,
        runtime_sockets={model: Path(path) for model, path in config.runtimes.items()},
        runtime_token=config.runtime_token,
        encoder_sockets=config.encoders,
    )
    listener = socket.socket(fileno=config.listen_fd)
    # The lifespan is entered here and not by uvicorn, which would turn a typed error into a logged traceback.
    async with app.router.lifespan_context(app):
        public = _server(app, settings.server.drain_s)
        admin = _server(admin_app(app.state.services), 1.0)
        with _admin_socket(DataDir(Path(settings.data_dir)).admin_socket) as admin_listener:
            async with asyncio.TaskGroup() as group:
                group.create_task(public.serve(sockets=[listener]))
                group.create_task(admin.serve(sockets=[admin_listener]))
                await public.up.wait()
                await admin.up.wait()
                # What is open now stays: without this a full collection stops the loop for some 100 ms under load.
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLD)
                with contextlib.suppress(BrokenPipeError):  # the parent is gone; the lifeline says so too
                    print("ready", flush=True)
                await stop.wait()
                public.should_exit = admin.should_exit = True
                public.force_exit = admin.force_exit = lifeline.done()
                # What still runs then is told so and logged; uvicorn, a second later, would just cut it off.
                end = asyncio.get_running_loop().call_later(settings.server.drain_s, app.state.services.hang_up)
            end.cancel()


def _server(app: ASGIApp, drain_s: float) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            loop="none",
            http=GuardedHttpProtocol,
            ws="none",  # whatever else is installed: nothing here speaks it
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks where a caller is, and headers that say so can be made up
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_s) + 1,
        )
    )


@contextlib.contextmanager
def _admin_socket(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that only this user can open; a stale one from a killed process is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise SettingsError(
            f"data_dir = {str(path.parent)!r}: no socket can be made in it ({error}); a "
            "socket's whole path has 107 bytes at most, and the folder must be on a file system that has sockets"
        ) from error
    finally:
        os.umask(before)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def main() -> None:
    """Reads the configuration and serves; exit code 78 (EX_CONFIG) when it cannot be used."""
    log_to_stderr(logging.INFO)
    raise_limit()
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=GatewayConfig)

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        lifeline = asyncio.ensure_future(until_stdin_ends())
        lifeline.add_done_callback(lambda _: stop.set())
        await run(config, stop, lifeline)

    import uvloop

    try:
        uvloop.run(serve())
    except (SettingsError, StorageError, StorageUnavailable) as error:
        print(f"lorikeet gateway: {error}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG) from None


if __name__ == "__main__":
    main()
