"""The segment format: what is written is read back, and nothing else ever is."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs.segment import (
    HEADER_BYTES,
    encode_frame,
    encode_header,
    file_name,
    new_segment_id,
    read_frame,
    read_frames,
    read_seed,
    valid_end,
)
from storage.errors import ObjectCorrupt
from tests.gateway.logs.sim_disk import Faults, SimDisk

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def _disk(content: bytes, created_us: int = 7, nonce: int = 9) -> tuple[SimDisk, str, int]:
    disk = SimDisk(Random(0), Faults())
    segment_id = new_segment_id(created_us, nonce)
    header, seed = encode_header(created_us, nonce)
    disk.create(file_name(segment_id)).write(memoryview(header + content), 0)
    return disk, segment_id, seed


def _all(disk: SimDisk, segment_id: str, seed: int, max_bytes: int = 64) -> list[bytes]:
    end, position, found = disk.size(file_name(segment_id)), HEADER_BYTES, []
    while position < end:
        frames = read_frames(disk, segment_id, seed, position, end, max_bytes=max_bytes)
        if not frames.frames:
            assert frames.damaged
            break
        found += [payload for _, payload in frames.frames]
        position = frames.next_offset
    return found


@given(payloads, st.integers(1, 400))
def test_frames_come_back_whatever_the_size_of_a_read(sent: list[bytes], max_bytes: int) -> None:
    _, seed = encode_header(7, 9)
    disk, segment_id, seed = _disk(b"".join(encode_frame(seed, one) for one in sent))
    assert read_seed(disk, segment_id) == seed
    assert _all(disk, segment_id, seed, max_bytes) == sent
    assert valid_end(disk, segment_id, seed) == disk.size(file_name(segment_id))


@given(payloads.filter(bool), st.data())
def test_a_flipped_bit_ends_the_scan_before_its_frame(sent: list[bytes], data: st.DataObject) -> None:
    _, seed = encode_header(7, 9)
    frames = [encode_frame(seed, one) for one in sent]
    content = bytearray(b"".join(frames))
    place = data.draw(st.integers(0, len(content) * 8 - 1))
    content[place // 8] ^= 1 << (place % 8)
    disk, segment_id, seed = _disk(bytes(content))
    whole, end = 0, 0
    for frame in frames:
        if end + len(frame) > place // 8:
            break
        whole, end = whole + 1, end + len(frame)
    assert _all(disk, segment_id, seed) == sent[:whole]


@given(payloads, st.binary(max_size=40))
def test_a_tail_that_is_no_frame_is_not_read(sent: list[bytes], tail: bytes) -> None:
    _, seed = encode_header(7, 9)
    good = b"".join(encode_frame(seed, one) for one in sent)
    disk, segment_id, seed = _disk(good + tail)
    assert _all(disk, segment_id, seed) == sent
    assert valid_end(disk, segment_id, seed) == HEADER_BYTES + len(good)


def test_zeros_and_frames_of_another_segment_are_no_frames() -> None:
    _, other_seed = encode_header(8, 9)
    for content in (b"\0" * 4096, encode_frame(other_seed, b"from elsewhere")):
        disk, segment_id, seed = _disk(content)
        assert seed != other_seed
        assert _all(disk, segment_id, seed) == []


def test_a_frame_is_found_by_its_offset() -> None:
    _, seed = encode_header(7, 9)
    first, second = encode_frame(seed, b"x" * 50_000), encode_frame(seed, b"second")
    disk, segment_id, seed = _disk(first + second)
    assert read_frame(disk, segment_id, seed, HEADER_BYTES) == b"x" * 50_000
    assert read_frame(disk, segment_id, seed, HEADER_BYTES + len(first)) == b"second"
    with pytest.raises(ObjectCorrupt):
        read_frame(disk, segment_id, seed, HEADER_BYTES + 1)


@pytest.mark.parametrize("length", [0, 7, HEADER_BYTES - 1])
def test_a_torn_header_is_seen(length: int) -> None:
    disk, segment_id, _ = _disk(b"")
    del disk.live[file_name(segment_id)].data[length:]
    with pytest.raises(ObjectCorrupt):
        read_seed(disk, segment_id)


def test_ids_sort_by_age_and_differ() -> None:
    ids = [new_segment_id(us, nonce) for us in (1, 99, 10**15) for nonce in (3, 2**63)]
    assert [i.partition("-")[0] for i in ids] == sorted(i.partition("-")[0] for i in ids)
    assert len(set(ids)) == len(ids)
