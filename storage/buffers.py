"""Memory for whole packed files. Large ones in huge pages where the system has them: a fresh page costs as much as the
read that fills it, and a huge one holds 512. A runtime with a GPU brings its own `Allocate` (`runtime/pinned.py`).
"""

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Final

HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024

# Zeroed or not; freed when the last view of it is gone.
Allocate = Callable[[int], memoryview]


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of exactly `size_bytes`."""
    if size_bytes < HUGE_PAGE_BYTES:
        return memoryview(bytearray(size_bytes))
    pages = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)
