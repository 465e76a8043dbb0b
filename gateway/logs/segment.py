"""The format of a write-ahead segment, and reading it.

    "LRKTLOG1" | u64 nonce | u64 created, microseconds | u32 crc32 of these 24 bytes          little-endian
    then frames:  u32 length | u32 crc32 | payload (one LogRecord, msgpack)

A frame's crc covers its length and payload and starts from the header's crc, so bytes of another file never pass as a
frame of this one. Length 0 is never valid: a hole of zeros ends the scan. Reading stops at the first bad frame. The
name, `{created:016d}-{nonce:08x}.wal`, sorts by age; the segment's id is the name without its ending, unique across
restarts and machines.
"""

import struct
import zlib
from typing import Final, NamedTuple

from gateway.logs.disk import Disk
from storage.errors import ObjectCorrupt

SUFFIX: Final = ".wal"
DAMAGED_SUFFIX: Final = ".damaged"
HEADER_BYTES: Final = 28
FRAME_HEADER_BYTES: Final = 8
MAX_PAYLOAD_BYTES: Final = 1 << 30
_SEARCHED_BYTES: Final = 1 << 20
_SEARCH_WORK_BYTES: Final = 256 << 20
_MAGIC: Final = b"LRKTLOG1"
_HEADER: Final = struct.Struct("<8sQQ")
_U32: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<II")


class Location(NamedTuple):
    """A place in the log. Segment ids sort by age, so places compare in the order of writing."""

    segment_id: str
    offset: int


class Frame(NamedTuple):
    """One payload and the offset at which its frame starts."""

    offset: int
    payload: bytes


class Frames(NamedTuple):
    """A run of frames; `next_offset` is where reading goes on, `damaged` that the bytes there are not a frame."""

    frames: list[Frame]
    next_offset: int
    damaged: bool


def file_name(segment_id: str) -> str:
    """The file of a segment."""
    return segment_id + SUFFIX


def segment_id_of(name: str) -> str | None:
    """The segment of a file, or None for any other file."""
    return name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else None


def created_us_of(segment_id: str) -> int:
    """When a segment was begun; 0 for a name of another form."""
    digits = segment_id.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def new_segment_id(created_us: int, nonce: int) -> str:
    """The id of a segment begun at `created_us`."""
    return f"{created_us:016d}-{nonce & 0xFFFFFFFF:08x}"


def encode_header(created_us: int, nonce: int) -> tuple[bytes, int]:
    """The file's first bytes and the seed of its frames' crcs."""
    head = _HEADER.pack(_MAGIC, nonce, created_us)
    seed = zlib.crc32(head)
    return head + _U32.pack(seed), seed


def encode_frame(seed: int, payload: bytes) -> bytes:
    """One frame; `payload` is 1 to MAX_PAYLOAD_BYTES long."""
    length = len(payload)
    assert 0 < length <= MAX_PAYLOAD_BYTES
    return _FRAME.pack(length, _crc(seed, length, payload)) + payload


def read_seed(disk: Disk, segment_id: str) -> int:
    """The crc seed from a segment's header. Raises ObjectCorrupt when it is torn, ObjectMissing.

    A header that has gone bad behind whole frames costs no record: the seed stands in it twice, as its bytes and as
    their crc, and the first frame tells which of the two is still right.
    """
    head = disk.read(file_name(segment_id), 0, HEADER_BYTES)
    if len(head) == HEADER_BYTES:
        computed, written = zlib.crc32(head[: _HEADER.size]), _U32.unpack_from(head, _HEADER.size)[0]
        if computed == written and head.startswith(_MAGIC):
            return computed
        if computed != written:
            end = disk.size(file_name(segment_id))
            for seed in (written, computed):
                if read_frames(disk, segment_id, seed, HEADER_BYTES, end, max_bytes=FRAME_HEADER_BYTES).frames:
                    return int(seed)
    raise ObjectCorrupt(f"{segment_id}: not a log segment, or its header is torn")


def read_frames(disk: Disk, segment_id: str, seed: int, start: int, end: int, *, max_bytes: int) -> Frames:
    """Frames from `start` up to `end`: about `max_bytes` of them, at least one when there is one.

    Raises ObjectMissing, StorageUnavailable.
    """
    name = file_name(segment_id)
    data = disk.read(name, start, min(max(max_bytes, FRAME_HEADER_BYTES), end - start))
    if len(data) >= FRAME_HEADER_BYTES:
        first = FRAME_HEADER_BYTES + _FRAME.unpack_from(data)[0]
        if len(data) < first <= min(end - start, FRAME_HEADER_BYTES + MAX_PAYLOAD_BYTES):
            data = disk.read(name, start, first)
    frames: list[Frame] = []
    position = 0
    while position < len(data):
        payload = _frame_at(data, position, seed)
        if payload is None:
            break
        frames.append(Frame(start + position, payload))
        position += FRAME_HEADER_BYTES + len(payload)
    # A frame cut by the read's own limit is only "not here yet"; one that fails at the head of a read is bad.
    return Frames(frames, start + position, damaged=not frames and start < end)


def read_frame(disk: Disk, segment_id: str, seed: int, offset: int) -> bytes:
    """The payload of the frame at `offset`. Raises ObjectCorrupt, ObjectMissing, StorageUnavailable."""
    size = disk.size(file_name(segment_id))
    found = read_frames(disk, segment_id, seed, offset, size, max_bytes=16 * 1024)
    if not found.frames:
        raise ObjectCorrupt(f"{segment_id}: no frame at {offset}")
    return found.frames[0].payload


def valid_end(disk: Disk, segment_id: str, seed: int) -> int:
    """Where the unbroken run of frames ends. Raises ObjectMissing, StorageUnavailable."""
    end = disk.size(file_name(segment_id))
    position = HEADER_BYTES
    while position < end:
        found = read_frames(disk, segment_id, seed, position, end, max_bytes=4 * 1024 * 1024)
        if not found.frames:
            break
        position = found.next_offset
    return position


def frame_behind(disk: Disk, segment_id: str, seed: int, start: int) -> bool:
    """Whether a frame stands somewhere behind `start`, where none begins: then the bytes there are damage, and no tail
    that a crash tore. Also True where that cannot be told with little work.

    Raises ObjectMissing, StorageUnavailable.
    """
    data = disk.read(file_name(segment_id), start + 1, _SEARCHED_BYTES + 1)
    if len(data) > _SEARCHED_BYTES:
        return True
    work, zero = 0, data.find(0, 3)  # what fits here has a length whose fourth byte is 0
    while zero >= 0 and work <= _SEARCH_WORK_BYTES:
        position = zero - 3
        length = _U32.unpack_from(data, position)[0]
        if position + FRAME_HEADER_BYTES + length <= len(data):
            work += length
            if _frame_at(data, position, seed) is not None:
                return True
        zero = data.find(0, zero + 1)
    return zero >= 0


def _frame_at(data: bytes, position: int, seed: int) -> bytes | None:
    if position + FRAME_HEADER_BYTES > len(data):
        return None
    length, crc = _FRAME.unpack_from(data, position)
    start = position + FRAME_HEADER_BYTES
    if length == 0 or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if _crc(seed, length, payload) == crc else None


def _crc(seed: int, length: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_U32.pack(length), seed))
