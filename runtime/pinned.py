"""Host memory that a GPU copies from directly: pages that the system may not move, registered with the driver.

A copy from ordinary memory goes through the driver's own small buffer and holds up the caller; from registered memory
it is one transfer that runs beside everything else. Registering costs as much as reading a file into the pages, so
pages stay registered while they are kept for the next adapter (`storage.buffers.Recycled`). Whoever asks for new ones
is on a thread of the tiers, where the milliseconds hurt nobody. Small adapters are not registered: they go through a
slab.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from storage.buffers import Recycled

logger = logging.getLogger(__name__)


class Driver(Protocol):
    """What is needed of `torch.cuda.cudart()`."""

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802 - the driver's name
        """0 for success."""
        ...

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802
        """0 for success."""
        ...


def pinned(max_bytes: int, driver: Callable[[], Driver] | None = None) -> Recycled:
    """Registered buffers; ordinary ones where the driver refuses, which costs speed and nothing else."""
    find, refused = driver or _cudart, False

    def pin(address: int, length: int) -> Callable[[], object]:
        nonlocal refused
        found = find()
        error = int(found.cudaHostRegister(address, length, 0))
        if not error:
            return lambda: _unregister(found, address)
        if not refused:
            refused = True
            logger.warning("host memory cannot be registered with the GPU (error %d); copies are slower", error)
        return lambda: None

    return Recycled(max_bytes, pin)


def _unregister(driver: Driver, address: int) -> None:
    error = int(driver.cudaHostUnregister(address))
    if error:
        logger.warning("host memory stays registered with the GPU (error %d)", error)


def _cudart() -> Driver:
    import torch

    driver: Driver = torch.cuda.cudart()  # type: ignore[no-untyped-call] # without annotations in torch
    return driver
