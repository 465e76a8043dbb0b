"""Host memory that a GPU copies from directly: pages that the system may not move, registered with the driver.

A copy from ordinary memory goes through the driver's own small buffer and holds up the caller; from registered memory
it is one transfer that runs beside everything else. Buffers are registered when they are made, one each for a whole
adapter (never one per tensor), and given back when the last view of them is gone. Whoever asks for one is on a thread
of the tiers, where a registration's few milliseconds hurt nobody.
"""

import ctypes
import logging
import weakref
from collections.abc import Callable
from typing import Protocol

from storage.buffers import Allocate, allocate

logger = logging.getLogger(__name__)


class Driver(Protocol):
    """What is needed of `torch.cuda.cudart()`."""

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802 - the driver's name
        """0 for success."""
        ...

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802
        """0 for success."""
        ...


def pinned_allocator(driver: Callable[[], Driver] | None = None) -> Allocate:
    """Registered buffers; ordinary ones where the driver refuses, which costs speed and nothing else."""
    driver = driver or _cudart
    refused = False

    def allocate_pinned(size_bytes: int) -> memoryview:
        nonlocal refused
        buffer = allocate(size_bytes)
        anchor = (ctypes.c_char * size_bytes).from_buffer(buffer)
        pointer = ctypes.addressof(anchor)
        runtime = driver()
        error = int(runtime.cudaHostRegister(pointer, size_bytes, 0))
        if error:
            if not refused:
                refused = True
                logger.warning("host memory cannot be registered with the GPU (error %d); copies are slower", error)
            return buffer
        # The anchor lives as long as any view that is handed out; it holds the buffer, and its end the registration.
        weakref.finalize(anchor, runtime.cudaHostUnregister, pointer)
        return memoryview(anchor).cast("B")

    return allocate_pinned


def _cudart() -> Driver:
    import torch

    driver: Driver = torch.cuda.cudart()  # type: ignore[no-untyped-call] # without annotations in torch
    return driver
