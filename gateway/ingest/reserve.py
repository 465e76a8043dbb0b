"""Room set aside on the gateway's disk, so that a full one can be emptied through the gateway itself.

Removing an adapter takes a little room before it gives any back: the note of what is to go, and the database's commit.
A removal that finds the disk full gets this file's room, runs once more, and the file is made again out of what was
freed. Removals only: an upload that finds the disk full is refused.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from storage.errors import StorageFull
from storage.threads import finish

T = TypeVar("T")

RESERVE_BYTES: Final = 4 * 1024**2
LEAST_BYTES: Final = 64 * 1024


class Reserve:
    """State: the file at `path`, there or given away. `make` before serving."""

    def __init__(self, path: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self._path, self._size_bytes = path, size_bytes

    async def make(self) -> bool:
        """Sets the room aside, unless that is done; False when there is none."""
        return await finish(asyncio.to_thread(self._make))

    async def even_if_full(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is begun anew with this room when it meets a full disk."""
        try:
            return await work()
        except StorageFull:
            if not await finish(asyncio.to_thread(self._give)):
                raise
        try:
            return await work()
        finally:
            await self.make()

    def _make(self) -> bool:
        """All of it, or as large a part as there is room for."""
        size_bytes = self._size_bytes
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while size_bytes >= LEAST_BYTES:
                    with suppress(OSError):
                        os.posix_fallocate(fd, 0, size_bytes)
                        return True
                    os.ftruncate(fd, 0)
                    size_bytes //= 2
            finally:
                os.close(fd)
        return False

    def _give(self) -> bool:
        with suppress(OSError):
            given = self._path.stat().st_size > 0
            self._path.unlink()
            return given
        return False
