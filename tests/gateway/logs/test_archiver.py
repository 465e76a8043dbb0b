"""The copying of a segment's bodies, stopped at every place where it hands work to a thread."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gateway.logs.archiver import Archiver
from gateway.logs.bodies import object_key
from gateway.logs.counters import LogCounters
from gateway.logs.disk import OsDisk
from gateway.settings import Logs
from storage.errors import StorageUnavailable
from storage.threads import Threads
from tests.gateway.logs.support import House, record

T = TypeVar("T")
P = ParamSpec("P")


class Cancelling(Threads):
    """Threads whose `nth` piece of work from now finds its caller cancelled."""

    nth = 0

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.nth -= 1
        if self.nth == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return await super().run(work, *args, **kwargs)


class Away:
    """An object store that takes nothing."""

    async def put(self, *_: object, **__: object) -> int:
        raise StorageUnavailable("gone")


async def _shipped_segment(house: House) -> str:
    """A sealed segment whose records have rows, and whose bodies nobody has copied yet."""
    store = await house.store(Logs(segment_bytes=4096), objects=Away())
    for number in range(12):
        await store.append(record(f"question {number}", "x" * 400))
    async with asyncio.timeout(20):
        while not store.counters.archive_failures:
            await asyncio.sleep(0.01)
    await store.aclose()
    return house.segments()[0].removesuffix(".wal")


def _open_files(folder: Path) -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the listing's own
    return [name for name in names if name.startswith(str(folder))]


async def test_cancelled_anywhere_it_leaves_no_file_open_and_none_behind(house: House) -> None:
    segment_id = await _shipped_segment(house)
    scratch = house.folder / "scratch"
    scratch.mkdir()
    threads = Cancelling(1, "test-archiver")
    disk = OsDisk(house.folder / "logs")
    try:
        archiver: Any = Archiver(house.database, house.objects, disk, scratch, LogCounters(), threads)
        num_cancelled = 0
        while True:
            threads.nth = num_cancelled + 1
            try:
                await asyncio.create_task(archiver.archive(segment_id, False))
                break
            except asyncio.CancelledError:
                num_cancelled += 1
            assert not _open_files(scratch)
            assert not list(scratch.iterdir())
        assert num_cancelled >= 8, "too few places were tried"
        assert await house.objects.size(object_key(segment_id)) > 0
        assert f"{segment_id}.wal" not in house.segments()
    finally:
        await threads.aclose()
        disk.close()
