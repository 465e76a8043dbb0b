"""Finetunes: an account's named adapters, from creation over the two uploads to what a request resolves.

States: pending (files missing) > ready (both files fit the base and are packed), or failed (the last upload was
refused; its reasons stay readable, what was accepted before stays, and a good file makes it pending or ready). A ready
finetune is never changed. Rows are the truth; objects without a row are removed by whoever left them, or at the next
start (`ingest/spool.py`). Uploads and deletions of one finetune exclude each other, as do changes to an account's
objects, because two finetunes of an account may share one packed file.

`resolve` is on the request path and answers from a bounded cache that every change to the account empties.
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from gateway import finetune_rows as rows
from gateway.catalog import Catalog, CatalogModel
from gateway.errors import (
    BadInput,
    FinetuneIncomplete,
    FinetuneNotFound,
    LoraNotSupported,
    ObjectNotFound,
)
from gateway.finetune_rows import Finetune
from gateway.ids import new_finetune_id
from gateway.ingest.spool import Scratch, Spool
from gateway.ingest.upload import Upload, UploadSlots
from gateway.keyed_locks import KeyedLocks
from gateway.messages import Identity, ResolvedAdapter
from gateway.names import checked_name, likeness, printable
from gateway.settings import Adapters
from gateway.wire.multipart import Part
from storage.database import Database
from storage.errors import AlreadyExists, StorageError
from storage.objects.base import ObjectStore
from storage.threads import finish

logger = logging.getLogger(__name__)
MAX_CACHED: Final = 20_000
MAX_DESCRIPTION_CHARS: Final = 4096
PUBLIC_PREFIX: Final = "cf-public-"


class Finetunes:
    """All operations on finetunes. Call `sweep` once before serving."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        catalog: Catalog,
        limits: Adapters,
        spool: Path,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`spool` is a folder of this process alone. Raises storage's StorageUnavailable when it cannot be made."""
        self._database = database
        self._objects = objects
        self._catalog = catalog
        self._limits = limits
        self._spool = Spool(spool)
        self._now = now
        self._slots = UploadSlots()
        self._locks = KeyedLocks()
        self._ready: LRUCache[tuple[str, str], Finetune] = LRUCache(MAX_CACHED)
        self._generation = 0

    async def create(self, account_id: str, model: str, name: str, description: str | None = None) -> Finetune:
        """A new, empty finetune. Raises UnknownModel, LoraNotSupported, BadInput, ObjectNotFound."""
        base = self._base(model)
        name = checked_name(name, "the finetune's name")
        if likeness(name).startswith(PUBLIC_PREFIX) or likeness(name) == "public":
            raise BadInput(f"names {PUBLIC_PREFIX}… and public are reserved; choose another name", param="name")
        if _is_uuid(name):
            raise BadInput("the finetune's name must not have the form of an id; choose another name", param="name")
        description = description or ""
        if len(description) > MAX_DESCRIPTION_CHARS or "\0" in description:
            raise BadInput(f"description must have at most {MAX_DESCRIPTION_CHARS} characters", param="description")
        now = self._now()
        finetune = Finetune(new_finetune_id(), account_id, name, base.name, description, "pending", now, now)
        taken = BadInput(f"a finetune named {name!r} exists already; choose another name or delete it", param="name")
        try:
            async with self._database.write() as connection:
                if not await rows.lock_account(connection, account_id):
                    raise ObjectNotFound(f"there is no account {account_id!r}")
                used = await rows.names(connection, account_id)
                if any(likeness(other) == likeness(name) for other in used):
                    raise taken
                if len(used) >= self._limits.max_per_account:
                    raise BadInput(f"the account has {len(used)} finetunes, the most it can have; delete one first")
                await rows.add(connection, finetune)
        except AlreadyExists as error:
            raise taken from error
        return finetune

    async def list_finetunes(self, account_id: str) -> list[Finetune]:
        """The account's finetunes, oldest first; their `files` are not filled in."""
        async with self._database.read() as connection:
            return await rows.list_all(connection, account_id)

    async def get(self, account_id: str, reference: str) -> Finetune:
        """By id, else by name. Raises ObjectNotFound."""
        async with self._database.read() as connection:
            finetune = await rows.find(connection, account_id, reference)
        if finetune is None:
            raise ObjectNotFound(f"there is no finetune {printable(reference)!r} in this account")
        return finetune

    async def upload(self, account_id: str, reference: str, parts: AsyncIterator[Part]) -> Finetune:
        """Takes one of the two files; with the second one, checks and packs the adapter.

        Raises ObjectNotFound, BadInput (with `reasons` when the adapter breaks rules), RequestTooLarge, OverCapacity
        and the errors of storage. Nothing of a refused file is kept; what was stored before stays.
        """
        finetune = await self.get(account_id, reference)
        base = self._base(finetune.model)
        _open_for_upload(finetune)
        upload = Upload(self._database, self._objects, base, self._limits, self._now)
        async with self._slots.take(account_id), self._spool.scratch() as scratch:
            asset = await upload.receive(parts, scratch)
            async with self._locks.of(finetune.id):
                finetune = await self.get(account_id, finetune.id)
                _open_for_upload(finetune)
                try:
                    prepared = await upload.prepare(finetune, asset, scratch)
                    async with self._locks.of(account_id):
                        try:
                            await upload.store(finetune, prepared, scratch)
                        finally:
                            await finish(self._settle(scratch))
                finally:
                    self._forget(account_id)
                return await self.get(account_id, finetune.id)

    async def delete(self, account_id: str, reference: str) -> tuple[Finetune, str | None]:
        """Deletes rows and objects. Returns what it was, and its digest if no other finetune has the same weights.

        Raises ObjectNotFound and the errors of storage. Requests that run already finish on the old weights.
        """
        finetune = await self.get(account_id, reference)
        async with self._locks.of(finetune.id), self._locks.of(account_id), self._spool.scratch() as scratch:
            finetune = await self.get(account_id, finetune.id)
            keys = [file.object_key for file in finetune.files]
            try:
                await scratch.note([*keys, finetune.object_key] if finetune.object_key else keys)
                async with self._database.write() as connection:
                    if not await rows.remove(connection, finetune.id):
                        raise ObjectNotFound(f"there is no finetune {printable(reference)!r} in this account")
                    shared = finetune.digest is not None and await rows.uses_digest(connection, finetune.digest)
            finally:
                self._forget(account_id)
                await finish(self._settle(scratch))
        return finetune, None if shared else finetune.digest

    async def resolve(
        self, identity: Identity, model: CatalogModel, lora: str, request_id: str | None = None
    ) -> ResolvedAdapter:
        """The adapter that `lora` (id, else name) means to this caller on this model.

        Raises FinetuneNotFound, FinetuneIncomplete, BadInput when it belongs to another model.
        """
        key = (identity.account_id, lora)
        finetune = self._ready.get(key)
        if finetune is None:
            finetune = await self._look_up(key, request_id)
        if finetune.model != model.name:
            raise BadInput(
                f"finetune {finetune.name!r} was made for {finetune.model}; use it with that model", param="lora"
            )
        if finetune.status != "ready":
            raise FinetuneIncomplete(_incomplete(finetune), param="lora", reasons=finetune.reasons)
        assert finetune.digest is not None, "a ready finetune has been packed"
        assert finetune.object_key is not None, "a ready finetune has been stored"
        return ResolvedAdapter(
            finetune_id=finetune.id,
            name=finetune.name,
            digest=finetune.digest,
            object_key=finetune.object_key,
            size_bytes=finetune.size_bytes or 0,
            rank=finetune.rank or 0,
        )

    async def sweep(self) -> int:
        """Removes what an earlier process left behind when it was killed; returns the number of its open tasks.

        What storage refuses to delete just now stays noted for the next start: serving does not wait for tidiness.
        """
        leftovers = await self._spool.leftovers()
        for scratch in leftovers:
            try:
                await self._settle(scratch)
                await self._spool.discard(scratch)
            except StorageError as error:
                logger.warning("left-over objects of %s cannot be removed yet: %s", scratch.folder.name, error)
        return len(leftovers)

    def _base(self, model: str) -> CatalogModel:
        base = self._catalog.get(model)
        if not base.supports_lora:
            raise LoraNotSupported(
                f"model {base.name} does not support LoRA; the list of models shows which do", param="model"
            )
        return base

    async def _look_up(self, key: tuple[str, str], request_id: str | None) -> Finetune:
        account_id, lora = key
        generation = self._generation
        found = None
        if len(lora) <= 256:
            async with self._database.read() as connection:
                found = await rows.find(connection, account_id, lora)
        if found is None:
            raise FinetuneNotFound(
                f"AiError: AiError: Finetune {printable(lora)} not found ({request_id or uuid.uuid4()})", param="lora"
            )
        if found.status == "ready" and generation == self._generation:
            self._ready[key] = found
        return found

    def _forget(self, account_id: str) -> None:
        self._generation += 1
        for key in [key for key in self._ready if key[0] == account_id]:
            self._ready.pop(key, None)

    async def _settle(self, scratch: Scratch) -> None:
        """Deletes the noted objects that no row refers to; until that worked, the notes stay for the next start."""
        for key in scratch.noted:
            async with self._database.read() as connection:
                kept = await rows.refers_to_object(connection, key)
            if not kept:
                await self._objects.delete(key)
        scratch.settled = True


def _open_for_upload(finetune: Finetune) -> None:
    if finetune.status == "ready":
        raise BadInput(
            f"finetune {finetune.name!r} is complete and its files cannot be changed; create a new finetune, or "
            "delete this one first"
        )


def _incomplete(finetune: Finetune) -> str:
    text = f"Finetune {finetune.name} is missing required files"
    if finetune.missing:
        text += f": upload {' and '.join(finetune.missing)}"
    if finetune.reasons:
        text += f"; the last upload was refused: {'; '.join(finetune.reasons)}"
    return text


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name.lower()
    except ValueError:
        return False
