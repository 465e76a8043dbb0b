"""What a deployment holds for itself alone while it serves: its data folder, a private folder for sockets, its port.

Each is a context: taken or refused with a sentence (`StartFailed`), and given back at the end.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.data_dir import DataDir
from storage.lock_file import LockFile

MAX_RUN_DIR_BYTES: Final = 80  # a Unix socket's path has 107 bytes at most


class StartFailed(Exception):
    """The deployment cannot start with these settings; a child's own message is already on standard error."""


@contextlib.contextmanager
def owned(data_dir: DataDir) -> Iterator[None]:
    """The data folder, private and locked: one deployment serves it. Raises StartFailed."""
    lock = LockFile(data_dir.serve_lock)
    try:
        data_dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        holder = lock.acquire()
    except OSError as error:
        raise StartFailed(
            f"data_dir = {str(data_dir.root)!r}: cannot be used ({error.strerror}); choose another with --data-dir"
        ) from error
    if holder is not None:
        raise StartFailed(f"{data_dir.root} is served by process {holder}; stop it or choose another --data-dir")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def private_folder(data_dir: DataDir) -> Iterator[Path]:
    """A private folder for sockets, empty: what a killed predecessor left is removed."""
    if len(os.fsencode(data_dir.run)) <= MAX_RUN_DIR_BYTES:
        shutil.rmtree(data_dir.run, ignore_errors=True)
        data_dir.run.mkdir(mode=0o700)
        try:
            yield data_dir.run
        finally:
            shutil.rmtree(data_dir.run, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory(prefix="lorikeet-") as folder:
            yield Path(folder)


def listen(host: str, port: int) -> socket.socket:
    """`::` means every address, those of IPv4 too. Raises StartFailed when the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise StartFailed(
            f"cannot listen on {host} port {port} ({_reason(error)}); choose "
            "another with --host and --port, or LORIKEET_SERVER__HOST and LORIKEET_SERVER__PORT"
        ) from error


def _reason(error: OSError) -> str:
    """In the system's words; those of a name that has no address come from the resolver, with numbers of its own."""
    if not error.errno or error.errno < 0:
        return str(error.strerror or error)
    return os.strerror(error.errno)
