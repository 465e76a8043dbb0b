"""Segments cover the tokens exactly, merge neighbours, and say nothing about rows of the base."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.segments import (
    ALL_SLICES,
    BASE_SLOT,
    NO_TILE,
    TILE_ROWS,
    SegmentBuffers,
    SlotRows,
    build_segments,
    most_tiles,
    tile_rows_for,
)

CPU = torch.device("cpu")

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


@given(batch_rows, st.sampled_from([1, 4, TILE_ROWS]))
def test_tiles_cover_the_tokens_with_adapters_once(rows: list[tuple[int, int]], tile_rows: int) -> None:
    segments = build_segments([slot for slot, _ in rows], [count for _, count in rows], ROWS, {1: 0b10})
    tiles = list(segments.tiles(tile_rows))
    assert all(1 <= tile.tokens <= tile_rows for tile in tiles)
    found = [(token, *tile[2:5]) for tile in tiles for token in range(tile.first, tile.first + tile.tokens)]
    assert found == [(token, *segment[2:]) for segment in segments.with_adapters()
                     for token in range(segment.start, segment.end)]  # fmt: skip
    assert all(tile.slices == (0b10 if tile.slot == 1 else ALL_SLICES) for tile in tiles)


@given(st.lists(st.integers(0, 40), max_size=5), st.sampled_from([1, TILE_ROWS]))
def test_no_ordered_step_has_more_tiles_than_there_is_room_for(counts: list[int], tile_rows: int) -> None:
    slots = list(range(len(counts)))
    segments = build_segments(slots, counts, {slot: SlotRows(slot, 1) for slot in slots})
    most = most_tiles(segments.num_tokens, 5, tile_rows)
    assert len(list(segments.tiles(tile_rows))) <= most <= segments.num_tokens


@pytest.mark.parametrize(
    ("lengths", "tile_rows"),
    [([1] * 64, 1), ([4], 1), ([5], TILE_ROWS), ([1, 1, 1, 2], 1), ([3, 1, 2], TILE_ROWS), ([3000, 1], TILE_ROWS)],
)
def test_shared_adapters_and_prefill_get_tiles_of_sixteen(lengths: list[int], tile_rows: int) -> None:
    slots = list(range(len(lengths)))
    rows = {slot: SlotRows(slot, 1) for slot in slots}
    assert tile_rows_for(build_segments([BASE_SLOT, *slots], [9, *lengths], rows)) == tile_rows


def test_an_upload_replaces_the_step_before_it() -> None:
    buffers = SegmentBuffers(40, 5, 64, TILE_ROWS, CPU)
    for slots, counts in (([0, 1, 2], [20, 3, 17]), ([1], [1]), ([BASE_SLOT], [4])):
        segments = build_segments(slots, counts, ROWS)
        step = buffers.upload(segments)
        assert step.num_tiles == len(list(segments.tiles(TILE_ROWS)))
        assert list(step.host_tiles()) == list(buffers.static().host_tiles()) == list(segments.tiles(TILE_ROWS))
        assert bool((buffers.static().words[:, step.num_tiles :] == NO_TILE).all())


def test_a_graph_may_be_captured_for_fewer_tiles() -> None:
    buffers = SegmentBuffers(12, 5, 64, 1, CPU)
    assert [buffers.tile_bucket(count) for count in (1, 2, 3, 8, 9, 12)] == [1, 2, 4, 8, 12, 12]
    step = buffers.upload(build_segments([0, 1], [2, 1], ROWS))
    few = buffers.static(buffers.tile_bucket(step.num_tiles))
    assert (few.num_tiles, list(few.host_tiles())) == (4, list(step.host_tiles()))
    for wrong in (0, 13):
        with pytest.raises(ValueError, match="room for"):
            buffers.static(wrong)


def test_words_may_be_a_part_of_the_callers_buffer() -> None:
    own = SegmentBuffers(8, 5, 64, 1, CPU)
    words = torch.zeros(own.num_words + 6, dtype=torch.int32)
    lent = SegmentBuffers(8, 5, 64, 1, CPU, words[6:])
    segments = build_segments([0, 3], [2, 1], ROWS)
    assert lent.fill(words[6:].numpy(), segments) == 3
    own.upload(segments)
    assert torch.equal(lent.static().words, own.static().words)
    with pytest.raises(ValueError, match="belong to the caller"):
        lent.upload(segments)
    with pytest.raises(ValueError, match="int32 words"):
        SegmentBuffers(8, 5, 64, 1, CPU, words)


@pytest.mark.parametrize(("slots", "counts"), [([0], [9]), ([3], [1]), ([0, 1, 0, 1, 0, 1], [1] * 6)])
def test_a_step_that_has_no_room_is_refused(slots: list[int], counts: list[int]) -> None:
    buffers = SegmentBuffers(8, 2, 32, TILE_ROWS, CPU)
    buffers.upload(build_segments([1], [8], ROWS))
    before = buffers.static().words.clone()
    with pytest.raises(ValueError, match="room for"):
        buffers.upload(build_segments(slots, counts, ROWS))
    assert torch.equal(buffers.static().words, before)
