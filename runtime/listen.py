"""The listening socket of a runtime: a private Unix socket, or TCP for gateways on other machines."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.config import RuntimeConfig
from runtime.errors import ConfigInvalid


@contextlib.contextmanager
def bind(config: RuntimeConfig) -> Iterator[socket.socket]:
    """The bound socket; its file is gone afterwards. Raises ConfigInvalid when the address cannot be used."""
    if not config.socket_path:
        yield _tcp(config.host, config.port)
        return
    path = Path(config.socket_path)
    listener = _unix(path)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _unix(path: Path) -> socket.socket:
    """In a folder that only we may enter, with a file that only we may open; the leftover of a crash is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_leftover(path)
        # The mode must be right from the first moment, so it cannot be set after the file is there.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        raise ConfigInvalid(f"socket_path = {str(path)!r} cannot be used: {error.strerror or error}") from error
    return listener


def _remove_leftover(path: Path) -> None:
    """Raises OSError when something else, or a runtime that lives, has this path."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "it exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(0, "another runtime listens there")
