"""The durable log's only way to the file system, so that tests can cut the power at any call.

One directory, flat names, owned by one process (an advisory lock is held while it is open). `OsDisk` is the real one.
Every error of the operating system is translated here: no room -> StorageFull, no such file -> ObjectMissing, anything
else -> StorageUnavailable.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from storage.errors import ObjectMissing, StorageUnavailable
from storage.files import disk_errors
from storage.lock_file import LockFile

LOCK_NAME = "lock"


class DiskFile(Protocol):
    """A file being written. Nothing is durable before `sync` has returned."""

    def write(self, data: memoryview, offset: int) -> int:
        """Writes at `offset` and returns how many bytes were taken, which may be fewer. Raises StorageError."""
        ...

    def sync(self) -> None:
        """Content and length are on the medium when this returns. Raises StorageError."""
        ...

    def truncate(self, length: int) -> None:
        """Cuts the file. Raises StorageError."""
        ...

    def close(self) -> None:
        """Releases the file, without syncing it."""
        ...


class Disk(Protocol):
    """One directory. A created name is durable only after `sync_dir`."""

    def names(self) -> list[str]:
        """Every file name, in no order."""
        ...

    def create(self, name: str) -> DiskFile:
        """A new, empty file. Raises StorageError, also when the name is taken."""
        ...

    def size(self, name: str) -> int:
        """Length in bytes. Raises ObjectMissing."""
        ...

    def read(self, name: str, start: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file. Raises ObjectMissing."""
        ...

    def truncate(self, name: str, length: int) -> None:
        """Cuts a file that nobody writes, durably. Raises StorageError."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Raises StorageError."""
        ...

    def remove(self, name: str) -> None:
        """A name that is not there is no error. Raises StorageError."""
        ...

    def sync_dir(self) -> None:
        """Created, renamed and removed names are on the medium when this returns. Raises StorageError."""
        ...


class OsDisk:
    """A directory of the local file system, mode 0700: prompts are private."""

    def __init__(self, directory: Path) -> None:
        """Creates the directory if needed and locks it.

        Raises StorageUnavailable, also when another process has it open: two writers would truncate each other.
        """
        self.directory = directory
        with _translated(str(directory)):
            _make_durably(directory)
            self._lock = LockFile(directory / LOCK_NAME)
            holder = self._lock.acquire()
        if holder is not None:
            raise StorageUnavailable(f"the log folder {directory} is in use by process {holder or 'unknown'}")

    def names(self) -> list[str]:
        with _translated(str(self.directory)):
            return os.listdir(self.directory)

    def create(self, name: str) -> "OsFile":
        with _translated(name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return OsFile(os.open(self.directory / name, flags, 0o600), name)

    def size(self, name: str) -> int:
        with _translated(name):
            return os.stat(self.directory / name).st_size

    def read(self, name: str, start: int, length: int) -> bytes:
        with _translated(name):
            fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                parts: list[bytes] = []
                while length > 0 and (part := os.pread(fd, length, start)):
                    parts.append(part)
                    start += len(part)
                    length -= len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
            finally:
                os.close(fd)

    def truncate(self, name: str, length: int) -> None:
        with _translated(name):
            fd = os.open(self.directory / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, length)
                _sync(fd)
            finally:
                os.close(fd)

    def rename(self, old: str, new: str) -> None:
        with _translated(old):
            os.rename(self.directory / old, self.directory / new)

    def remove(self, name: str) -> None:
        with _translated(name):
            (self.directory / name).unlink(missing_ok=True)

    def sync_dir(self) -> None:
        with _translated(str(self.directory)):
            _sync_directory(self.directory)

    def close(self) -> None:
        """Gives the directory back to other processes."""
        self._lock.release()


class OsFile:
    """An open file descriptor, written by position so that a repeated write cannot land twice."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    def write(self, data: memoryview, offset: int) -> int:
        with _translated(self._name):
            return os.pwrite(self._fd, data, offset)

    def sync(self) -> None:
        with _translated(self._name):
            _sync(self._fd)

    def truncate(self, length: int) -> None:
        with _translated(self._name):
            os.ftruncate(self._fd, length)

    def close(self) -> None:
        with _translated(self._name):
            os.close(self._fd)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
    else:
        os.fdatasync(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_durably(directory: Path) -> None:
    """mkdir -p whose new entries survive a power cut."""
    if directory.is_dir():
        return
    _make_durably(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(directory.parent)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    with disk_errors(what):
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(what) from error
