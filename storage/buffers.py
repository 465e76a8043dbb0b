"""Memory for whole packed files: in huge pages where they are large and the system has them, and in the pages of a file
that is gone where there are some, since a fresh page costs as much as the read that fills it. Pages of our own, because
what threads take from the C library's heaps comes back to the heap of the thread and not to the next who needs it.
A runtime with a GPU registers them with its driver as well (`runtime/pinned.py`), which costs as much again.
"""

import ctypes
import mmap
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Final, NamedTuple

HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024
PAGED_BYTES: Final = 128 * 1024  # below it a buffer is not worth a mapping of its own
STEP_BYTES: Final = 64 * 1024  # files of one base and rank differ by a few bytes: they take the same pages

# Zeroed or not; freed when the last view of it is gone.
Allocate = Callable[[int], memoryview]
# Of an address and a length: makes pages known to a device, and returns what ends that. Must not fail.
Pin = Callable[[int, int], Callable[[], object]]


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of exactly `size_bytes`."""
    if size_bytes < HUGE_PAGE_BYTES:
        return memoryview(bytearray(size_bytes))
    return memoryview(_pages(size_bytes))


class _Small(bytearray):
    """One whose end can be told."""


class _Region(NamedTuple):
    pages: mmap.mmap
    unpin: Callable[[], object]


class Recycled:
    """An `Allocate` that keeps the pages of buffers whose last view has gone, for the next of their size. They
    hold what was in them: whoever gets them fills them. Buffers in use and idle pages together stay below `max_bytes`,
    as long as those in use do. pin: done once to all pages, and undone before they are given back to the system.
    """

    def __init__(self, max_bytes: int, pin: Pin | None = None) -> None:
        self._max_bytes, self._pin = max_bytes, pin
        self._idle: OrderedDict[int, list[_Region]] = OrderedDict()  # by length, the one used longest ago first
        # The end of a view may come at any moment, also within a call here.
        self._lock = RLock()
        self.idle_bytes = self.live_bytes = 0
        weakref.finalize(self, _unpin, self._idle).atexit = False

    def allocate(self, size_bytes: int) -> memoryview:
        """A writable buffer of exactly `size_bytes`. From any thread."""
        length = -(-size_bytes // STEP_BYTES) * STEP_BYTES
        region = self._take(length) if size_bytes >= PAGED_BYTES else None
        if region is None and size_bytes >= PAGED_BYTES:
            with suppress(OSError):  # the system maps no more: it may have a bound on their number
                region = self._made(length)
        if region is None:
            small = _Small(size_bytes)
            self._count(small, None, size_bytes)
            return memoryview(small)
        # Every view keeps the anchor, and nobody but its views does.
        anchor = (ctypes.c_char * size_bytes).from_buffer(region.pages)
        self._count(anchor, region, length)
        return memoryview(anchor).cast("B")

    def _made(self, length: int) -> _Region:
        pages = _pages(length)
        if self._pin is None:
            return _Region(pages, lambda: None)
        return _Region(pages, self._pin(ctypes.addressof(ctypes.c_char.from_buffer(pages)), length))

    def _take(self, length: int) -> _Region | None:
        with self._lock:
            idle = self._idle.get(length)
            if not idle:
                return None
            self._idle.move_to_end(length)
            self.idle_bytes -= length
            return idle.pop()

    def _count(self, anchor: object, region: _Region | None, length: int) -> None:
        """`anchor` is in use from now on; others' idle pages go when there is no room for them any more."""
        weakref.finalize(anchor, self._take_back, region, length).atexit = False
        gone = list[_Region]()
        with self._lock:
            self.live_bytes += length
            while self.idle_bytes and self.live_bytes + self.idle_bytes > self._max_bytes:
                oldest = next(iter(self._idle))
                if self._idle[oldest]:
                    gone.append(self._idle[oldest].pop())
                    self.idle_bytes -= oldest
                else:
                    del self._idle[oldest]
        for one in gone:
            one.unpin()

    def _take_back(self, region: _Region | None, length: int) -> None:
        with self._lock:
            self.live_bytes -= length
            kept = region is not None and self.live_bytes + self.idle_bytes + length <= self._max_bytes
            if region is not None and kept:
                self._idle.setdefault(length, []).append(region)
                self._idle.move_to_end(length)
                self.idle_bytes += length
        if region is not None and not kept:
            region.unpin()


def _unpin(idle: OrderedDict[int, list[_Region]]) -> None:
    """Nobody will ask for these any more; what is still in use ends with its views."""
    for regions in idle.values():
        for region in regions:
            region.unpin()


def _pages(size_bytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size_bytes)
    if size_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
