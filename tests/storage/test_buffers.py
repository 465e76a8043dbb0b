"""Pages that come back: only after the last view, to the next of the same size, and never more than was allowed."""

import ctypes
import gc
import threading

import pytest

from storage.buffers import HUGE_PAGE_BYTES, Recycled, allocate

SIZE = 3 * HUGE_PAGE_BYTES - 100


def address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("size", [1, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 1, SIZE])
@pytest.mark.parametrize("recycled", [True, False])
def test_exactly_so_large_and_writable(size: int, recycled: bool) -> None:
    make = Recycled(10 * SIZE).allocate if recycled else allocate
    for turn in range(3):
        buffer = make(size)
        assert (len(buffer), buffer.format, buffer.readonly, buffer.nbytes) == (size, "B", False, size)
        buffer[:] = bytes([turn]) * size
        assert buffer[-1] == buffer[0] == turn


def test_pages_come_back_after_the_last_view() -> None:
    recycled = Recycled(10 * SIZE)
    buffer = recycled.allocate(SIZE)
    place = address(buffer)
    view, halves = buffer[100:200], [buffer[:50], buffer[50:]]
    buffer[150] = 7
    del buffer, halves
    other = recycled.allocate(SIZE)
    assert address(other) != place
    other[:] = bytes(SIZE)
    assert view[50] == 7
    assert recycled.idle_bytes == 0
    del view
    gc.collect()
    assert recycled.idle_bytes == 3 * HUGE_PAGE_BYTES
    larger = recycled.allocate(SIZE + HUGE_PAGE_BYTES)
    assert recycled.idle_bytes == 3 * HUGE_PAGE_BYTES, "another size"
    again = recycled.allocate(SIZE + 50)
    assert address(again) == place
    assert recycled.idle_bytes == 0
    assert len({address(each) for each in (other, larger, again)}) == 3


def test_no_more_is_kept_than_allowed() -> None:
    recycled = Recycled(2 * 3 * HUGE_PAGE_BYTES)
    buffers = [recycled.allocate(SIZE) for _ in range(5)]
    del buffers
    gc.collect()
    assert recycled.idle_bytes == 2 * 3 * HUGE_PAGE_BYTES
    nothing = Recycled(0)
    del (buffer := [nothing.allocate(SIZE)])[0]
    assert not buffer
    assert nothing.idle_bytes == 0


def test_many_threads_never_share_pages() -> None:
    recycled = Recycled(4 * HUGE_PAGE_BYTES)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            buffer = recycled.allocate(HUGE_PAGE_BYTES)
            buffer[::4096] = bytes([number]) * (HUGE_PAGE_BYTES // 4096)
            if set(bytes(buffer[::4096])) != {number}:
                wrong.append(number)
            del buffer

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 < recycled.idle_bytes <= 4 * HUGE_PAGE_BYTES
