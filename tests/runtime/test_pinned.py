"""Registered host memory against a driver that keeps books: each buffer once, given back with its last view."""

import gc
import logging

import pytest

from runtime.pinned import pinned_allocator
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


@pytest.mark.parametrize("size", [1, 1000, HUGE_PAGE_BYTES + 7])
def test_a_buffer_is_registered_as_long_as_a_view_of_it_lives(size: int) -> None:
    driver = Driver()
    allocate = pinned_allocator(lambda: driver)
    buffer = allocate(size)
    assert (len(buffer), buffer.format, buffer.readonly) == (size, "B", False)
    assert list(driver.registered.values()) == [size]
    buffer[0] = 7
    view = buffer[:1]
    del buffer
    gc.collect()
    assert len(driver.registered) == 1
    assert view[0] == 7
    del view
    gc.collect()
    assert driver.registered == {}


def test_a_driver_that_refuses_costs_speed_only(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(error=2)
    allocate = pinned_allocator(lambda: driver)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        buffer = allocate(1000)
        buffer[-1] = 1
    assert driver.calls == 3
    assert len(caplog.records) == 1
