"""An object store: immutable byte strings under keys that we make ourselves.

Keys are relative POSIX paths of `[a-z0-9._-]` segments built from our own ids, never from a caller's text;
`check_key` refuses anything else, so no key can leave the store's root. A put is all or nothing: a reader sees the
old object, the new one, or none, never a part. Errors are those of `storage.errors`.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Protocol

_KEY = re.compile(r"(?!\.)[a-z0-9._-]{1,128}(?:/(?!\.)[a-z0-9._-]{1,128}){0,7}")


def check_key(key: str) -> str:
    """Returns `key`, or raises ValueError when it is not a plain relative path of lower-case segments."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


def check_range(start: int, length: int | None) -> None:
    """Raises ValueError for a negative start or length."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"not a range of bytes: {length} from {start}")


class ObjectStore(Protocol):
    """Five verbs; every implementation passes `tests/storage/objects/conformance.py`."""

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        """Stores the whole stream under `key`, durably, and returns its length in bytes.

        Raises ObjectTooLarge as soon as more than `max_bytes` arrived, StorageFull, StorageUnavailable; then nothing
        is kept. An exception of the stream itself passes through, likewise with nothing kept.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Streams the object, or `length` bytes from `start`, in chunks of about 1 MiB. Past the end are no bytes.

        Raises ObjectMissing, StorageUnavailable. A reader that stops early closes the stream (`contextlib.aclosing`).
        """
        ...

    async def size(self, key: str) -> int:
        """The object's length in bytes. Raises ObjectMissing, StorageUnavailable."""
        ...

    async def delete(self, key: str) -> None:
        """Removes the object; a key that is not there is no error. Raises StorageUnavailable."""
        ...

    async def aclose(self) -> None:
        """Releases connections; the store is not used afterwards."""
        ...


async def single(data: bytes) -> AsyncIterator[bytes]:
    """A stream of one chunk, for objects that are already in memory."""
    yield data
