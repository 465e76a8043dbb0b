"""Writes groups to a folder and tells which were acknowledged; run under strace by test_syscalls.py."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from gateway.logs.disk import OsDisk
from gateway.logs.writer import SegmentWriter, recover
from storage.errors import StorageError


def write_groups(folder: Path, numbers: range, acknowledge: Callable[[int], None]) -> None:
    """Recovers the folder, then does as the recorder does in mode `ack`."""
    disk = OsDisk(folder)
    ends = recover(disk)
    writer = SegmentWriter(
        disk,
        segment_bytes=600,
        after=ends[-1].segment_id if ends else "",
        now_us=lambda: time.time_ns() // 1000,
        nonce=lambda: Random(numbers.start).getrandbits(64),
    )
    for number in numbers:
        payload = b"payload %d " % number * 20
        try:
            writer.write([payload])
            writer.sync()
        except StorageError:
            writer.forget_unsynced()
            continue
        acknowledge(number)
    writer.close()
    disk.close()


if __name__ == "__main__":
    write_groups(Path(sys.argv[1]), range(6), lambda number: print(number, flush=True))
