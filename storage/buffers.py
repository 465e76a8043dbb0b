"""Memory for whole packed files. Large ones in huge pages where the system has them, and in the pages of a file that is
gone where there are some: a fresh page costs as much as the read that fills it. A runtime with a GPU brings its own
`Allocate` (`runtime/pinned.py`).
"""

import ctypes
import mmap
import weakref
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Final

HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024

# Zeroed or not; freed when the last view of it is gone.
Allocate = Callable[[int], memoryview]


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of exactly `size_bytes`."""
    if size_bytes < HUGE_PAGE_BYTES:
        return memoryview(bytearray(size_bytes))
    return memoryview(_pages(size_bytes))


class Recycled:
    """An `Allocate` that keeps the pages of large buffers whose last view has gone, up to `max_bytes` of them, for the
    next of the same size (in huge pages). They hold what was in them: whoever gets them fills them.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._idle: dict[int, list[mmap.mmap]] = {}
        # The end of a view may come at any moment, also within a call here.
        self._lock = RLock()
        self.idle_bytes = 0

    def allocate(self, size_bytes: int) -> memoryview:
        """A writable buffer of exactly `size_bytes`. From any thread."""
        if size_bytes < HUGE_PAGE_BYTES:
            return memoryview(bytearray(size_bytes))
        length = -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        with self._lock:
            idle = self._idle.get(length)
            pages = idle.pop() if idle else None
            if pages is not None:
                self.idle_bytes -= length
        pages = pages or _pages(length)
        # Every view keeps the anchor, and nobody but its views does.
        anchor = (ctypes.c_char * size_bytes).from_buffer(pages)
        weakref.finalize(anchor, self._take_back, pages, length).atexit = False
        return memoryview(anchor).cast("B")

    def _take_back(self, pages: mmap.mmap, length: int) -> None:
        with self._lock:
            if self.idle_bytes + length <= self._max_bytes:
                self._idle.setdefault(length, []).append(pages)
                self.idle_bytes += length


def _pages(size_bytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
