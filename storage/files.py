"""Files that are there whole or not at all: a temporary file, its bytes on disk, a rename, the folder on disk.

Everything here blocks and belongs in a thread. A temporary file is locked (flock) by its writer for as long as it is
written, so `sweep` tells the orphans of a crash from the work of another process without asking for process ids.
Errors of the operating system become those of `storage.errors` here.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from storage.errors import StorageFull, StorageUnavailable

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """OSError becomes StorageFull or StorageUnavailable with `what` (a few words for the operator) in front."""
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror or error}"
        raise (StorageFull if error.errno in FULL else StorageUnavailable)(reason) from error


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Writes every byte; the system may take fewer at a time than it is given. Raises OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        taken = os.write(fd, rest)
        if taken == 0:
            raise OSError(errno.ENOSPC, "the file takes no more bytes")
        rest = rest[taken:]


def sync_folder(fd: int) -> None:
    """Puts the names in an open folder on disk, so that a rename or a removal outlives a power cut. Raises OSError."""
    os.fsync(fd)


class NewFile:
    """A file in the making, in `folder`. One thread at a time: open, write.., publish; `discard` at any moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._fd = -1

    def open(self, size_bytes: int = 0) -> None:
        """Makes the file, with room for `size_bytes` set aside at once. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            self._path = self._folder / secrets.token_hex(16)
            self._fd = os.open(self._path, _NEW, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # a sweep got in between; it removes the file
            else:
                if os.fstat(self._fd).st_nlink:
                    break
            os.close(self._fd)
        if size_bytes:
            os.posix_fallocate(self._fd, 0, size_bytes)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends. Raises OSError."""
        write_all(self._fd, data)

    def sync(self) -> None:
        """Puts the bytes on disk: `publish` is quick then. Raises OSError."""
        os.fsync(self._fd)

    def publish(self, name: str, folder_fd: int) -> None:
        """Puts the bytes on disk, gives the file its name in an open folder, puts the name on disk. Raises OSError.

        Safe to call again after FileNotFoundError (the folder went away). If only the last step fails, the file is
        visible but may be gone after a power cut.
        """
        assert self._path is not None
        os.fsync(self._fd)
        os.rename(self._path, name, dst_dir_fd=folder_fd)
        self._path = None
        sync_folder(folder_fd)
        self.discard()

    def discard(self) -> None:
        """Closes the file and, if it was not published, removes it. Never raises for a file that is gone."""
        try:
            if self._path is not None:
                with suppress(FileNotFoundError):
                    self._path.unlink()
                self._path = None
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def sweep(folder: Path) -> int:
    """Removes temporary files whose writer is dead and returns how many. Raises OSError."""
    removed = 0
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            with suppress(FileNotFoundError, BlockingIOError):
                removed += _remove_orphan(entry.path)
    return removed


def _remove_orphan(path: str) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    finally:
        os.close(fd)
