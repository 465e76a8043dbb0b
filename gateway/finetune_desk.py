"""What every change to a finetune goes through: its locks, a fresh look at its row, the removal of what it leaves.

    changing = finetune's lock > account's lock > fresh row > (the change) > resolver told
    removing = the same with a scratch folder: keys noted first, rows next, objects and tiers last

`Finetunes` and `FinetuneVersions` are the operations; both stand at this one desk, so that they exclude each other.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import msgspec

from gateway import finetune_rows as rows
from gateway.adapter_resolver import AdapterResolver
from gateway.adapter_uses import AdapterUses
from gateway.errors import FinetuneInUse, ObjectNotFound
from gateway.finetune_records import Finetune, Version
from gateway.ingest.reserve import Reserve
from gateway.ingest.retirement import Forget, Retirement, Weights
from gateway.ingest.spool import Scratch, Spool
from gateway.keyed_locks import KeyedLocks
from gateway.names import printable
from storage.database import Database
from storage.errors import StorageError
from storage.objects.base import ObjectStore
from storage.threads import finish

WhenInUse = Literal["drain", "refuse"]


class Removed(NamedTuple):
    """What was removed, and how many answers under way still end with it."""

    finetune: Finetune
    num_in_use: int


class FinetuneDesk:
    """State: what is being validated just now. Everything else is in the parts that it holds together."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        spool: Spool,
        reserve: Reserve,
        forget: Forget,
        now: Callable[[], float],
    ) -> None:
        self.database, self.objects, self.spool, self.reserve, self.now = database, objects, spool, reserve, now
        self.locks = KeyedLocks()
        self.uses = AdapterUses(now)
        self.resolver = AdapterResolver(database)
        self.retirement = Retirement(database, objects, spool, self.uses, self.locks, forget)
        self.validating: set[tuple[str, int]] = set()

    async def get(self, account_id: str, reference: str) -> Finetune:
        """By id, else by name, as it is seen now. Raises ObjectNotFound."""
        async with self.database.read() as connection:
            finetune = await rows.find(connection, account_id, reference)
        if finetune is None:
            raise ObjectNotFound(f"there is no finetune {printable(reference)!r} in this account")
        return self.seen(finetune)

    async def uses_digest(self, digest: str) -> bool:
        """Whether a version of anybody's has these weights."""
        async with self.database.read() as connection:
            return await rows.uses_digest(connection, digest)

    def seen(self, finetune: Finetune) -> Finetune:
        """With what is known but not written down: versions under validation, uses of the last half minute."""
        return msgspec.structs.replace(
            finetune, versions=tuple(self._seen(finetune.id, version) for version in finetune.versions)
        )

    def _seen(self, finetune_id: str, version: Version) -> Version:
        requests, last_used_at = self.uses.unwritten(finetune_id, version.number)
        return msgspec.structs.replace(
            version,
            status="validating" if (finetune_id, version.number) in self.validating else version.status,
            requests=version.requests + requests,
            last_used_at=last_used_at or version.last_used_at,
        )

    @asynccontextmanager
    async def changing(self, finetune: Finetune) -> AsyncIterator[Finetune]:
        """Alone with the finetune, and as it is now. Raises ObjectNotFound."""
        async with self.locks.of(finetune.id), self.locks.of(finetune.account_id):
            try:
                yield await self.get(finetune.account_id, finetune.id)
            finally:
                self.resolver.forget(finetune.account_id)

    @asynccontextmanager
    async def removing(self, finetune: Finetune) -> AsyncIterator[tuple[Finetune, "Removal"]]:
        """As `changing`, with what is needed to take something away. Raises ObjectNotFound, the errors of storage."""
        async with self.spool.scratch() as scratch, self.changing(finetune) as current:
            removal = Removal(self, current, scratch)
            try:
                yield current, removal
            finally:
                self.resolver.forget(finetune.account_id)
                await finish(self.retirement.settle(finetune.account_id, scratch, removal.weights))

    async def save(self, finetune: Finetune, **values: Any) -> None:
        """Changes columns. Raises ObjectNotFound when it was deleted meanwhile."""
        try:
            async with self.database.write() as connection:
                if not await rows.save(connection, finetune.id, **values, modified_at=self.now()):
                    raise gone(finetune)
        finally:
            self.resolver.forget(finetune.account_id)


class Removal:
    """One removal. `weights`: those whose rows are gone."""

    def __init__(self, desk: FinetuneDesk, finetune: Finetune, scratch: Scratch) -> None:
        self._desk, self._finetune, self._scratch = desk, finetune, scratch
        self.weights: list[Weights] = []

    async def take(self, versions: Sequence[Version], when_in_use: WhenInUse, *, whole: bool) -> Removed:
        """Removes rows: the versions', or the whole finetune's. Raises FinetuneInUse, ObjectNotFound."""
        desk, finetune = self._desk, self._finetune
        numbers = tuple(version.number for version in versions)
        await self._scratch.note(key for version in versions for key in version.keys)
        # No await between the look and the close: who begins after this finds nothing.
        num_in_use = desk.uses.count(finetune.id, numbers)
        if num_in_use and when_in_use == "refuse":
            raise FinetuneInUse(
                f"{num_in_use} requests are being answered with finetune {finetune.name!r}; try again when they have "
                "ended, or delete with when_in_use=drain",
                retry_after_s=5,
            )
        desk.uses.close(finetune.id, numbers)
        try:
            async with desk.database.write() as connection:
                if whole:
                    found = await rows.remove(connection, finetune.id)
                else:
                    found = await rows.remove_versions(connection, finetune.id, numbers) > 0
                if not found:
                    raise gone(finetune)
        except BaseException:
            # A cancellation may come when the commit is under way, which then runs to its end.
            if await finish(self._are_there(numbers)):
                desk.uses.reopen(finetune.id, numbers)
            else:
                self._note_weights(versions)
            raise
        self._note_weights(versions)
        return Removed(finetune, num_in_use)

    def _note_weights(self, versions: Sequence[Version]) -> None:
        self.weights += [Weights(self._finetune.model, v.digest) for v in versions if v.digest is not None]

    async def _are_there(self, numbers: tuple[int, ...]) -> bool:
        try:
            found = await self._desk.get(self._finetune.account_id, self._finetune.id)
        except ObjectNotFound:
            return False
        except StorageError:
            return True
        return any(found.version(number) for number in numbers)


def gone(finetune: Finetune) -> ObjectNotFound:
    """It was deleted while something else was done with it."""
    return ObjectNotFound(f"finetune {finetune.name!r} was deleted meanwhile")


def version_of(finetune: Finetune, number: int) -> Version:
    """Raises ObjectNotFound."""
    version = finetune.version(number)
    if version is None:
        raise ObjectNotFound(f"finetune {finetune.name!r} has no version {number}")
    return version
