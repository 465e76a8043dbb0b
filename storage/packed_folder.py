"""The disk tier's folder, which several processes may share: every piece of file work on it, blocking.

    directory/.lock          locked (flock) while somebody decides; holds a number that every change raises
    directory/.incoming/     files in the making, each locked by its writer
    directory/claims/        one file per digest that is on its way down, locked by whoever brings it
    directory/packed/<sha256 of the file>
    directory/quarantine/    the last few files that were not what their name says

The folder itself is the truth: a process whose number is old looks again at what is there. Nobody's unlink is felt by a
reader that has the file open, and a file that is held (shared flock) by any process is not evicted by another. All of
it ends with its process, however that ends. One thread at a time; descriptors are kept here, so that a caller who is
cancelled while a thread works loses none.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from storage.files import NewFile, sweep

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STATE: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
MAX_QUARANTINED: Final = 4
LOCK_WAIT_S: Final = 5.0
_LOCK_TURN_S: Final = 0.002


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hex, the only thing that becomes a file name here."""
    return _DIGEST.fullmatch(text) is not None


class Listing(NamedTuple):
    """What is there: (digest, bytes) from the one used longest ago, and the bytes of files in the making."""

    files: list[tuple[str, int]]
    incoming_bytes: int


class PackedFolder:
    """`lock`, then what decides or changes, then `unlock`. `hold`, `claim` and their ends need no lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = directory / "packed"
        self._incoming = directory / ".incoming"
        self._claims = directory / "claims"
        self._quarantine = directory / "quarantine"
        self._lock_fd = -1
        self._locked = False
        self._seen = -1
        self._doubtful = False
        self._held: dict[str, int] = {}
        self._claimed: dict[str, int] = {}

    def open(self) -> None:
        """Makes the folders, and tidies what the dead have left. Raises OSError."""
        for folder in (self._directory, self._files, self._incoming, self._claims, self._quarantine):
            folder.mkdir(mode=0o700, parents=folder == self._directory, exist_ok=True)
        self._lock_fd = os.open(self._directory / ".lock", _STATE, 0o600)
        sweep(self._claims)  # of processes that were killed

    def close(self) -> None:
        """Lets go of everything."""
        for fd in (*self._held.values(), *self._claimed.values(), self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._held.clear()
        self._claimed.clear()
        self._lock_fd, self._locked = -1, False

    def changed(self) -> bool:
        """Whether another process has changed something since the last `lock`. Raises OSError."""
        return self._number() != self._seen

    def lock(self, *, to_change: bool) -> Listing | None:
        """Waits for the folder. What is there, unless that is known already. Raises OSError, also when whoever has
        it does not come to an end.
        """
        self._wait_for_lock()
        number = self._number()
        # Taken back first: a doubt that comes while we look is for the next time.
        doubtful, self._doubtful = self._doubtful, False
        listing = None if number == self._seen and not doubtful else self._scan()
        if to_change:
            # Before the change: should this process die half-way, the others look again.
            number += 1
            os.pwrite(self._lock_fd, b"%020d\n" % number, 0)
        self._seen = number
        return listing

    def look_again(self) -> None:
        """The next `lock` lists what is there, whatever the number says. From any thread, with or without the lock."""
        self._doubtful = True

    def unlock(self) -> None:
        """Without the lock it does nothing."""
        if self._locked:
            self._locked = False
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def new_file(self) -> NewFile:
        """A file in the making, not yet open."""
        return NewFile(self._incoming)

    def evict(self, digests: Iterable[str]) -> list[str]:
        """Removes files; returns those that stay because another process holds them, or the system refuses."""
        return [digest for digest in digests if not self._evict(digest)]

    def is_held_elsewhere(self, digest: str) -> bool:
        """Whether another process keeps the file."""
        with suppress(OSError):
            fd = os.open(self._files / digest, _OPEN)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
        return False

    def publish(self, file: NewFile, digest: str) -> None:
        """Raises OSError."""
        self._publish(file, digest, self._files)

    def remove(self, digest: str) -> bool:
        """Removes a file whoever holds it; False when the system refuses."""
        try:
            (self._files / digest).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def put_aside(self, digest: str) -> bool:
        """Moves a bad file where somebody can look at it. False when nothing could be done."""
        try:
            os.rename(self._files / digest, self._quarantine / _dated(digest))
            self._forget_oldest()
        except FileNotFoundError:
            return True
        except OSError:
            return self.remove(digest)
        return True

    def put_new_aside(self, file: NewFile, digest: str) -> None:
        """The same with a file in the making. Raises OSError."""
        self._publish(file, _dated(digest), self._quarantine)
        self._forget_oldest()

    def hold(self, digest: str) -> bool:
        """Keeps the file open, and from other processes' eviction, until `let_go`. False if there is none, or another
        process looks at this very moment whether it may evict it: the file may still be there then.
        """
        if digest in self._held:
            return True
        try:
            fd = os.open(self._files / digest, _OPEN)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(fd)
            if status.st_nlink and stat.S_ISREG(status.st_mode):
                self._held[digest] = fd
                return True
        except OSError:
            pass  # it is being evicted just now
        os.close(fd)
        return False

    def descriptor(self, digest: str) -> int | None:
        """Of a held file."""
        return self._held.get(digest)

    def let_go(self, digest: str) -> None:
        """The end of `hold`; without one it does nothing."""
        fd = self._held.pop(digest, -1)
        if fd >= 0:
            os.close(fd)

    def claim(self, digest: str) -> bool:
        """True when this process is the one that brings the file, until `unclaim`. Raises OSError."""
        path = self._claims / digest
        while True:
            fd = os.open(path, _STATE, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            if os.fstat(fd).st_nlink:
                self._claimed[digest] = fd
                return True
            os.close(fd)  # its owner ended between our open and our lock

    def unclaim(self, digest: str) -> None:
        """The file is there, or will not be. Without a claim it does nothing."""
        fd = self._claimed.pop(digest, -1)
        if fd >= 0:
            with suppress(OSError):
                (self._claims / digest).unlink(missing_ok=True)
            os.close(fd)

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another process has had the folder for too long") from None
                time.sleep(_LOCK_TURN_S)
            else:
                self._locked = True
                return

    def _number(self) -> int:
        text = os.pread(self._lock_fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0

    def _scan(self) -> Listing:
        sweep(self._incoming)
        found = []
        for entry in list(os.scandir(self._files)):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if is_digest(entry.name) and stat.S_ISREG(status.st_mode) and status.st_size:
                    found.append((status.st_mtime_ns, entry.name, status.st_size))
                elif not stat.S_ISDIR(status.st_mode):
                    os.unlink(entry.path)
        incoming = 0
        for entry in list(os.scandir(self._incoming)):
            with suppress(FileNotFoundError):
                incoming += entry.stat(follow_symlinks=False).st_size
        return Listing([(digest, size_bytes) for _, digest, size_bytes in sorted(found)], incoming)

    def _evict(self, digest: str) -> bool:
        try:
            fd = os.open(self._files / digest, _OPEN)
        except FileNotFoundError:
            return True
        except OSError:
            return self.remove(digest)  # a link, or what else is no file of ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return self.remove(digest)
        finally:
            os.close(fd)

    def _publish(self, file: NewFile, name: str, where: Path) -> None:
        folder = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file.publish(name, folder)
        finally:
            os.close(folder)

    def _forget_oldest(self) -> None:
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.name.rpartition(".")[2])
        for path in kept[:-MAX_QUARANTINED]:
            path.unlink(missing_ok=True)


def _dated(digest: str) -> str:
    return f"{digest}.{time.time_ns():020d}"
