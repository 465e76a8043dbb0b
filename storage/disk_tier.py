"""The disk tier: whole packed files in a folder, within a byte budget; a restart finds them again.

A name is a promise: the SHA-256 of all bytes is checked while a file is written, and every read is checked again
(`verified_read.py`), so a flipped bit is found before it is served. Several processes may share the folder
(`packed_folder.py`): each counts what all of them have there, brings what no other is bringing, and evicts nothing that
another holds. The order of eviction is each one's own. Changes run one at a time, in the order in which they were
decided, so that the removal of a victim cannot hit a newer file of the same name.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from storage.buffers import Allocate, allocate
from storage.errors import StorageUnavailable
from storage.files import FULL, NewFile, disk_errors
from storage.ledger import GIANTS_SHARE, Ledger
from storage.packed_folder import Listing, PackedFolder
from storage.policies import EvictionPolicy
from storage.threads import Threads
from storage.verified_read import READERS, Proof, Sums, chunk_sums, read_verified, stamp

_THREADS: Final = 4
_OTHERS: Final = "others"  # what other processes are writing just now; no digest
_FIRST_WAIT_S: Final = 0.01
_LONGEST_WAIT_S: Final = 0.5


class DiskTier:
    """Files are pinned by whoever reads or writes them; `pin` gives one pin, `unpin` takes it back."""

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        giants_share: float = GIANTS_SHARE,
        allocate: Allocate = allocate,
    ) -> None:
        self.ledger = Ledger(max_bytes, policy, giants_share)
        self.refused = 0  # files that found no room: all of it in use, or the disk is full or failing
        self.failures = 0  # removals that the system refused
        self.quarantined = 0
        self._directory = directory
        self._folder = PackedFolder(directory)
        self._allocate = allocate
        self._turn = asyncio.Lock()
        self._threads = Threads(_THREADS, "adapter-disk")
        self._names = Threads(1, "adapter-names")
        self._hashing = ThreadPoolExecutor(READERS, thread_name_prefix="adapter-hash")
        self._sizes: dict[str, int] = {}
        self._writing: set[str] = set()
        self._elsewhere: set[str] = set()  # pinned here because another process holds them
        self._overfull = False  # more is there than the budget: nothing may come until a look finds less
        self._proofs: dict[str, Proof] = {}

    async def open(self) -> None:
        """Counts what is there, oldest use first. Raises StorageUnavailable, StorageFull."""
        with disk_errors(f"adapter folder {self._directory}"):
            await self._names.run(self._folder.open)
            async with self._deciding(to_change=True):
                pass

    def __contains__(self, digest: str) -> bool:
        return digest in self.ledger and digest not in self._writing and digest != _OTHERS

    @property
    def digests(self) -> tuple[str, ...]:
        """The files, as far as this process knows, in the order in which it came to know them."""
        return tuple(digest for digest in self.ledger.keys if digest in self)

    async def pin(self, digest: str) -> bool:
        """Keeps a file from eviction by anybody; False when there is none."""
        with suppress(OSError):
            if digest not in self and await self._names.run(self._folder.changed):
                async with self._deciding(to_change=False):
                    pass
        if digest not in self:
            return False
        self.ledger.pin(digest)
        kept = False
        try:
            kept = await self._names.run(self._folder.hold, digest)
        finally:
            if not kept:
                await self.unpin(digest)
        if not kept and digest in self and not self.ledger.pins(digest):
            self._forget(digest)  # another process took it away, or will
            self._folder.look_again()
        return kept

    async def unpin(self, digest: str) -> None:
        """One user fewer."""
        if digest not in self.ledger:
            return
        doomed = self.ledger.unpin(digest)
        if not self.ledger.pins(digest):
            self._folder.let_go(digest)
        if doomed:
            await self._remove(digest)

    async def doom(self, digest: str) -> None:
        """The file goes with its last user here, or now if it has none."""
        if self.ledger.doom(digest):
            await self._remove(digest)

    async def begin(self, digest: str, size_bytes: int) -> "DiskWrite | None":
        """A file in the making, whose room is taken. None when the disk cannot or should not take it."""
        file, made, handed_over = self._folder.new_file(), False, False
        try:
            with suppress(OSError):
                async with self._deciding(to_change=True):
                    made = await self._make_room(digest, size_bytes) and await self._make(file, digest)
                handed_over = made  # only now: a cancellation may come when the folder is unlocked
        finally:
            if not handed_over:
                await self._give_up(file, digest)
        self.refused += not handed_over
        return DiskWrite(self, file, digest) if handed_over else None

    async def read(self, digest: str) -> memoryview:
        """The whole file, which the caller has pinned, verified. Raises ObjectCorrupt, StorageUnavailable; then the
        file should be dropped.
        """
        with disk_errors(f"adapter {digest} on disk"):
            return await self._threads.run(self._read, digest, self.ledger.size(digest))

    async def drop(self, digest: str) -> None:
        """Forgets a file that turned out bad, in spite of its users, and puts it aside for whoever looks into it."""
        if digest in self.ledger:
            self._forget(digest)
        self.quarantined += 1
        await self._away(self._folder.put_aside, digest)

    @asynccontextmanager
    async def claim(self, digest: str) -> AsyncIterator[bool]:
        """True while this process is the one that brings the file; False after another one has ended bringing it."""
        waited, pause = False, _FIRST_WAIT_S
        try:
            while not await self._try_claim(digest):
                waited = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_WAIT_S)
            yield not waited
        finally:
            await self._names.run(self._folder.unclaim, digest)

    async def aclose(self) -> None:
        """Ends the threads. The files stay."""
        await self._threads.aclose()
        await self._names.aclose()
        await asyncio.to_thread(self._hashing.shutdown)
        self._folder.close()

    @asynccontextmanager
    async def _deciding(self, *, to_change: bool) -> AsyncIterator[None]:
        """Alone with the folder, and with what it holds now. Raises OSError."""
        async with self._turn:
            try:
                listing = await self._names.run(self._folder.lock, to_change=to_change)
                if listing is not None:
                    await self._adopt(listing)
                yield
            finally:
                await self._names.run(self._folder.unlock)

    async def _adopt(self, listing: Listing) -> None:
        """Makes the ledger say what the folder holds."""
        there = {digest for digest, _ in listing.files} | self._writing
        for digest in [each for each in self.ledger.keys if each not in there and not self.ledger.pins(each)]:
            self._forget(digest)
        if _OTHERS in self.ledger:
            self._forget(_OTHERS)
        victims: list[str] = []
        self._overfull = False
        others = listing.incoming_bytes - sum(self._sizes[digest] for digest in self._writing)
        if others > 0:
            evicted = self.ledger.add(_OTHERS, others)
            if evicted is None:
                self._overfull = True
            else:
                self._sizes[_OTHERS] = others
                victims += evicted
        for digest, size_bytes in listing.files:
            if digest not in self.ledger:
                evicted = self.ledger.add(digest, size_bytes)
                self._sizes[digest] = size_bytes
                victims += [digest] if evicted is None else evicted  # None: larger than a budget that has shrunk
                if evicted is not None:
                    self.ledger.unpin(digest)
        if not await self._evict(victims):
            self._overfull = True
        if self._overfull:
            self._folder.look_again()

    async def _make_room(self, digest: str, size_bytes: int) -> bool:
        """Under the folder's lock: takes the file's room in the ledger, and makes it on the disk."""
        if digest in self.ledger or self._overfull:
            return False
        for other in list(self._elsewhere):
            if not await self._names.run(self._folder.is_held_elsewhere, other):
                self._elsewhere.discard(other)
                if other in self.ledger:
                    self.ledger.unpin(other)
        victims = self.ledger.add(digest, size_bytes, must=False)
        if victims is None:
            return False
        self._sizes[digest] = size_bytes
        self._writing.add(digest)
        return await self._evict(victims)

    async def _make(self, file: NewFile, digest: str) -> bool:
        """A disk that is full before its budget is makes room once. False when it cannot. Raises OSError."""
        size_bytes = self._sizes[digest]
        try:
            await self._names.run(file.open, size_bytes)
        except OSError as error:
            if error.errno not in FULL:
                raise
            await self._names.run(file.discard)
            victims = self.ledger.shed(digest)
            if not victims or not await self._evict(victims):
                return False
            await self._names.run(file.open, size_bytes)
        return True

    async def _evict(self, victims: list[str]) -> bool:
        """Removes what the ledger has given up. A file that another process holds stays and counts as in use: others
        go for it. False when that leaves no room.
        """
        while victims:
            stay = await self._names.run(self._folder.evict, victims)
            for gone in set(victims) - set(stay):
                self._sizes.pop(gone, None)
                self._proofs.pop(gone, None)
            victims = []
            for digest in stay:
                evicted = self.ledger.add(digest, self._sizes[digest])
                if evicted is None:
                    self._folder.look_again()
                    return False
                self._elsewhere.add(digest)
                victims += evicted
        return True

    async def _give_up(self, file: NewFile, digest: str) -> None:
        """Both names go, since a cancellation may come just after the rename; and its room only when they have gone."""
        begun = digest in self._writing
        try:
            self.failures += await self._names.run(self._clear, file, digest if begun else None)
        finally:
            if begun:
                self._forget(digest)

    def _clear(self, file: NewFile, digest: str | None) -> int:
        """In a thread: how many names stayed, which the next look sees."""
        failures = 0 if digest is None else int(not self._folder.remove(digest))
        try:
            file.discard()
        except OSError:
            failures += 1
        if failures:
            self._folder.look_again()
        return failures

    def _read(self, digest: str, size_bytes: int) -> memoryview:
        fd = self._folder.descriptor(digest)
        if fd is None:
            raise StorageUnavailable(f"adapter {digest} is not on disk any more")
        data, self._proofs[digest] = read_verified(
            fd, size_bytes, digest, self._proofs.get(digest), self._allocate, self._hashing
        )
        return data

    async def _remove(self, digest: str) -> None:
        self._sizes.pop(digest, None)
        self._proofs.pop(digest, None)
        self._folder.let_go(digest)
        await self._away(self._folder.remove, digest)

    async def _away(self, work: Callable[[str], bool], digest: str) -> None:
        """Does away with a file that the ledger has forgotten. If it stays, the next look finds it."""
        gone = False
        try:
            with suppress(OSError):
                async with self._deciding(to_change=True):
                    gone = await self._names.run(work, digest)
        finally:
            if not gone:
                self.failures += 1
                self._folder.look_again()

    def _forget(self, digest: str) -> None:
        self.ledger.remove(digest)
        self._writing.discard(digest)
        self._elsewhere.discard(digest)
        self._sizes.pop(digest, None)
        self._proofs.pop(digest, None)
        self._folder.let_go(digest)

    async def _try_claim(self, digest: str) -> bool:
        try:
            return await self._names.run(self._folder.claim, digest)
        except OSError:
            return True  # a disk that takes nothing: everybody brings it for himself


class DiskWrite:
    """One file on its way in, pinned. `append`, then `publish` or `abandon`; a failed `append` abandons by itself."""

    def __init__(self, tier: DiskTier, file: NewFile, digest: str) -> None:
        self._tier, self._file, self._digest = tier, file, digest

    def append(self, chunk: bytes | bytearray | memoryview) -> None:
        """In a thread. Raises OSError."""
        self._file.write(chunk)

    async def publish(self, data: memoryview | None = None) -> bool:
        """The bytes have been checked: the file gets its name, and stays pinned. False when the disk refuses, or
        another process took it away at once. `data`: the same bytes in memory, to compute their sums from.
        """
        tier, published, done = self._tier, False, False
        try:
            with suppress(OSError):
                sums = None if data is None else await tier._threads.run(chunk_sums, data, tier._hashing)
                await tier._threads.run(self._file.sync)
                async with tier._deciding(to_change=True):
                    await tier._names.run(tier._folder.publish, self._file, self._digest)
                    published = await tier._names.run(tier._folder.hold, self._digest)
                if published and sums is not None:
                    self._prove(sums)
                done = published
        finally:
            if done:
                tier._writing.discard(self._digest)
            else:
                await tier._give_up(self._file, self._digest)
        tier.refused += not done
        return done

    def _prove(self, sums: Sums) -> None:
        """Raises OSError."""
        fd = self._tier._folder.descriptor(self._digest)
        if fd is not None:
            self._tier._proofs[self._digest] = Proof(stamp(fd), sums)

    async def abandon(self, *, corrupt: bool = False) -> None:
        """Nothing is kept; of corrupt bytes a copy is put aside."""
        tier = self._tier
        if corrupt:
            tier.quarantined += 1
            with suppress(OSError):
                await tier._threads.run(tier._folder.put_new_aside, self._file, self._digest)
        await tier._give_up(self._file, self._digest)
