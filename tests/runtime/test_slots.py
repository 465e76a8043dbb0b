"""Ranges of the row pool: never two owners, and a window is found whenever one exists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.slots import Slot, SlotPool, Window


def free(slot: Slot) -> float | None:
    """Every owner stays."""
    return None


def oldest(slot: Slot) -> float | None:
    """Idle owners may go, the least recently used first."""
    return None if slot.references else float(slot.last_used)


@given(
    num_rows=st.integers(1, 80),
    granule=st.integers(1, 16),
    operations=st.lists(
        st.tuples(st.sampled_from(["take", "give", "use", "unuse"]), st.integers(0, 9), st.integers(1, 90))
    ),
)
def test_books_balance_and_no_window_is_missed(
    num_rows: int, granule: int, operations: list[tuple[str, int, int]]
) -> None:
    pool = SlotPool(num_rows, granule)
    owned: dict[str, Slot] = {}
    for what, index, rank in operations:
        name = f"x{index}"
        slot = owned.get(name)
        if what == "take" and slot is None:
            rows = pool.rows_for(rank)
            assert (rows is None) == (rank > num_rows)
            if rows is None:
                continue
            assert rank <= rows <= num_rows
            window = pool.window(rows, oldest)
            possible = [
                start
                for start in range(num_rows - rows + 1)
                if not any(s.references and start < s.end and s.offset < start + rows for s in owned.values())
            ]
            assert (window is not None) == bool(possible)
            if window is None:
                continue
            assert window.offset in possible
            for owner in window.owners:
                pool.give_back(owned.pop(owner.digest))
            owned[name] = pool.take(name, window)
        elif what == "give" and slot is not None and not slot.references:
            pool.give_back(owned.pop(name))
        elif what == "use" and slot is not None:
            pool.acquire(slot)
        elif what == "unuse" and slot is not None and slot.references:
            pool.release(slot)
        assert {s.digest: s for s in pool.slots} == owned
        assert pool.rows_used == sum(s.rows for s in owned.values())
        assert len({s.number for s in pool.slots}) == len(pool.slots)
        assert all(0 <= s.number < pool.max_slots for s in pool.slots)
        ends = [0, *(s.end for s in pool.slots)]
        assert all(end <= s.offset for end, s in zip(ends, pool.slots, strict=False))
        assert ends[-1] <= num_rows


def filled(*ranks: int, num_rows: int) -> tuple[SlotPool, list[Slot]]:
    pool = SlotPool(num_rows)
    slots = []
    for index, rank in enumerate(ranks):
        window = pool.window(rank, free)
        assert window is not None
        slots.append(pool.take(f"x{index}", window))
    return pool, slots


def test_first_fit_takes_the_lowest_gap() -> None:
    pool, slots = filled(8, 8, 8, num_rows=32)
    pool.give_back(slots[1])
    assert pool.window(8, free) == Window(8, 8, ())
    assert pool.window(16, free) is None


def test_a_gap_is_preferred_to_an_eviction() -> None:
    pool, _ = filled(8, 8, num_rows=24)
    assert pool.window(8, oldest) == Window(16, 8, ())


def test_the_least_recently_used_goes_first() -> None:
    pool, slots = filled(8, 8, 8, num_rows=24)
    for index in (0, 2, 1):
        pool.acquire(slots[index])
        pool.release(slots[index])
    window = pool.window(8, oldest)
    assert window is not None
    assert [slot.digest for slot in window.owners] == ["x0"]


def test_fragmentation_does_not_block_a_large_adapter() -> None:
    pool, slots = filled(8, 8, 8, 8, num_rows=32)
    pool.give_back(slots[0])
    pool.give_back(slots[2])
    window = pool.window(16, oldest)
    assert window is not None
    assert len(window.owners) == 1


def test_owners_in_use_stay() -> None:
    pool, slots = filled(8, 8, num_rows=16)
    pool.acquire(slots[0])
    window = pool.window(8, oldest)
    assert window is not None
    assert window.owners == (slots[1],)
    assert pool.window(16, oldest) is None
    with pytest.raises(ValueError, match="references"):
        pool.give_back(slots[0])


def test_a_reserved_range_is_left_out() -> None:
    pool, _ = filled(8, num_rows=32)
    reserved = Window(8, 16, ())
    assert pool.window(8, free, reserved) == Window(24, 8, ())
    assert pool.window(16, oldest, reserved) is None


def test_misuse_is_refused() -> None:
    pool, slots = filled(8, num_rows=16)
    with pytest.raises(ValueError, match="cannot go to"):
        pool.take("y", Window(0, 8, ()))
    with pytest.raises(ValueError, match="not in use"):
        pool.release(slots[0])
    pool.give_back(slots[0])
    with pytest.raises(ValueError, match="free already"):
        pool.give_back(slots[0])
