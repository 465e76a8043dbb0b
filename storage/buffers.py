"""Memory for whole packed files: in huge pages where they are large and the system has them, and in the pages of a file
that is gone where there are some, since a fresh page costs as much as the read that fills it. Pages of our own, because
what threads take from the C library's heaps comes back to the heap of the thread and not to the next who needs it.
A runtime with a GPU brings its own `Allocate` (`runtime/pinned.py`).
"""

import ctypes
import mmap
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Final

HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024
PAGED_BYTES: Final = 128 * 1024  # below it a buffer is not worth a mapping of its own
STEP_BYTES: Final = 64 * 1024  # files of one base and rank differ by a few bytes: they take the same pages

# Zeroed or not; freed when the last view of it is gone.
Allocate = Callable[[int], memoryview]


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of exactly `size_bytes`."""
    if size_bytes < HUGE_PAGE_BYTES:
        return memoryview(bytearray(size_bytes))
    return memoryview(_pages(size_bytes))


class _Small(bytearray):
    """One whose end can be told."""


class Recycled:
    """An `Allocate` that keeps the pages of buffers whose last view has gone, for the next of their size. They
    hold what was in them: whoever gets them fills them. Buffers in use and idle pages together stay below `max_bytes`,
    as long as those in use do.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._idle: OrderedDict[int, list[mmap.mmap]] = OrderedDict()  # by length, the one used longest ago first
        # The end of a view may come at any moment, also within a call here.
        self._lock = RLock()
        self.idle_bytes = self.live_bytes = 0

    def allocate(self, size_bytes: int) -> memoryview:
        """A writable buffer of exactly `size_bytes`. From any thread."""
        length = -(-size_bytes // STEP_BYTES) * STEP_BYTES
        pages = self._take(length) if size_bytes >= PAGED_BYTES else None
        if pages is None and size_bytes >= PAGED_BYTES:
            with suppress(OSError):  # the system maps no more: it may have a bound on their number
                pages = _pages(length)
        if pages is None:
            small = _Small(size_bytes)
            self._count(small, None, size_bytes)
            return memoryview(small)
        # Every view keeps the anchor, and nobody but its views does.
        anchor = (ctypes.c_char * size_bytes).from_buffer(pages)
        self._count(anchor, pages, length)
        return memoryview(anchor).cast("B")

    def _take(self, length: int) -> mmap.mmap | None:
        with self._lock:
            idle = self._idle.get(length)
            if not idle:
                return None
            self._idle.move_to_end(length)
            self.idle_bytes -= length
            return idle.pop()

    def _count(self, anchor: object, pages: mmap.mmap | None, length: int) -> None:
        """`anchor` is in use from now on; others' idle pages go when there is no room for them any more."""
        with self._lock:
            self.live_bytes += length
            while self.idle_bytes and self.live_bytes + self.idle_bytes > self._max_bytes:
                oldest = next(iter(self._idle))
                if self._idle[oldest]:
                    self._idle[oldest].pop()
                    self.idle_bytes -= oldest
                else:
                    del self._idle[oldest]
        weakref.finalize(anchor, self._take_back, pages, length).atexit = False

    def _take_back(self, pages: mmap.mmap | None, length: int) -> None:
        with self._lock:
            self.live_bytes -= length
            if pages is not None and self.live_bytes + self.idle_bytes + length <= self._max_bytes:
                self._idle.setdefault(length, []).append(pages)
                self._idle.move_to_end(length)
                self.idle_bytes += length


def _pages(size_bytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size_bytes)
    if size_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
