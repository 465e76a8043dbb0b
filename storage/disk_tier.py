"""The disk tier: whole packed files in one folder, within a byte budget; a restart finds them again.

    directory/.lock         held by the one process that counts this budget
    directory/.incoming/    files in the making
    directory/packed/<sha256 of the file>

A name is a promise: the SHA-256 is checked while a file is written and again on every read, so a flipped bit is found
before it is served. Unlinks and renames go through one thread in the order they were decided, so the removal of a
victim cannot hit a newer file of the same name.
"""

import hashlib
import os
import re
import stat
from collections.abc import AsyncIterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from storage.errors import ObjectCorrupt, StorageUnavailable
from storage.files import NewFile, disk_errors, sweep
from storage.ledger import Ledger
from storage.lock_file import LockFile
from storage.threads import Threads

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STEP_BYTES: Final = 4 * 1024 * 1024
_THREADS: Final = 4


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hex, the only thing that becomes a file name here."""
    return _DIGEST.fullmatch(text) is not None


class DiskTier:
    """Files are pinned by whoever reads them; `write` and `pin` give one pin, `unpin` takes it back."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.ledger = Ledger(max_bytes)
        self.refused = 0  # files that found no room: all of it in use, or the disk is full or failing
        self.failures = 0  # removals that the system refused
        self._directory = directory
        self._files = directory / "packed"
        self._incoming = directory / ".incoming"
        self._lock = LockFile(directory / ".lock")
        self._threads = Threads(_THREADS, "adapter-disk")
        self._names = Threads(1, "adapter-names")

    async def open(self) -> None:
        """Counts what an earlier run left, oldest use first, and removes what is no packed file.

        Raises StorageUnavailable when another process uses the folder or it cannot be used, StorageFull.
        """
        try:
            with disk_errors(f"adapter folder {self._directory}"):
                found = await self._names.run(self._scan)
        except BaseException:
            self._lock.release()
            raise
        victims = []
        for digest, size_bytes in found:
            evicted = self.ledger.add(digest, size_bytes)
            victims += [digest] if evicted is None else evicted  # None: larger than a budget that has shrunk
            if evicted is not None:
                self.ledger.unpin(digest)
        await self._unlink(victims)

    def __contains__(self, digest: str) -> bool:
        return digest in self.ledger

    def pin(self, digest: str) -> bool:
        """Keeps a file from eviction; False when there is none."""
        if digest not in self.ledger:
            return False
        self.ledger.pin(digest)
        return True

    async def unpin(self, digest: str) -> None:
        """One user fewer."""
        if self.ledger.unpin(digest):
            await self._unlink([digest])

    async def doom(self, digest: str) -> None:
        """The file goes with its last user, or now if it has none."""
        if self.ledger.doom(digest):
            await self._unlink([digest])

    async def write(self, digest: str, size_bytes: int, data: AsyncIterable[bytes]) -> bool:
        """Stores a stream of exactly `size_bytes` under its digest, pinned once.

        False when the disk cannot take it; then the stream may have been read in part. Raises ObjectCorrupt when the
        bytes have another digest, and whatever the stream raises; then nothing is kept.
        """
        victims = self.ledger.add(digest, size_bytes)
        if victims is None:
            self.refused += 1
            return False
        file, sha = NewFile(self._incoming), hashlib.sha256()
        kept = False
        try:
            await self._unlink(victims)
            kept = await self._fill(file, digest, size_bytes, sha, data)
        finally:
            if not kept:
                self.ledger.remove(digest)
                failures = await self._names.run(self._give_up, file, digest)
                self.failures += failures
        self.refused += not kept
        return kept

    async def read(self, digest: str) -> memoryview:
        """The whole file, verified. Raises ObjectCorrupt, StorageUnavailable; then the file should be dropped."""
        with disk_errors(f"adapter {digest} on disk"):
            return await self._threads.run(self._read, digest, self.ledger.size(digest))

    async def drop(self, digest: str) -> None:
        """Forgets and removes a file that turned out bad, in spite of its users."""
        self.ledger.remove(digest)
        await self._unlink([digest])

    async def aclose(self) -> None:
        """Ends the threads and lets the next process in. The files stay."""
        await self._threads.aclose()
        await self._names.aclose()
        self._lock.release()

    async def _fill(self, file: NewFile, digest: str, size_bytes: int, sha: Any, data: AsyncIterable[bytes]) -> bool:
        try:
            await self._threads.run(file.open, size_bytes)
        except OSError:
            return False
        async for chunk in data:
            try:
                await self._threads.run(_append, file, sha, chunk)
            except OSError:
                return False
        if sha.hexdigest() != digest:
            raise ObjectCorrupt(f"adapter {digest}: the object store gave bytes with digest {sha.hexdigest()}")
        try:
            await self._names.run(self._publish, file, digest)
        except OSError:
            return False
        return True

    async def _unlink(self, digests: list[str]) -> None:
        if digests:
            failures = await self._names.run(self._remove, digests)
            self.failures += failures

    def _scan(self) -> list[tuple[str, int]]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.mkdir(mode=0o700, exist_ok=True)
        holder = self._lock.acquire()
        if holder is not None:
            raise StorageUnavailable(
                f"adapter folder {self._directory} is in use by process {holder or 'unknown'}; "
                "stop that process, or give this one another folder"
            )
        sweep(self._incoming)
        found = []
        for entry in list(os.scandir(self._files)):
            status = entry.stat(follow_symlinks=False)
            if is_digest(entry.name) and stat.S_ISREG(status.st_mode) and status.st_size:
                found.append((status.st_mtime_ns, entry.name, status.st_size))
            elif not stat.S_ISDIR(status.st_mode):
                os.unlink(entry.path)
        return [(digest, size_bytes) for _, digest, size_bytes in sorted(found)]

    def _publish(self, file: NewFile, digest: str) -> None:
        folder = os.open(self._files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file.publish(digest, folder)
        finally:
            os.close(folder)

    def _read(self, digest: str, size_bytes: int) -> memoryview:
        fd = os.open(self._files / digest, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
                raise ObjectCorrupt(f"adapter {digest} on disk has {status.st_size} bytes instead of {size_bytes}")
            data, sha, filled = memoryview(bytearray(size_bytes)), hashlib.sha256(), 0
            while filled < size_bytes:
                step = os.preadv(fd, [data[filled : filled + _STEP_BYTES]], filled)
                if not step:
                    raise ObjectCorrupt(f"adapter {digest} on disk became shorter")
                sha.update(data[filled : filled + step])
                filled += step
            if sha.hexdigest() != digest:
                raise ObjectCorrupt(f"adapter {digest} on disk has digest {sha.hexdigest()}")
            with suppress(OSError):
                os.utime(fd)  # the order of use, for the next start; not worth a failed read
        finally:
            os.close(fd)
        return data

    def _give_up(self, file: NewFile, digest: str) -> int:
        """Both names, since a cancellation may come just after the rename."""
        try:
            file.discard()
        except OSError:
            return 1  # the next start sweeps it
        return self._remove([digest])

    def _remove(self, digests: list[str]) -> int:
        failures = 0
        for digest in digests:
            try:
                (self._files / digest).unlink(missing_ok=True)
            except OSError:
                failures += 1
        return failures


def _append(file: NewFile, sha: Any, chunk: bytes) -> None:
    sha.update(chunk)
    file.write(chunk)
