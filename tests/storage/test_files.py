"""Files that are whole or not at all, and threads that a cancellation does not leave behind."""

import asyncio
import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from storage.errors import StorageFull, StorageUnavailable
from storage.files import NewFile, disk_errors, sweep, write_all
from storage.lock_file import LockFile
from storage.threads import Threads, finish


def open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_publishing_syncs_the_bytes_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between any two of these steps must find the old file or the new one."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(fd: int) -> None:
        steps.append("sync folder" if fd == folder else "sync bytes")
        fsync(fd)

    def record_rename(*names: str, dst_dir_fd: int) -> None:
        steps.append("rename")
        rename(*names, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    folder = open_folder(tmp_path)
    file = NewFile(tmp_path / ".incoming")
    file.open()
    file.write(b"content")
    file.publish("name", folder)
    os.close(folder)
    assert steps == ["sync bytes", "rename", "sync folder"]
    assert (tmp_path / "name").read_bytes() == b"content"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with (tmp_path / "f").open("wb") as file:
        write_all(file.fileno(), b"more than three bytes")
    assert (tmp_path / "f").read_bytes() == b"more than three bytes"


def test_a_write_that_takes_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with (tmp_path / "f").open("wb") as file, pytest.raises(OSError, match="no more bytes"):
        write_all(file.fileno(), b"x")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EIO, StorageUnavailable),
        (errno.EROFS, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable),
    ],
)
def test_what_the_system_says_is_translated(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="the thing"), disk_errors("the thing"):
        raise OSError(number, os.strerror(number))


def test_discarding_is_always_allowed(tmp_path: Path) -> None:
    file = NewFile(tmp_path)
    file.discard()
    file.open(1000)
    assert len(os.listdir(tmp_path)) == 1
    file.discard()
    file.discard()
    assert os.listdir(tmp_path) == []
    file.open()
    next(tmp_path.iterdir()).unlink()
    file.discard()


def test_room_is_set_aside(tmp_path: Path) -> None:
    file = NewFile(tmp_path)
    file.open(100_000)
    assert next(tmp_path.iterdir()).stat().st_blocks * 512 >= 100_000
    file.discard()


def test_a_sweep_leaves_what_is_being_written(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none") == 0
    live = NewFile(tmp_path)
    live.open()
    (tmp_path / "orphan").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert sweep(tmp_path) == 1
    assert len(os.listdir(tmp_path)) == 2
    live.discard()


def test_a_sweep_between_making_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer notices that its file is gone and takes another."""
    flock = fcntl.flock
    swept: list[bool] = []

    def sweep_first(fd: int, operation: int) -> None:
        if not swept:
            swept.append(True)
            monkeypatch.setattr(fcntl, "flock", flock)
            assert sweep(tmp_path) == 1
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    file = NewFile(tmp_path)
    file.open()
    file.write(b"kept")
    folder = open_folder(tmp_path)
    file.publish("name", folder)
    os.close(folder)
    assert (tmp_path / "name").read_bytes() == b"kept"


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    assert first.acquire() is None
    assert second.acquire() == os.getpid()
    second.release()
    assert second.acquire() == os.getpid()
    first.release()
    assert second.acquire() is None
    second.release()


async def test_finish_runs_to_the_end_and_then_lets_the_cancellation_through() -> None:
    gate, ended = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        ended.append(True)
        raise OSError("seen by nobody")

    task = asyncio.create_task(finish(work()))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_finish_gives_result_and_failure() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise OSError("no")

    assert await finish(answer()) == 42
    with pytest.raises(OSError, match="no"):
        await finish(fail())


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    threads = Threads(1, "test")
    started, gate, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        started.set()
        assert gate.wait(10)
        ended.append(threading.current_thread().name)

    task = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended[0].startswith("test")
    await threads.aclose()
