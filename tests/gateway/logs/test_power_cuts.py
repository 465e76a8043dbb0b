"""The promise of the write-ahead log under power cuts, failing disks and full disks, with controls.

Every state comes from a seed, printed when it fails. Checked after each recovery: every acknowledged record is there,
in the order of the acknowledgements, and nothing is there that was never handed in. A control is the same run with
one protection taken away; it must lose or invent something, or the run proves nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from gateway.logs import segment as segment_module
from gateway.logs.segment import HEADER_BYTES, file_name, read_frames, read_seed
from gateway.logs.writer import SegmentWriter, recover
from storage.errors import ObjectCorrupt, StorageError, StorageUnavailable
from tests.gateway.logs.sim_disk import Faults, PowerCut, SimDisk

NUM_STATES = 2500


class Lost(Exception):
    """The promise was broken."""


def _writer(disk: SimDisk, random: Random, acked: list[bytes]) -> SegmentWriter:
    ends = recover(disk)
    if not disk.faults.sync_error:
        # What recovery finds gets its rows, so from here on it may not be lost either. (A record that nobody was told
        # of, whose sync failed just before a kill, may: the medium lied twice.)
        calls, disk.calls_left = disk.calls_left, None
        acked += [payload for payload in _records(disk) if payload not in acked]
        disk.calls_left = calls
    clock = iter(range(1_000_000, 10_000_000))
    writer = SegmentWriter(
        disk,
        segment_bytes=random.choice((2_000, 6_000, 1 << 20)),
        after=ends[-1].segment_id if ends else "",
        now_us=lambda: next(clock) if random.random() < 0.9 else 5,  # a wall clock may step back
        nonce=lambda: random.getrandbits(64),
    )
    writer.begin()
    return writer


def _records(disk: SimDisk) -> list[bytes]:
    """Everything that a shipper would read, second copies left out."""
    found: dict[bytes, None] = {}
    for segment_id in sorted(filter(None, map(segment_module.segment_id_of, disk.names()))):
        try:
            seed = read_seed(disk, segment_id)
        except ObjectCorrupt:
            continue
        position, end = HEADER_BYTES, disk.size(file_name(segment_id))
        while position < end:
            frames = read_frames(disk, segment_id, seed, position, end, max_bytes=3_000)
            if not frames.frames:
                break
            found.update(dict.fromkeys(payload for _, payload in frames.frames))
            position = frames.next_offset
    return list(found)


def _payload(random: Random, number: int) -> bytes:
    return f"record {number} ".encode() + random.randbytes(random.choice((0, 1, 30, 500, 1500, 5000)))


def _run_ack(disk: SimDisk, random: Random, sent: set[bytes], acked: list[bytes]) -> None:
    """What the recorder does in mode `ack`."""
    writer = _writer(disk, random, acked)
    for _ in range(random.randint(1, 12)):
        group = [_payload(random, len(sent) + i) for i in range(random.randint(1, 4))]
        sent.update(group)
        try:
            writer.write(group)
            writer.sync()
        except StorageError:
            writer.forget_unsynced()
            continue
        acked += group
    if random.random() < 0.3:
        writer.close()


def _run_group(disk: SimDisk, random: Random, sent: set[bytes], acked: list[bytes]) -> None:
    """What the recorder does in mode `group`; a record counts once a sync behind it returned."""
    writer = _writer(disk, random, acked)
    written: list[bytes] = []
    for _ in range(random.randint(1, 12)):
        group = [_payload(random, len(sent) + i) for i in range(random.randint(1, 4))]
        sent.update(group)
        try:
            writer.write(group)
            written += group
            if random.random() < 0.5:
                writer.sync()
                acked += written
                written = []
        except StorageError:
            continue


def _one_state(seed: int, faults: Callable[[Random], Faults], run: Callable[..., None]) -> None:
    random = Random(seed)
    sent: set[bytes] = set()
    acked: list[bytes] = []
    drawn = faults(random)
    disk = SimDisk(random, drawn, random.randint(0, 120))
    for _ in range(random.randint(1, 4)):
        with suppress(PowerCut, StorageError):
            run(disk, random, sent, acked)
        crash = disk.after_power_cut if random.random() < 0.6 else disk.after_kill
        disk = crash(random, drawn, random.randint(0, 120))
    disk = disk.after_power_cut(random, Faults())
    recover(disk)
    found = _records(disk)
    if missing := set(acked) - set(found):
        raise Lost(f"seed {seed}: {len(missing)} of {len(acked)} acknowledged records are gone")
    if phantoms := set(found) - sent:
        raise Lost(f"seed {seed}: {len(phantoms)} records that nobody sent")
    places = {payload: place for place, payload in enumerate(found)}
    if [places[payload] for payload in acked] != sorted(places[payload] for payload in acked):
        raise Lost(f"seed {seed}: acknowledged records changed their order")


def _quiet(random: Random) -> Faults:
    return Faults(short_write=random.choice((0, 0, 0.3)))


def _failing(random: Random) -> Faults:
    return Faults(
        short_write=random.choice((0, 0.3)),
        no_room=random.choice((0, 0, 0.1, 0.4)),
        write_error=random.choice((0, 0, 0.1)),
        sync_error=random.choice((0, 0.1, 0.4)),
    )


@pytest.mark.parametrize("run", [_run_ack, _run_group])
@pytest.mark.parametrize("faults", [_quiet, _failing])
def test_no_acknowledged_record_is_lost(faults: Any, run: Any) -> None:
    for seed in range(NUM_STATES):
        _one_state(seed, faults, run)


def _control(faults: Callable[[Random], Faults], run: Callable[..., None] = _run_ack, states: int = 400) -> int:
    """How many states break the promise."""
    broken = 0
    for seed in range(states):
        try:
            _one_state(seed, faults, run)
        except Lost:
            broken += 1
    return broken


def test_control_without_fdatasync() -> None:
    assert _control(lambda _: Faults(lies_sync=True)) > 100


def test_control_without_directory_sync() -> None:
    assert _control(lambda _: Faults(lies_sync_dir=True)) > 50


def test_control_without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "_crc", lambda seed, length, payload: 0)
    assert _control(_quiet, states=1500) > 10


def test_control_sync_tried_again_on_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic mistake: after a failed sync the pages are gone, and the second sync says that all is well."""

    def retry(self: SegmentWriter) -> None:
        if self._file is None:
            raise StorageUnavailable("no segment is open")
        self._file.sync()
        self._settled()

    monkeypatch.setattr(SegmentWriter, "_fail_over", retry)
    assert _control(lambda _: Faults(sync_error=0.3)) > 10


