"""The durable half of the log: synchronous, one owner (the recorder's thread), all I/O through `Disk`.

State: the open segment (file, crc seed, `_end` of what was written, `_synced` of what is on the medium), the payloads
between those two, and the segments sealed since somebody last asked. Rules:

- a segment is created as: file, header, directory sync; only then does a frame go into it (the header becomes durable
  with the first frame, and without one it is worth nothing);
- a segment is sealed only when all of it is synced, so after a crash only the newest can have a torn tail;
- after a failed sync the kernel may have dropped the dirty pages and reports success next time. The segment is
  therefore given up at its last synced byte and what was not yet synced is written again to a new one;
- what could not be written leaves no bytes behind: the file is cut back, or given up when even that fails.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from gateway.logs.disk import Disk, DiskFile
from gateway.logs.segment import (
    HEADER_BYTES,
    Location,
    created_us_of,
    encode_frame,
    encode_header,
    file_name,
    frame_behind,
    new_segment_id,
    read_seed,
    segment_id_of,
    valid_end,
)
from storage.errors import ObjectCorrupt, StorageError, StorageFull, StorageUnavailable

logger = logging.getLogger(__name__)

PROBE_NAME: Final = "probe"


def recover(disk: Disk) -> list[Location]:
    """Ends of the segments left by an earlier process, oldest first; the newest loses its torn tail.

    Raises StorageError when the directory cannot be read or repaired: then nothing may be written either.
    """
    segment_ids = sorted(filter(None, map(segment_id_of, disk.names())))
    ends: list[Location] = []
    for segment_id in segment_ids:
        newest = segment_id == segment_ids[-1]
        size = disk.size(file_name(segment_id))
        end = _repair(disk, segment_id, size) if newest else size
        if end > HEADER_BYTES:
            ends.append(Location(segment_id, end))
        else:
            disk.remove(file_name(segment_id))
    return ends


def _repair(disk: Disk, segment_id: str, size: int) -> int:
    """Cuts the torn tail of the newest segment and returns its length, 0 when not even the header is whole.

    A torn header means that the crash came before the segment's first frame, so nothing in it was ever acknowledged.
    Where frames stand behind the bad bytes, these are damage and no torn tail: what was acknowledged may be among them,
    so they stay, as in an older segment.
    """
    try:
        seed = read_seed(disk, segment_id)
    except ObjectCorrupt:
        return 0
    end = valid_end(disk, segment_id, seed)
    if end < size and frame_behind(disk, segment_id, seed, end):
        logger.error("log segment %s: damaged behind byte %d; its %d bytes are kept", segment_id, end, size)
        end = size
    elif end < size:
        logger.warning("log segment %s: %d bytes of torn tail cut off", segment_id, size - end)
    # Also when nothing is torn: what the crash left in the page cache must be on the medium before it is relied on.
    disk.truncate(file_name(segment_id), end)
    return end


class SegmentWriter:
    """Appends payloads to segments. Not safe for threads."""

    def __init__(
        self,
        disk: Disk,
        *,
        segment_bytes: int,
        after: str,
        now_us: Callable[[], int],
        nonce: Callable[[], int],
    ) -> None:
        """Begins nothing yet. `after`: the newest segment that exists, "" for none; new ids sort behind it.

        `nonce` gives 64 random bits.
        """
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._newest_us = created_us_of(after)
        self._now_us = now_us
        self._nonce = nonce
        self._file: DiskFile | None = None
        self._segment_id = after
        self._seed = 0
        self._end = 0
        self._synced = 0
        self._unsynced: list[bytes] = []
        self._unsynced_bytes = 0
        self._sealed: list[Location] = []
        self.num_failovers = 0

    @property
    def written(self) -> Location:
        """The end of what was handed to the operating system."""
        return Location(self._segment_id, self._end)

    @property
    def synced(self) -> Location | None:
        """The end of what is on the medium in the open segment; None when none is open."""
        return None if self._file is None else Location(self._segment_id, self._synced)

    @property
    def unsynced_bytes(self) -> int:
        """Payload bytes written and not yet synced."""
        return self._unsynced_bytes

    def take_sealed(self) -> list[Location]:
        """The ends of segments finished since the last call."""
        sealed, self._sealed = self._sealed, []
        return sealed

    def begin(self) -> None:
        """Creates the first segment now: a folder that cannot be written fails the start. Raises StorageError."""
        if self._file is None:
            self._begin()

    def write(self, payloads: Sequence[bytes]) -> None:
        """Hands the payloads to the operating system; they survive a kill of the process, not yet a power cut.

        All or none. Raises StorageFull or StorageUnavailable, then none of them is kept.
        """
        size = sum(map(len, payloads))
        if self._file is not None and self._end > HEADER_BYTES and self._end + size > self._segment_bytes:
            self.sync()
            self._seal()
        try:
            self._append(payloads)
        except StorageFull:
            raise
        except StorageError:
            # The medium, not the room: what this segment holds beyond its last sync is in doubt too.
            self._fail_over()
            self._append(payloads)
        self._unsynced.extend(payloads)
        self._unsynced_bytes += size

    def sync(self) -> None:
        """Everything written is on the medium when this returns. Raises StorageError, then it still is not: the
        payloads are kept and go into the next segment with the next call."""
        if not self._unsynced:
            return
        if self._file is None:
            self._fail_over()
            return
        try:
            self._file.sync()
        except StorageError:
            logger.exception("log segment %s: sync failed; going on in a new segment", self._segment_id)
            self._fail_over()
            return
        self._settled()

    def forget_unsynced(self) -> None:
        """Gives up what `sync` could not bring to the medium, when its senders were told so."""
        if self._unsynced:
            self._give_up()
            self._unsynced.clear()
            self._unsynced_bytes = 0

    def probe(self, num_bytes: int) -> None:
        """Whether so much can be written and synced at this moment, in a file that is removed again.

        Raises StorageError. The segments are not touched: what they hold is known.
        """
        self._disk.remove(PROBE_NAME)  # of a process that was killed during its probe
        try:
            file = self._disk.create(PROBE_NAME)
            try:
                data, done = memoryview(bytes(num_bytes)), 0
                while done < num_bytes:
                    taken = file.write(data[done:], done)
                    if taken <= 0:
                        raise StorageUnavailable(f"{PROBE_NAME}: the file takes no more bytes")
                    done += taken
                file.sync()
            finally:
                _close(file)
        finally:
            self._disk.remove(PROBE_NAME)

    def close(self) -> None:
        """Syncs and seals. Raises StorageError."""
        self.sync()
        if self._file is not None:
            self._seal()

    def _append(self, payloads: Sequence[bytes]) -> None:
        fresh = self._file is None
        if fresh:
            self._begin()
            payloads = [*self._unsynced, *payloads]
        assert self._file is not None
        data = memoryview(b"".join([encode_frame(self._seed, payload) for payload in payloads]))
        done = 0
        try:
            while done < len(data):
                taken = self._file.write(data[done:], self._end + done)
                if taken <= 0:
                    raise StorageUnavailable(f"{self._segment_id}: the file takes no more bytes")
                done += taken
        except StorageError:
            # A fresh segment lacks what is still owed from the one before, so it may not stay open.
            self._give_up() if fresh else self._cut_back()
            raise
        self._end += len(data)

    def _begin(self) -> None:
        created_us = max(self._now_us(), self._newest_us + 1)
        nonce = self._nonce()
        segment_id = new_segment_id(created_us, nonce)
        header, seed = encode_header(created_us, nonce)
        file = self._disk.create(file_name(segment_id))
        try:
            if file.write(memoryview(header), 0) != len(header):
                raise StorageFull(f"{segment_id}: no room for a header")
            self._disk.sync_dir()
        except StorageError:
            _close(file)
            self._disk.remove(file_name(segment_id))
            raise
        self._newest_us = created_us
        self._file, self._segment_id, self._seed = file, segment_id, seed
        self._end = self._synced = HEADER_BYTES

    def _seal(self) -> None:
        assert self._file is not None
        assert self._end == self._synced
        _close(self._file)
        self._file = None
        self._retire()

    def _retire(self) -> None:
        """A closed segment goes to the shipper, or away when it holds nothing."""
        if self._synced > HEADER_BYTES:
            self._sealed.append(Location(self._segment_id, self._synced))
            return
        try:
            self._disk.remove(file_name(self._segment_id))
        except StorageError:
            logger.warning("empty log segment %s stays until the next start", self._segment_id)

    def _cut_back(self) -> None:
        """Removes what a failed write left, so that no later reader takes half a group for a torn tail."""
        assert self._file is not None
        try:
            self._file.truncate(self._end)
        except StorageError:
            logger.exception("log segment %s: cannot be cut back; given up", self._segment_id)
            self._give_up()

    def _fail_over(self) -> None:
        """What is not synced goes into a new segment and is synced there. Raises StorageError and keeps it if not."""
        self.num_failovers += 1
        self._give_up()
        if not self._unsynced:
            return
        self._append(())
        assert self._file is not None
        try:
            self._file.sync()
        except StorageError:
            self._give_up()
            raise
        self._settled()

    def _give_up(self) -> None:
        """Ends the open segment at its last synced byte."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.truncate(self._synced)
        except StorageError:
            logger.warning("log segment %s: tail of unknown state left behind byte %d", self._segment_id, self._synced)
        _close(file)
        self._end = self._synced
        self._retire()

    def _settled(self) -> None:
        self._synced = self._end
        self._unsynced.clear()
        self._unsynced_bytes = 0


def _close(file: DiskFile) -> None:
    try:
        file.close()
    except StorageError:
        logger.exception("closing a log segment failed; its content was synced before")
