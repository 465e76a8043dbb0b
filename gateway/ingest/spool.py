"""Private folders for files on their way in, and notes of objects that nothing may point to.

Shape: a `Scratch` is one folder per upload or deletion, readable by this user only, removed at its end. Before objects
are written, replaced or deleted, their keys are noted in the folder, durably; whoever ends the work, or the next start
after a crash (`leftovers`), deletes the noted keys that no row refers to. So neither a crash nor a failed commit leaves
an object behind, and no listing of the store is ever needed.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

from gateway.errors import RequestTooLarge
from gateway.ids import new_id
from storage.errors import StorageFull, StorageUnavailable
from storage.threads import finish

T = TypeVar("T")

WRITE_BYTES: Final = 1024 * 1024
_NOTES: Final = "keys"


class SpooledFile(NamedTuple):
    """A complete file in a scratch folder."""

    path: Path
    size_bytes: int
    sha256: str

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes, read in a thread. Each piece opens the file anew: a cancelled reader leaves none open."""
        offset = 0
        while chunk := await _disk(_read_at, self.path, offset):
            offset += len(chunk)
            yield chunk


class Scratch:
    """One folder. `settled` says that the `noted` keys need no second look, so the folder may go."""

    def __init__(self, folder: Path, noted: list[str] | None = None) -> None:
        self.folder = folder
        self.noted = noted or []
        self.settled = not self.noted

    async def receive(self, name: str, chunks: AsyncIterable[bytes], max_bytes: int, what: str) -> SpooledFile:
        """Writes a stream to a new file. Raises RequestTooLarge as soon as it passes `max_bytes`, StorageFull."""
        writer, size, pending = _Writer(self.folder / name), 0, bytearray()
        try:
            await _disk(writer.open)
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise RequestTooLarge(f"{what} is above the limit of {max_bytes} bytes")
                pending += chunk
                if len(pending) >= WRITE_BYTES:
                    await _disk(writer.write, bytes(pending))
                    pending.clear()
            await _disk(writer.write, bytes(pending))
        finally:
            await _disk(writer.close)
        return SpooledFile(writer.path, size, writer.digest.hexdigest())

    async def note(self, keys: Iterable[str]) -> None:
        """Remembers durably that these objects may be left without a row. Call before touching them."""
        self.noted = list(keys)
        self.settled = False
        await _disk(_write_durably, self.folder / _NOTES, "\n".join(self.noted))


class Spool:
    """The folder of all scratch folders. One gateway process owns it."""

    def __init__(self, root: Path) -> None:
        """Raises StorageUnavailable when the folder cannot be made."""
        self._root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageUnavailable(f"{root}: {error.strerror}") from error

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Scratch]:
        """A new private folder, removed at the end; only notes that could not be settled stay for the next start."""
        scratch = Scratch(self._root / new_id())
        try:
            await _disk(scratch.folder.mkdir, 0o700)
            yield scratch
        finally:
            await finish(asyncio.to_thread(_clear, scratch.folder, not scratch.settled))

    async def leftovers(self) -> list[Scratch]:
        """Folders of an earlier process, with what they noted. Call once, before the first `scratch`."""
        return await _disk(self._leftovers)

    def _leftovers(self) -> list[Scratch]:
        folders = sorted(path for path in self._root.iterdir() if path.is_dir())
        return [Scratch(folder, _read_notes(folder / _NOTES)) for folder in folders]

    async def discard(self, scratch: Scratch) -> None:
        """Removes a left-over folder whose notes are settled."""
        await finish(asyncio.to_thread(_clear, scratch.folder, False))


def _read_at(path: Path, offset: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(WRITE_BYTES)


def _read_notes(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _clear(folder: Path, keep_notes: bool) -> None:
    """What cannot be removed now is found at the next start."""
    if not keep_notes:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.name != _NOTES:
            path.unlink(missing_ok=True)


class _Writer:
    """A new, unbuffered file and the digest of what went into it. Each method runs in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def open(self) -> None:
        self._file = self.path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        assert self._file is not None, "opened before"
        self.digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for folder in (path.parent, path.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _disk(function: Callable[..., T], *arguments: Any) -> T:
    """Runs file work in a thread, to its end even when cancelled. Raises StorageFull, StorageUnavailable."""
    try:
        return await finish(asyncio.to_thread(function, *arguments))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(f"spool: {error.strerror}") from error
        raise StorageUnavailable(f"spool: {error.strerror}") from error