def test_control_short_write_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def append_once(self: SegmentWriter, payloads: list[bytes]) -> None:
        if self._file is None:
            self._begin()
        assert self._file is not None
        data = b"".join(segment_module.encode_frame(self._seed, payload) for payload in payloads)
        self._file.write(memoryview(data), self._end)
        self._end += len(data)

    monkeypatch.setattr(SegmentWriter, "_append", append_once)
    assert _control(lambda _: Faults(short_write=0.3)) > 50


def test_control_failed_write_left_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a refused group behind the end, then a shorter group over them: the scan may not trip over the rest."""
    monkeypatch.setattr(SegmentWriter, "_cut_back", lambda self: None)
    monkeypatch.setattr(segment_module, "_crc", lambda seed, length, payload: 0)
    assert _control(lambda _: Faults(no_room=0.4)) > 5


def test_control_owed_records_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new segment after a failure must begin with what the old one still owed."""

    def forgetful(self: SegmentWriter) -> None:
        self._give_up()
        self._unsynced.clear()
        self._begin()

    monkeypatch.setattr(SegmentWriter, "_fail_over", forgetful)
    assert _control(_failing, _run_group) > 10


def test_torn_header_of_a_new_segment_is_removed() -> None:
    disk = SimDisk(Random(1), Faults())
    disk.create("0000000000000001-00000001.wal").write(memoryview(b"LRKTLOG1\0\0"), 0)
    assert recover(disk) == []
    assert disk.names() == []


def test_a_damaged_older_segment_keeps_its_bytes() -> None:
    """Only the newest segment can be torn; a bad frame elsewhere is damage and not to be cut away."""
    disk = SimDisk(Random(1), Faults())
    sizes: dict[str, int] = {}
    for text in (b"one", b"two"):
        writer = _writer(disk, Random(len(sizes)), [])
        writer.write([b"first", text])
        writer.close()
        sizes = {name: disk.size(name) for name in sorted(disk.names())}
    for name in sizes:
        disk.live[name].data[-1] ^= 1
    older, newer = sizes
    assert [end for _, end in recover(disk)] == [sizes[older], sizes[newer] - 8 - len(b"two")]
    assert disk.size(older) == sizes[older]


def _one_segment(payloads: list[bytes]) -> tuple[SimDisk, str]:
    """A disk with these in one segment, and the segment's name."""
    disk = SimDisk(Random(1), Faults())
    writer = _writer(disk, Random(2), [])
    writer.write(payloads)
    writer.close()
    (name,) = disk.names()
    return disk, name


@pytest.mark.parametrize("place", [4, 8 + 9 - 1], ids=["crc", "payload"])
def test_damage_amid_the_newest_segment_is_no_torn_tail(place: int) -> None:
    """Behind the bad frame stands one that was acknowledged: nothing may be cut away."""
    disk, name = _one_segment([b"the first", b"the second"])
    before = disk.size(name)
    disk.live[name].data[HEADER_BYTES + place] ^= 1
    assert [end for _, end in recover(disk)] == [before]
    assert disk.size(name) == before


def test_a_torn_tail_is_cut_whatever_its_bytes_look_like() -> None:
    """Control: lengths that could be frames' are none without their checksum."""
    disk, name = _one_segment([b"the first", bytes([9, 0, 0, 0]) * 300])
    disk.truncate(name, disk.size(name) - 1)
    assert [end for _, end in recover(disk)] == [HEADER_BYTES + 8 + len(b"the first")]


@pytest.mark.parametrize("place", range(HEADER_BYTES))
def test_a_bad_byte_in_a_header_costs_no_record(place: int) -> None:
    disk, name = _one_segment([b"the first", b"the second"])
    before = disk.size(name)
    disk.live[name].data[place] ^= 1
    assert [end for _, end in recover(disk)] == [before]
    assert _records(disk) == [b"the first", b"the second"]
