"""Objects in a folder: the conformance suite, and what only a folder can suffer."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.errors import ObjectMissing, StorageFull, StorageUnavailable
from storage.objects.base import ObjectStore, single
from storage.objects.local import LocalObjects
from tests.storage.objects.conformance import MIB, ObjectStoreConformance, Source, put, read
from tests.turns import growing_turns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalObjects]:
    store = LocalObjects(root)
    yield store
    await store.aclose()


class TestConformance(ObjectStoreConformance):
    @pytest.fixture
    def store(self, store: LocalObjects) -> LocalObjects:
        return store

    async def left_overs(self, store: ObjectStore) -> list[str]:
        assert isinstance(store, LocalObjects)
        return os.listdir(store._incoming)


async def test_constructing_touches_nothing(root: Path) -> None:
    store = LocalObjects(root)
    with pytest.raises(ObjectMissing):
        await store.size("a")
    await store.delete("a/b")
    await store.aclose()
    assert not root.exists()


async def test_files_and_folders_are_private(store: LocalObjects, root: Path) -> None:
    await put(store, "a/b", b"x")
    assert [(root / part).stat().st_mode & 0o777 for part in (".", "a", "a/b")] == [0o700, 0o700, 0o600]


async def test_empty_folders_go_with_their_last_object(store: LocalObjects, root: Path) -> None:
    await put(store, "a/b/c", b"x")
    await put(store, "a/d", b"x")
    await store.delete("a/b/c")
    assert sorted(os.listdir(root)) == [".incoming", "a"]
    assert os.listdir(root / "a") == ["d"]


async def test_puts_beside_deletes_of_the_same_folder(store: LocalObjects) -> None:
    async def one(number: int) -> None:
        for _ in range(20):
            await put(store, f"folder/{number}", b"x")
            await store.delete(f"folder/{number}")

    await asyncio.gather(*(one(number) for number in range(8)))
    with pytest.raises(ObjectMissing):
        await store.size("folder/0")


async def test_a_key_cannot_be_object_and_folder(store: LocalObjects) -> None:
    await put(store, "a/b", b"x")
    for key in ("a", "a/b/c"):
        with pytest.raises(ValueError, match="folder"):
            await store.put(key, single(b"y"), max_bytes=10)
        with pytest.raises(ObjectMissing):
            await read(store, key)
        await store.delete(key)
    assert await read(store, "a/b") == b"x"
    assert os.listdir(store._incoming) == []


@pytest.mark.parametrize("key", ["link", "folder/x"])
async def test_links_lead_nowhere(store: LocalObjects, root: Path, tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    root.mkdir()
    (root / "link").symlink_to(outside / "x")
    (root / "folder").symlink_to(outside)
    with pytest.raises((ObjectMissing, StorageUnavailable)):
        await read(store, key)
    with suppress(ValueError):
        await store.put(key, single(b"mine"), max_bytes=10)
    await store.delete(key)
    assert (outside / "x").read_bytes() == b"secret"
    assert os.listdir(outside) == ["x"]


async def test_a_pipe_is_no_object(store: LocalObjects, root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "pipe")
    with pytest.raises(ObjectMissing):
        await asyncio.wait_for(read(store, "pipe"), 5)


async def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalObjects(tmp_path / "file")
    with pytest.raises((StorageUnavailable, ValueError)):
        await store.put("a", single(b"x"), max_bytes=10)
    await store.aclose()


async def test_a_full_disk_keeps_the_old_object(store: LocalObjects, root: Path) -> None:
    """A file size limit makes the system take part of a write and then refuse, as a full disk does."""
    await put(store, "k", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 1000, before[1]))
    try:
        with pytest.raises(StorageFull):
            await store.put("k", Source(bytes(MIB), 3), max_bytes=4 * MIB)
        assert await read(store, "k") == b"old"
        assert os.listdir(root / ".incoming") == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


_KILLED_WRITER = """
import asyncio, sys
from pathlib import Path
from storage.objects.local import LocalObjects
async def endless():
    yield bytes(3_000_000)
    print("writing", flush=True)
    await asyncio.Event().wait()
asyncio.run(LocalObjects(Path(sys.argv[1])).put("k", endless(), max_bytes=10**9))
"""


async def test_orphans_of_a_killed_process_are_swept_and_live_uploads_are_not(store: LocalObjects, root: Path) -> None:
    dead, live = (
        subprocess.Popen([sys.executable, "-c", _KILLED_WRITER, str(root)], stdout=subprocess.PIPE) for _ in range(2)
    )
    with dead, live:
        try:
            for process in (dead, live):
                assert process.stdout is not None
                assert await asyncio.to_thread(process.stdout.readline) == b"writing\n"
            dead.kill()
            dead.wait()
            assert len(os.listdir(root / ".incoming")) == 2
            await put(store, "other", b"x")
            assert len(os.listdir(root / ".incoming")) == 1
        finally:
            dead.kill()
            live.kill()
    fresh = LocalObjects(root)
    await put(fresh, "other", b"y")
    assert os.listdir(root / ".incoming") == []
    await fresh.aclose()


async def test_cancelled_at_any_moment_a_put_leaves_the_old_or_the_new(store: LocalObjects, root: Path) -> None:
    """Cancels after 1, 2, 3.. turns of the event loop, then ever more of them, until a put gets through."""
    await put(store, "k", b"old")
    for turns in growing_turns():
        task = asyncio.create_task(store.put("k", single(b"new"), max_bytes=10))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read(store, "k") in (b"old", b"new")
        assert os.listdir(root / ".incoming") == []
        assert _open_files(root) == []
    assert turns > 3


async def test_readers_close_their_files(store: LocalObjects, root: Path) -> None:
    await put(store, "k", bytes(3 * MIB))
    stream = store.get("k")
    await anext(stream)
    assert len(_open_files(root)) == 1
    await stream.aclose()
    task = asyncio.create_task(read(store, "k"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _open_files(root) == []


def _open_files(root: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(str(root)):
            found.append(target)
    return found
