"""One file on its way up: what its owner task and its waiters share."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Literal

from storage.disk_tier import DiskWrite
from storage.errors import ObjectCorrupt, StorageError, StorageUnavailable
from storage.threads import Threads, finish
from storage.tier_records import Purpose, Visit

State = Literal["absent", "fetching", "disk", "reading", "host"]


class Load:
    """`landed` is set when the file is in memory, with a pin for each of `waiters`, or failed for all of them.

    object_key: None while only the disk is looked at (a refill); whoever joins brings the key.
    """

    def __init__(self, digest: str, object_key: str | None, size_bytes: int) -> None:
        self.digest = digest
        self.object_key = object_key
        self.size_bytes = size_bytes
        self.task: asyncio.Task[None]
        self.landed: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self.state: State = "absent"
        self.visits: list[Visit] = []
        self.waiters = 0
        self.reserved = False  # room in memory is ours
        self.without_disk = False  # it would not take this file
        self.purposes: set[Purpose] = set()
        self.abandoned = self.doomed = False

    @property
    def data(self) -> memoryview | None:
        """The bytes, once they are in memory."""
        if self.landed.done() and self.landed.exception() is None:
            return self.landed.result()
        return None

    def ended(self, task: asyncio.Task[None]) -> None:
        """Whoever still waits learns why there is nothing to wait for."""
        error = None if task.cancelled() else task.exception()
        if not self.landed.done():
            self.landed.set_exception(
                error or StorageUnavailable(f"adapter {self.digest} was not loaded: the tiers were closed")
            )
        self.landed.exception()  # seen, also when every waiter has gone

    def failure(self) -> BaseException:
        """Its own for each waiter: tracebacks grow as they are raised."""
        error = self.landed.exception()
        assert error is not None
        return type(error)(*error.args).with_traceback(None) if isinstance(error, StorageError) else error


class Sink:
    """Where a download's bytes go: to memory, to disk, or both; and their digest.

    One thread hashes a chunk while another keeps it and the next one is on its way. `settle` before anything is done
    with what was written.
    """

    def __init__(
        self, load: Load, data: memoryview | None, write: DiskWrite | None, threads: Threads, clock: Callable[[], float]
    ) -> None:
        self.data, self.write = data, write
        self.write_failed = False
        self.first_bytes_at: float | None = None
        self._load, self._threads, self._clock = load, threads, clock
        self._sha = hashlib.sha256()
        self._filled = 0
        self._work: tuple[asyncio.Task[None], ...] = ()

    async def take(self, chunk: bytes | bytearray) -> None:
        """The next bytes; returns when those before them are done with."""
        self.first_bytes_at = self.first_bytes_at or self._clock()
        await self.settle()
        self._work = (
            asyncio.create_task(self._threads.run(self._sha.update, chunk), name="hash chunk"),
            asyncio.create_task(self._threads.run(self._keep, chunk), name="keep chunk"),
        )

    async def settle(self) -> None:
        """Until no thread is at work for it, also when the caller is cancelled."""
        work, self._work = self._work, ()
        if work:
            await finish(asyncio.wait(work))
            for each in work:
                each.result()

    def check(self) -> None:
        """Raises ObjectCorrupt when these are not the bytes."""
        if self._sha.hexdigest() != self._load.digest:
            raise ObjectCorrupt(
                f"adapter {self._load.digest}: the object store gave bytes of digest {self._sha.hexdigest()}"
            )

    def _keep(self, chunk: bytes | bytearray) -> None:
        """A disk that does not take the bytes is left out from then on."""
        if self.data is not None:
            self.data[self._filled : self._filled + len(chunk)] = chunk
        self._filled += len(chunk)
        if self.write is not None and not self.write_failed:
            try:
                self.write.append(chunk)
            except OSError:
                self.write_failed = True
