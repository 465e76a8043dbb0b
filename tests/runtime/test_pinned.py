"""Registered host memory against a driver that keeps books: pages once each, as long as they are kept."""

import gc
import logging

import pytest

from runtime.pinned import pinned
from storage.buffers import HUGE_PAGE_BYTES


class Driver:
    def __init__(self, error: int = 0) -> None:
        self.registered: dict[int, int] = {}
        self.error = error
        self.calls = 0

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802 - the driver's name
        self.calls += 1
        if not self.error:
            assert pointer not in self.registered
            self.registered[pointer] = size
        return self.error

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802
        del self.registered[pointer]
        return 0


def test_pages_are_registered_once_while_they_are_kept() -> None:
    driver = Driver()
    buffers = pinned(4 * HUGE_PAGE_BYTES, lambda: driver)
    buffer = buffers.allocate(HUGE_PAGE_BYTES + 7)
    assert (len(buffer), buffer.format, buffer.readonly) == (HUGE_PAGE_BYTES + 7, "B", False)
    buffer[0] = 7
    view = buffer[:1]
    del buffer
    gc.collect()
    assert view[0] == 7
    assert len(driver.registered) == 1
    del view
    gc.collect()
    assert len(driver.registered) == 1, "kept for the next"
    again = buffers.allocate(HUGE_PAGE_BYTES + 9)
    assert driver.calls == 1
    # Other sizes want the room: what is idle goes, and is no longer known to the driver.
    del again
    large = buffers.allocate(4 * HUGE_PAGE_BYTES)
    assert list(driver.registered.values()) == [4 * HUGE_PAGE_BYTES]
    del large
    gc.collect()


def test_pages_beyond_the_bound_are_given_back_at_once() -> None:
    driver = Driver()
    buffers = pinned(HUGE_PAGE_BYTES, lambda: driver)
    one, two = buffers.allocate(HUGE_PAGE_BYTES), buffers.allocate(HUGE_PAGE_BYTES)
    assert len(driver.registered) == 2
    del one
    gc.collect()
    assert len(driver.registered) == 1
    del two
    gc.collect()
    assert len(driver.registered) == 1


def test_small_buffers_are_not_registered() -> None:
    driver = Driver()
    buffer = pinned(HUGE_PAGE_BYTES, lambda: driver).allocate(1000)
    assert len(buffer) == 1000
    assert not driver.calls


def test_a_driver_that_refuses_costs_speed_only(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(error=2)
    buffers = pinned(HUGE_PAGE_BYTES, lambda: driver)
    caplog.set_level(logging.WARNING)
    kept = [buffers.allocate(HUGE_PAGE_BYTES) for _ in range(3)]
    for buffer in kept:
        buffer[-1] = 1
    assert driver.calls == 3
    assert len(caplog.records) == 1
    del buffer, kept
    gc.collect()


def test_an_allocator_that_is_gone_leaves_nothing_registered() -> None:
    driver = Driver()
    buffers = pinned(4 * HUGE_PAGE_BYTES, lambda: driver)
    used, idle = buffers.allocate(HUGE_PAGE_BYTES), buffers.allocate(2 * HUGE_PAGE_BYTES)
    del idle
    gc.collect()
    assert len(driver.registered) == 2
    del buffers
    gc.collect()
    assert HUGE_PAGE_BYTES in driver.registered.values(), "a view of it lives"
    del used
    gc.collect()
    assert driver.registered == {}
