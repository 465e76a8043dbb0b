"""Segments cover the tokens exactly, merge neighbours, and say nothing about rows of the base."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.segments import BASE_SLOT, SlotRows, build_segments

ROWS = {slot: SlotRows(offset=10 * slot, rank=rank) for slot, rank in enumerate((1, 8, 3, 64, 0))}
batch_rows = st.lists(st.tuples(st.sampled_from([BASE_SLOT, *ROWS]), st.integers(0, 5)), max_size=30)


@given(batch_rows)
def test_every_token_gets_the_rows_of_its_slot(rows: list[tuple[int, int]]) -> None:
    segments = build_segments([slot for slot, _ in rows], [count for _, count in rows], ROWS)
    expected = [slot for slot, count in rows for _ in range(count)]
    found = [BASE_SLOT] * segments.num_tokens
    for start, end, slot, offset, rank in segments.with_adapters():
        assert (offset, rank) == ROWS[slot]
        assert rank > 0
        found[start:end] = [slot] * (end - start)
    assert found == [slot if slot != BASE_SLOT and ROWS[slot].rank else BASE_SLOT for slot in expected]


@given(batch_rows)
def test_neighbours_never_share_a_slot(rows: list[tuple[int, int]]) -> None:
    segments = build_segments([slot for slot, _ in rows], [count for _, count in rows], ROWS)
    assert all(a != b for a, b in zip(segments.slots, segments.slots[1:], strict=False))
    assert all(a < b for a, b in zip(segments.starts, segments.starts[1:], strict=False))
    assert len(segments.starts) == len(segments.slots) + 1 == len(segments.ranks) + 1 == len(segments.row_offsets) + 1


def test_a_step_of_the_base_alone_has_no_rank() -> None:
    segments = build_segments([BASE_SLOT, BASE_SLOT], [3, 1], {})
    assert (segments.max_rank, list(segments.with_adapters()), segments.num_tokens) == (0, [], 4)


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(KeyError):
        build_segments([9], [1], ROWS)
