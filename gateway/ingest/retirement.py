"""What becomes of objects that no row needs any more, and of weights that nobody will ask for again.

    row removed > nobody answers with them: forgotten by the runtime, objects deleted
                > somebody does: the same, after their last byte (a task per removal; notes on disk in the meantime)

Notes of the keys lie in the removal's scratch folder from before anything was touched until everything is done, so a
process that is killed half-way, or a store that is away, leaves work for the next start and never an orphan.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from gateway import finetune_rows as rows
from gateway.adapter_uses import AdapterUses
from gateway.ingest.spool import Scratch, Spool
from gateway.keyed_locks import KeyedLocks
from storage.database import Database
from storage.errors import StorageError
from storage.objects.base import ObjectStore
from storage.threads import finish

logger = logging.getLogger(__name__)

# Told a model and a digest: drop those weights from every tier. Never raises.
Forget = Callable[[str, str], Awaitable[None]]


class Weights(NamedTuple):
    """Weights of a version that was removed."""

    model: str
    digest: str


class Retirement:
    """`settle` under the account's lock; `aclose` at the end."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        spool: Spool,
        uses: AdapterUses,
        locks: KeyedLocks,
        forget: Forget,
    ) -> None:
        self._database, self._objects, self._spool = database, objects, spool
        self._uses, self._locks, self._forget = uses, locks, forget
        self._draining: set[asyncio.Task[None]] = set()

    async def settle(self, account_id: str, scratch: Scratch, removed: Sequence[Weights] = ()) -> None:
        """Deletes the noted objects that no row refers to, and has removed weights forgotten.

        While an answer may still read one of them, all of it is left to a task of its own, and the notes stay. Raises
        the errors of storage; then the notes stay too, for the next start.
        """
        if any(self._uses.uses_object(key) for key in await self._orphans(scratch)):
            task = asyncio.create_task(self._drain(account_id, scratch, removed), name="retire adapter")
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
            return
        await self._finish(scratch, removed)

    @property
    def num_draining(self) -> int:
        """Removals that wait for answers under way."""
        return len(self._draining)

    async def aclose(self) -> None:
        """Gives up waiting; what is noted is done at the next start."""
        tasks = list(self._draining)
        for task in tasks:
            task.cancel()
        if tasks:
            await finish(asyncio.wait(tasks))

    async def _drain(self, account_id: str, scratch: Scratch, removed: Sequence[Weights]) -> None:
        try:
            while True:
                # A look at the rows each time: an upload may have made one of the objects its own meanwhile.
                async with self._locks.of(account_id):
                    busy = [key for key in await self._orphans(scratch) if self._uses.uses_object(key)]
                    if not busy:
                        await finish(self._finish(scratch, removed))
                        break
                await self._uses.unused(busy[0])
            await self._spool.discard(scratch)
        except StorageError as error:
            logger.warning("objects of a removed adapter stay until the next start: %s", error)

    async def _finish(self, scratch: Scratch, removed: Sequence[Weights]) -> None:
        for weights in removed:
            async with self._database.read() as connection:
                used = await rows.uses_digest(connection, weights.digest)
            if not used:
                await self._forget(weights.model, weights.digest)
        for key in await self._orphans(scratch):
            await self._objects.delete(key)
        scratch.settled = True

    async def _orphans(self, scratch: Scratch) -> list[str]:
        """The noted keys that no row refers to."""
        async with self._database.read() as connection:
            return [key for key in scratch.noted if not await rows.refers_to_object(connection, key)]
