"""One file on its way into a finetune: receive, check, store. `Finetunes` holds the locks and calls the three in order.

Shape: `receive` spools the body; `prepare` checks the file alone, or together with the other one if that is there,
and packs; `store` writes objects, then the rows that make them visible. A file that breaks a rule marks the finetune
as failed with its reasons and raises them; nothing of it is stored.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

from gateway import finetune_rows as rows
from gateway.adapter_uses import AdapterUses
from gateway.catalog import CatalogModel
from gateway.errors import BadInput, ObjectNotFound, OverCapacity, StorageUnavailable
from gateway.finetune_records import DEFAULT_ALIAS, Finetune, Pointer, StoredFile, Version
from gateway.finetune_versions import superseded
from gateway.ingest.adapter import (
    ADAPTER_FILES,
    CONFIG_FILE,
    AdapterRefused,
    PackedFile,
    check_adapter,
    check_config_file,
    check_weights_file,
    pack,
)
from gateway.ingest.packed_keys import packed_key_of
from gateway.ingest.receive import Asset, receive_asset
from gateway.ingest.retirement import Weights
from gateway.ingest.spool import Scratch, SpooledFile
from gateway.settings import Adapters
from gateway.wire.multipart import Part
from storage.database import Database
from storage.geometry import Geometry
from storage.objects.base import ObjectStore
from storage.threads import finish

# Together with the size limit of a file these bound the spool's disk space and the work under way.
MAX_UPLOADS: Final = 32
MAX_UPLOADS_PER_ACCOUNT: Final = 8


class UploadSlots:
    """How many uploads run at once, in all and per account; one too many is refused, not queued."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def take(self, account_id: str) -> AsyncIterator[None]:
        """Raises OverCapacity."""
        mine = self._running.get(account_id, 0)
        if mine >= MAX_UPLOADS_PER_ACCOUNT or sum(self._running.values()) >= MAX_UPLOADS:
            raise OverCapacity("too many uploads are under way; try again in a moment", retry_after_s=2)
        self._running[account_id] = mine + 1
        try:
            yield
        finally:
            self._running[account_id] -= 1
            if not self._running[account_id]:
                del self._running[account_id]


class Prepared(NamedTuple):
    """A file that broke no rule, and the packed adapter when it completes one."""

    asset: Asset
    packed: PackedFile | None
    packed_path: Path


class Upload:
    """The steps of one upload to a finetune of `base`."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        base: CatalogModel,
        limits: Adapters,
        uses: AdapterUses,
        now: Callable[[], float],
    ) -> None:
        assert base.geometry is not None, "the catalogue gives a geometry to every model that has weights"
        self._geometry: Geometry = base.geometry
        self._database = database
        self._objects = objects
        self._limits = limits
        self._uses = uses
        self._now = now

    async def receive(self, parts: AsyncIterator[Part], scratch: Scratch) -> Asset:
        """Raises BadInput, RequestTooLarge, StorageFull."""
        return await receive_asset(parts, scratch, self._limits.max_bytes)

    async def prepare(self, finetune: Finetune, version: Version, asset: Asset, scratch: Scratch) -> Prepared:
        """Raises BadInput with every reason, after marking the version as failed."""
        other_name = next(name for name in ADAPTER_FILES if name != asset.file_name)
        stored = version.file(other_name)
        packed_path = scratch.folder / "packed"
        try:
            if stored is None:
                await finish(asyncio.to_thread(self._check_alone, asset))
                return Prepared(asset, None, packed_path)
            # Together even where this one breaks rules of its own: what is wrong is told at once.
            other = await self._fetch(stored, scratch)
            config, weights = (asset.file, other) if asset.file_name == CONFIG_FILE else (other, asset.file)
            work = asyncio.to_thread(self._check_and_pack, config.path, weights.path, packed_path)
            packed = await finish(work)
            return Prepared(asset, packed, packed_path)
        except AdapterRefused as error:
            async with self._database.write() as connection:
                await rows.save_version(
                    connection,
                    finetune.id,
                    version.number,
                    status="failed",
                    reasons=list(error.reasons),
                    modified_at=self._now(),
                )
            raise BadInput(
                f"{asset.file_name} was refused: {'; '.join(error.reasons)}", param="file", reasons=error.reasons
            ) from error

    async def store(self, finetune: Finetune, version: Version, prepared: Prepared, scratch: Scratch) -> list[Weights]:
        """Objects first, rows after; a version that is ready takes the place it was opened for, and old ones go.

        Returns the weights of those that went. Raises ObjectNotFound when the version was deleted meanwhile.
        """
        asset, packed = prepared.asset, prepared.packed
        suffix = asset.file_name.rsplit(".", 1)[-1]
        key = f"finetunes/{finetune.account_id}/{finetune.id}/{asset.file.sha256}.{suffix}"
        file = StoredFile(asset.file_name, key, asset.file.size_bytes, asset.file.sha256)
        packed_key = packed_key_of(finetune.account_id, packed.digest) if packed else None
        replaced = version.file(asset.file_name)
        old = superseded(finetune, version, self._limits.kept_versions) if packed else []
        left = [replaced.object_key] if replaced else []
        left += [each for gone in old for each in gone.keys]
        await scratch.note([key, *([packed_key] if packed_key else []), *left])
        await self._objects.put(key, asset.file.chunks(), max_bytes=asset.file.size_bytes)
        now = self._now()
        values: dict[str, object] = {"status": "pending", "reasons": [], "modified_at": now}
        if packed and packed_key:
            file_packed = SpooledFile(prepared.packed_path, packed.size_bytes, packed.digest)
            await self._objects.put(packed_key, file_packed.chunks(), max_bytes=packed.size_bytes)
            values |= {
                "status": "ready",
                "digest": packed.digest,
                "object_key": packed_key,
                "size_bytes": packed.size_bytes,
                "rank": packed.rank,
                "modules": list(packed.modules),
            }
        self._uses.close(finetune.id, tuple(gone.number for gone in old))
        async with self._database.write() as connection:
            if not await rows.save_version(connection, finetune.id, version.number, **values):
                raise ObjectNotFound(f"version {version.number} of {finetune.name!r} was deleted meanwhile")
            await rows.save_file(connection, finetune.id, version.number, file, now)
            await rows.save(connection, finetune.id, modified_at=now)
            if packed and (version.activate or finetune.current is None):
                await rows.save_alias(connection, finetune.id, DEFAULT_ALIAS, Pointer(version.number))
            await rows.remove_versions(connection, finetune.id, [gone.number for gone in old])
        return [Weights(finetune.model, gone.digest) for gone in old if gone.digest is not None]

    def _check_alone(self, asset: Asset) -> None:
        if asset.file_name == CONFIG_FILE:
            check_config_file(asset.file.path.read_bytes(), self._geometry, self._limits.max_rank)
        else:
            check_weights_file(asset.file.path)

    def _check_and_pack(self, config: Path, weights: Path, out: Path) -> PackedFile:
        adapter = check_adapter(config.read_bytes(), weights, self._geometry, self._limits.max_rank)
        return pack(adapter, weights, self._geometry, out)

    async def _fetch(self, stored: StoredFile, scratch: Scratch) -> SpooledFile:
        """The file that was uploaded earlier. Raises StorageUnavailable when the store returns other bytes."""
        file = await scratch.receive(
            "stored", self._objects.get(stored.object_key), stored.size_bytes, stored.file_name
        )
        if file.sha256 != stored.sha256:
            raise StorageUnavailable(f"the stored {stored.file_name} is damaged; upload it again")
        return file
