"""One process at a time: a locked file that says who holds it.

The lock is flock's, so it ends with its process however that ends; a file left behind by a crash locks nobody out.
The file itself is never removed: removing it would let two processes lock two different files of one name.
"""

import fcntl
import os
from pathlib import Path


class LockFile:
    """Locked from `acquire` to `release`. Both block shortly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> int | None:
        """None when the lock is ours now, else its holder's process id (0 when not yet said). Raises OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).strip()
            os.close(fd)
            return int(text) if text.isdigit() else 0
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return None

    def release(self) -> None:
        """Gives the lock back; without one it does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
