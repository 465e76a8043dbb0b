"""Objects as plain files under one folder: key `a/b` is the file `root/a/b`.

    root/.incoming/     uploads that have not ended (no key starts with a dot)
    root/a/b            an object

A put writes a temporary file in `.incoming`, puts it on disk, renames it to its place and puts the folder on disk, so
a reader sees the old object or the new one. Folders are opened one by one without following links: a link planted
under the root leads nowhere. Several processes may share a root. Memory: at most `CHUNK_BYTES` and one chunk of the
source per put, one chunk per get.
"""

import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from storage.errors import ObjectMissing, ObjectTooLarge, StorageUnavailable
from storage.files import NewFile, disk_errors, sweep, sync_folder
from storage.objects.base import check_key, check_range
from storage.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES = 1024 * 1024
_THREADS = 4
_ATTEMPTS = 8
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without waiting, should it be a pipe


class LocalObjects:
    """`ObjectStore` over a folder, which is made when first written to."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._incoming = self._root / ".incoming"
        self._threads = Threads(_THREADS, "objects")
        self._swept = False

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        """See `ObjectStore.put`. Raises ValueError when a folder of the key is already an object or the reverse."""
        what = f"object {check_key(key)} cannot be stored"
        if not self._swept:
            self._swept = True
            await self._disk(what, self._prepare)
        file, pending, size = NewFile(self._incoming), bytearray(), 0
        try:
            await self._disk(what, file.open)
            async for chunk in data:
                size += len(chunk)
                if size > max_bytes:
                    raise ObjectTooLarge(f"object {key} is larger than {max_bytes} bytes")
                pending += chunk
                if len(pending) >= CHUNK_BYTES:
                    await self._disk(what, file.write, pending)
                    pending = bytearray()
            await self._disk(what, file.write, pending)
            await self._disk(what, self._publish, file, key)
        finally:
            await self._disk(what, file.discard)
        return size

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `ObjectStore.get`."""
        check_range(start, length)
        what, reader = f"object {check_key(key)} cannot be read", _Reader(self._root, key)
        try:
            size = await self._disk(what, reader.open)
            end = size if length is None else min(size, start + length)
            while start < end:
                chunk = await self._disk(what, reader.read, start, min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise StorageUnavailable(f"{what}: the file became shorter while it was read")
                start += len(chunk)
                yield chunk
        finally:
            reader.close()

    async def size(self, key: str) -> int:
        """See `ObjectStore.size`."""
        reader = _Reader(self._root, check_key(key))
        try:
            return await self._disk(f"object {key} cannot be read", reader.open)
        finally:
            reader.close()

    async def delete(self, key: str) -> None:
        """See `ObjectStore.delete`. Folders that become empty go with it."""
        await self._disk(f"object {check_key(key)} cannot be removed", self._delete, key)

    async def aclose(self) -> None:
        """See `ObjectStore.aclose`."""
        await self._threads.aclose()

    async def _disk(self, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with disk_errors(what):
            return await self._threads.run(work, *args, **kwargs)

    def _prepare(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(self._incoming)

    def _publish(self, file: NewFile, key: str) -> None:
        *folders, name = key.split("/")
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                folder = _open_folder(self._root, folders, make=True)
                try:
                    file.publish(name, folder)
                finally:
                    os.close(folder)
                break
            except FileNotFoundError:  # a delete has just removed the empty folder
                if attempt == _ATTEMPTS:
                    raise
            except (IsADirectoryError, NotADirectoryError) as error:
                raise ValueError(f"object key {key!r} and another object need the same name as a folder") from error

    def _delete(self, key: str) -> None:
        *folders, name = key.split("/")
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            folder = _open_folder(self._root, folders, make=False)
            try:
                os.unlink(name, dir_fd=folder)
                sync_folder(folder)
            finally:
                os.close(folder)
        for depth in range(len(folders), 0, -1):
            try:
                parent = _open_folder(self._root, folders[: depth - 1], make=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                os.rmdir(folders[depth - 1], dir_fd=parent)
            except OSError:
                return  # not empty, or gone: only tidying
            finally:
                os.close(parent)


class _Reader:
    """One open object. `close` may come at any time after the thread's work has ended."""

    def __init__(self, root: Path, key: str) -> None:
        self._root, self._key, self._fd = root, key, -1

    def open(self) -> int:
        """Opens the file and returns its size. Raises ObjectMissing, OSError."""
        *folders, name = self._key.split("/")
        try:
            folder = _open_folder(self._root, folders, make=False)
            try:
                self._fd = os.open(name, _FILE, dir_fd=folder)
            finally:
                os.close(folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"no object {self._key}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(f"no object {self._key}")
        return status.st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_folder(root: Path, folders: list[str], *, make: bool) -> int:
    """A descriptor of `root/folders..`, no step of which is a link. Raises OSError."""
    if make:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(root, _FOLDER)
    try:
        for name in folders:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                    sync_folder(fd)
            inner = os.open(name, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd
