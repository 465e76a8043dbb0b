"""Finetunes: an account's named adapters, from creation over uploads and versions to deletion.

    version: pending (files missing) > validating > ready (both files fit the base and are packed), or failed (the last
    upload was refused; its reasons stay readable, what was accepted before stays, and a good file makes it go on).

A ready version is never changed: replacing is opening a new version, which becomes what the name means once it is
ready. Answers under way end on the version they began with. Rows are the truth; objects without a row are removed by
whoever left them, after their last user (`ingest/retirement.py`), or at the next start. Uploads and removals of one
finetune exclude each other, as do changes to an account's objects, because versions of an account may share one packed
file.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from gateway import finetune_rows as rows
from gateway.catalog import Catalog, CatalogModel
from gateway.errors import BadInput, LoraNotSupported, ObjectNotFound
from gateway.finetune_desk import FinetuneDesk, Removed, WhenInUse, version_of
from gateway.finetune_records import Finetune, StoredFile, Version
from gateway.finetune_versions import FinetuneVersions, upload_target
from gateway.ids import PUBLIC_ACCOUNT_ID, new_finetune_id
from gateway.ingest.packed_keys import digest_of
from gateway.ingest.receive import Asset
from gateway.ingest.reserve import Reserve
from gateway.ingest.retirement import Forget, Weights
from gateway.ingest.spool import Scratch, Spool
from gateway.ingest.upload import Upload, UploadSlots
from gateway.messages import Identity, ResolvedAdapter
from gateway.names import checked_name, likeness, printable
from gateway.settings import Adapters
from gateway.wire.multipart import Part
from storage.database import Database
from storage.errors import AlreadyExists, StorageError
from storage.objects.base import ObjectStore
from storage.threads import finish

logger = logging.getLogger(__name__)
MAX_DESCRIPTION_CHARS: Final = 4096
PUBLIC_PREFIX: Final = "cf-public-"
USES_WRITTEN_EVERY_S: Final = 30.0


async def _nobody(model: str, digest: str) -> None:
    """There is no runtime to tell."""


class Finetunes:
    """Call `sweep` once before serving and `start` then; `aclose` at the end."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        catalog: Catalog,
        limits: Adapters,
        spool: Path,
        *,
        forget: Forget = _nobody,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`spool` is a folder of this process alone, and a file `reserve` beside it; `forget` drops weights from every
        tier of a model's runtime.

        Raises storage's StorageUnavailable when the folder cannot be made.
        """
        self._catalog = catalog
        self._limits = limits
        self._slots = UploadSlots()
        self._swept: list[Scratch] = []
        self._desk = FinetuneDesk(database, objects, Spool(spool), Reserve(spool.with_name("reserve")), forget, now)
        self.versions = FinetuneVersions(self._desk)
        self.uses = self._desk.uses
        self._writer: asyncio.Task[None] | None = None

    async def create(self, account_id: str, model: str, name: str, description: str | None = None) -> Finetune:
        """A new finetune with an empty version 1. Raises UnknownModel, LoraNotSupported, BadInput, ObjectNotFound."""
        base = self._base(model)
        public = account_id == PUBLIC_ACCOUNT_ID
        name = _checked_name(name, public=public)
        now = self._desk.now()
        finetune = Finetune(
            id=new_finetune_id(),
            account_id=account_id,
            name=name,
            model=base.name,
            description=_checked_description(description),
            public=public,
            pinned=False,
            last_version=1,
            created_at=now,
            modified_at=now,
            versions=(Version(1, "pending", True, now, now),),
        )
        taken = BadInput(f"a finetune named {name!r} exists already; choose another name or delete it", param="name")
        try:
            async with self._desk.database.write() as connection:
                if public:
                    await rows.make_account(connection, account_id, now)
                if not await rows.lock_account(connection, account_id):
                    raise ObjectNotFound(f"there is no account {account_id!r}")
                used = await rows.names(connection, account_id)
                if any(likeness(other) == likeness(name) for other in used):
                    raise taken
                if len(used) >= self._limits.max_per_account and not public:
                    raise BadInput(f"the account has {len(used)} finetunes, the most it can have; delete one first")
                await rows.add(connection, finetune)
        except AlreadyExists as error:
            raise taken from error
        finally:
            self._desk.resolver.forget(account_id)
        return finetune

    async def resolve(
        self,
        identity: Identity,
        model: CatalogModel,
        lora: str,
        request_id: str | None = None,
        session: str | None = None,
    ) -> ResolvedAdapter:
        """The adapter that `lora` means to this caller on this model (`adapter_resolver.py`)."""
        return await self._desk.resolver.resolve(identity, model, lora, request_id, session)

    async def get(self, account_id: str, reference: str) -> Finetune:
        """By id, else by name. Raises ObjectNotFound."""
        return await self._desk.get(account_id, reference)

    async def list_finetunes(self, account_id: str, limit: int | None = None, offset: int = 0) -> list[Finetune]:
        """The account's finetunes, oldest first."""
        async with self._desk.database.read() as connection:
            return [self._desk.seen(item) for item in await rows.list_all(connection, account_id, limit, offset)]

    async def count(self, account_id: str) -> int:
        """How many finetunes the account has."""
        async with self._desk.database.read() as connection:
            return await rows.count(connection, account_id)

    async def find_for_operator(self, reference: str) -> Finetune:
        """By "account id/name", by id, or a public one by its name, whosever it is. Raises ObjectNotFound."""
        account_id, slash, name = reference.partition("/")
        if slash:
            return await self.get(account_id, name)
        if reference.startswith(PUBLIC_PREFIX):
            return await self.get(PUBLIC_ACCOUNT_ID, reference)
        async with self._desk.database.read() as connection:
            found = await rows.find_anywhere(connection, reference)
        if found is None:
            raise ObjectNotFound(
                f"there is no finetune {printable(reference)!r}; name it as ACCOUNT_ID/NAME, by its id, or as "
                f"{PUBLIC_PREFIX}…"
            )
        return self._desk.seen(found)

    async def pin(self, finetune: Finetune, pinned: bool) -> None:
        """Whether the operator keeps it in memory. Raises ObjectNotFound."""
        await self._desk.save(finetune, pinned=pinned)

    async def list_pinned(self) -> list[Finetune]:
        """Every account's pinned finetunes."""
        async with self._desk.database.read() as connection:
            return await rows.list_pinned(connection)

    async def list_recent(self, limit: int) -> list[Finetune]:
        """Every account's finetunes that were used last."""
        async with self._desk.database.read() as connection:
            return await rows.list_recent(connection, limit)

    async def owners(self, digests: list[str]) -> dict[str, list[tuple[str, str, int]]]:
        """Who has weights of these digests: (account, name, version)."""
        async with self._desk.database.read() as connection:
            return await rows.by_digest(connection, digests)

    async def trace(self, model: str, limit: int) -> dict[str, Any]:
        """What the log says of requests with adapters, for `lorikeet cache simulate`."""
        async with self._desk.database.read() as connection:
            digests, known = await rows.trace(connection, model, limit)
        return {"requests": digests, "adapters": known}

    async def describe(self, account_id: str, reference: str, description: str | None) -> Finetune:
        """Sets the description. Raises ObjectNotFound, BadInput."""
        finetune = await self.get(account_id, reference)
        await self._desk.save(finetune, description=_checked_description(description))
        return await self.get(account_id, finetune.id)

    async def upload(
        self, account_id: str, reference: str, parts: AsyncIterator[Part], number: int | None = None
    ) -> tuple[Finetune, Version]:
        """Takes one of the two files of a version; with the second one, checks and packs the adapter.

        Without a `number` it is the version in the making of a finetune that has none ready yet. A file that a ready
        version has already, byte for byte, is taken again and changes nothing: an answer may have got lost.

        Raises ObjectNotFound, BadInput (with `reasons` when the adapter breaks rules), RequestTooLarge, OverCapacity
        and the errors of storage. Nothing of a refused file is kept; what was stored before stays.
        """
        desk = self._desk
        finetune = await desk.get(account_id, reference)
        number = upload_target(finetune, number).number
        upload = Upload(desk.database, desk.objects, self._base(finetune.model), self._limits, self.uses, desk.now)
        async with self._slots.take(account_id), desk.spool.scratch() as scratch:
            asset = await upload.receive(parts, scratch)
            async with desk.locks.of(finetune.id):
                finetune = await desk.get(account_id, finetune.id)
                version = upload_target(finetune, number)
                if version.status == "ready":
                    _check_same(finetune, version, asset)
                    return finetune, version
                desk.validating.add((finetune.id, number))
                try:
                    prepared = await upload.prepare(finetune, version, asset, scratch)
                    async with desk.locks.of(account_id):
                        removed: list[Weights] = []
                        try:
                            removed += await upload.store(finetune, version, prepared, scratch)
                        finally:
                            desk.resolver.forget(account_id)
                            await finish(desk.retirement.settle(account_id, scratch, removed))
                finally:
                    desk.validating.discard((finetune.id, number))
                    desk.resolver.forget(account_id)
                finetune = await desk.get(account_id, finetune.id)
                return finetune, version_of(finetune, number)

    def read_file(self, file: StoredFile) -> AsyncIterator[bytes]:
        """The bytes of an uploaded file. Raises the errors of storage."""
        return self._desk.objects.get(file.object_key)

    async def delete(self, account_id: str, reference: str, when_in_use: WhenInUse = "drain") -> Removed:
        """Removes a finetune with all versions; its name is free at once. Raises ObjectNotFound, FinetuneInUse.

        Requests that run already finish on their weights; objects and tiers are freed after the last of them.
        """
        found = await self.get(account_id, reference)

        async def remove() -> Removed:
            async with self._desk.removing(found) as (finetune, removal):
                return await removal.take(finetune.versions, when_in_use, whole=True)

        return await self._desk.reserve.even_if_full(remove)

    async def sweep(self) -> int:
        """Removes what an earlier process left behind when it was killed; returns the number of its open tasks.

        What storage refuses to delete just now stays noted for the next start: serving does not wait for tidiness. So
        do weights that runtimes may still hold, until `forget_swept`.
        """
        if not await self._desk.reserve.make():
            logger.warning("no room can be set aside: on a full disk nothing can be removed until some is free")
        leftovers = await self._desk.spool.leftovers()
        for scratch in leftovers:
            try:
                await self._desk.retirement.settle("", scratch)
                if any(map(digest_of, scratch.noted)):
                    self._swept.append(scratch)
                else:
                    await self._desk.spool.discard(scratch)
            except StorageError as error:
                logger.warning("left-over objects of %s cannot be removed yet: %s", scratch.folder.name, error)
        return len(leftovers)

    async def forget_swept(self, forget: Callable[[str], Awaitable[None]]) -> None:
        """What `sweep` has removed leaves the runtimes' tiers too, by `forget`, which is told digests; what that raises
        is raised, and may be tried again.

        An earlier process may have been killed between a row's end and the word to the runtimes.
        """
        while self._swept:
            scratch = self._swept[-1]
            try:
                for digest in filter(None, map(digest_of, scratch.noted)):
                    if not await self._desk.uses_digest(digest):
                        await forget(digest)
                await self._desk.spool.discard(scratch)
            except StorageError as error:
                logger.warning("what %s left in the tiers stays until the next start: %s", scratch.folder.name, error)
            self._swept.pop()

    def start(self) -> None:
        """From now on uses are written down every half minute."""
        self._writer = asyncio.create_task(self._write_uses(), name="adapter-uses")

    async def aclose(self) -> None:
        """Writes down the last uses; removals that wait for answers are left to the next start."""
        if self._writer is not None:
            self._writer.cancel()
            await finish(asyncio.wait({self._writer}))
        await self._desk.retirement.aclose()
        await finish(self.write_uses())

    async def write_uses(self) -> None:
        """Adds to the rows what is not written down yet. A store that is away loses nothing: it is tried again."""
        if taken := self.uses.take_unwritten():
            try:
                async with self._desk.database.write() as connection:
                    await rows.note_uses(connection, taken)
            except StorageError as error:
                logger.warning("uses of adapters are not written down yet: %s", error)
                self.uses.put_back(taken)

    async def _write_uses(self) -> None:
        while True:
            await asyncio.sleep(USES_WRITTEN_EVERY_S)
            await self.write_uses()

    def _base(self, model: str) -> CatalogModel:
        base = self._catalog.get(model)
        if not base.supports_lora:
            raise LoraNotSupported(
                f"model {base.name} does not support LoRA; the list of models shows which do", param="model"
            )
        return base


def _checked_name(name: str, *, public: bool) -> str:
    name = checked_name(name, "the finetune's name")
    if public and not name.startswith(PUBLIC_PREFIX):
        raise BadInput(f"the name of a public finetune must begin with {PUBLIC_PREFIX}", param="name")
    if not public and (likeness(name).startswith(PUBLIC_PREFIX) or likeness(name) == "public"):
        raise BadInput(f"names {PUBLIC_PREFIX}… and public are reserved; choose another name", param="name")
    if _is_uuid(name):
        raise BadInput("the finetune's name must not have the form of an id; choose another name", param="name")
    return name


def _checked_description(description: str | None) -> str:
    text = description or ""
    if len(text) > MAX_DESCRIPTION_CHARS or "\0" in text:
        raise BadInput(f"description must have at most {MAX_DESCRIPTION_CHARS} characters", param="description")
    return text


def _check_same(finetune: Finetune, version: Version, asset: Asset) -> None:
    stored = version.file(asset.file_name)
    if stored is None or stored.sha256 != asset.file.sha256:
        raise BadInput(
            f"version {version.number} of finetune {finetune.name!r} is complete and its files cannot be changed; open "
            "a new version (POST …/versions) and upload both files to it, or create a new finetune"
        )


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name.lower()
    except ValueError:
        return False
