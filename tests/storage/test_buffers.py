"""Pages that come back: only after the last view, to the next of the same size, and never more than was allowed."""

import ctypes
import errno
import gc
import threading

import pytest

from storage.buffers import HUGE_PAGE_BYTES, PAGED_BYTES, STEP_BYTES, Recycled, allocate

SIZE = 3 * HUGE_PAGE_BYTES - 100


def address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("size", [1, PAGED_BYTES - 1, PAGED_BYTES, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, SIZE])
@pytest.mark.parametrize("recycled", [True, False])
def test_exactly_so_large_and_writable(size: int, recycled: bool) -> None:
    make = Recycled(10 * SIZE).allocate if recycled else allocate
    for turn in range(3):
        buffer = make(size)
        assert (len(buffer), buffer.format, buffer.readonly, buffer.nbytes) == (size, "B", False, size)
        buffer[:] = bytes([turn]) * size
        assert buffer[-1] == buffer[0] == turn


def test_pages_come_back_after_the_last_view() -> None:
    recycled = Recycled(20 * SIZE)
    length = -(-SIZE // STEP_BYTES) * STEP_BYTES
    buffer = recycled.allocate(SIZE)
    place = address(buffer)
    view, halves = buffer[100:200], [buffer[:50], buffer[50:]]
    buffer[150] = 7
    del buffer, halves
    other = recycled.allocate(SIZE)
    assert address(other) != place
    other[:] = bytes(SIZE)
    assert view[50] == 7
    assert (recycled.idle_bytes, recycled.live_bytes) == (0, 2 * length)
    del view
    gc.collect()
    assert (recycled.idle_bytes, recycled.live_bytes) == (length, length)
    larger = recycled.allocate(SIZE + STEP_BYTES)
    assert recycled.idle_bytes == length, "another size"
    again = recycled.allocate(SIZE + 50)
    assert address(again) == place
    assert recycled.idle_bytes == 0
    assert len({address(each) for each in (other, larger, again)}) == 3


def test_idle_pages_never_take_room_from_what_is_in_use() -> None:
    """Whatever the sizes: in use and idle together stay below the bound, and the oldest idle ones go first."""
    unit = HUGE_PAGE_BYTES
    recycled = Recycled(6 * unit)
    buffers = [recycled.allocate(unit), recycled.allocate(2 * unit), recycled.allocate(3 * unit)]
    places = [address(each) for each in buffers]
    assert recycled.live_bytes == 6 * unit
    while buffers:
        del buffers[0]
    gc.collect()
    assert (recycled.idle_bytes, recycled.live_bytes) == (6 * unit, 0)
    small = [recycled.allocate(PAGED_BYTES - 1) for _ in range(2)]
    assert (recycled.idle_bytes, recycled.live_bytes) == (5 * unit, 2 * (PAGED_BYTES - 1)), "the oldest went"
    small += [recycled.allocate(PAGED_BYTES - 1) for _ in range(16)]
    assert recycled.idle_bytes == 3 * unit
    again = recycled.allocate(3 * unit)
    assert address(again) == places[2]
    assert recycled.idle_bytes == 0
    del again
    gc.collect()
    assert recycled.idle_bytes == 3 * unit
    full = recycled.allocate(4 * unit)
    assert recycled.idle_bytes == 0
    del small, full
    gc.collect()
    assert (recycled.idle_bytes, recycled.live_bytes) == (4 * unit, 0)
    nothing = Recycled(0)
    del (one := [nothing.allocate(SIZE)])[0]
    assert (one, nothing.idle_bytes, nothing.live_bytes) == ([], 0, 0)


def test_where_no_more_can_be_mapped_there_is_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no more mappings")

    recycled = Recycled(10 * SIZE)
    monkeypatch.setattr("storage.buffers.mmap.mmap", refuse)
    buffer = recycled.allocate(SIZE)
    buffer[-1] = 7
    assert (len(buffer), recycled.live_bytes) == (SIZE, SIZE)
    del buffer
    gc.collect()
    assert (recycled.idle_bytes, recycled.live_bytes) == (0, 0)


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
    assert recycled.live_bytes == 0
    assert 0 < recycled.idle_bytes <= 4 * HUGE_PAGE_BYTES
