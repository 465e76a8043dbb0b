"""The operator's hand on the runtimes' adapter tiers: what is pinned, what is warmed, what goes, and what is there.

Pins are a mark on the finetune's row. Of a pinned finetune every version is kept to which an alias leads; whenever that
changes, the model's runtime is told the whole set anew, and its client repeats it after every reconnect. What shall be
warm from the start on is looked up for every runtime that comes, and only wished for.

Weights that an earlier process removed, and of which it may have told no runtime before it was killed, are forgotten
once the runtimes answer.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec

from gateway.backends.base import AdapterCache
from gateway.errors import BadInput, ObjectNotFound, RuntimeUnavailable
from gateway.finetune_records import Finetune, Version
from gateway.finetunes import Finetunes
from gateway.settings import Tiers
from runtime.errors import RuntimeLost
from runtime.protocol import AdapterRef
from storage.errors import StorageError

logger = logging.getLogger(__name__)
ASKED_AGAIN_S: Final = 1.0


class CacheCare:
    """`caches` maps a catalogue name to the tiers of its runtime. Call `start` once they connect."""

    def __init__(self, finetunes: Finetunes, caches: Mapping[str, AdapterCache], settings: Tiers) -> None:
        self._finetunes, self._caches, self._settings = finetunes, caches, settings
        self._tasks: set[asyncio.Task[None]] = set()
        self._cold: set[str] = set()  # models whose runtime is new
        self._woken = asyncio.Event()

    async def start(self) -> None:
        """Tells every runtime its pins, and each one that comes what it shall have in memory."""
        for model, cache in self._caches.items():
            await self.refresh(model)
            cache.on_connect(partial(self._connected, model))
        self._tasks = {
            asyncio.create_task(self._forget_swept(), name="forget swept adapters"),
            asyncio.create_task(self._warm_up(), name="warm up"),
        }

    async def aclose(self) -> None:
        """What is not forgotten by now stays noted for the next start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _connected(self, model: str) -> None:
        self._cold.add(model)
        self._woken.set()

    async def _warm_up(self) -> None:
        """Names are looked up each time: what they mean may have changed since the last runtime came."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            models, self._cold = self._cold, set()
            try:
                for each in await self._wished():
                    for ref in _current(each) if each.model in models else ():
                        await self._caches[each.model].prefetch(ref)
            except StorageError as error:
                logger.warning("nothing is warmed up: %s", error)

    async def _wished(self) -> list[Finetune]:
        """What is named wrongly is logged: it stops nothing."""
        wished = await self._finetunes.list_recent(self._settings.warm_up_recent)
        for reference in self._settings.warm_up:
            try:
                wished.append(await self._finetunes.find_for_operator(reference))
            except ObjectNotFound as error:
                logger.warning("tiers.warm_up: %s", error.message)
        return wished

    async def _forget_swept(self) -> None:
        while True:
            try:
                return await self._finetunes.forget_swept(self._forget_everywhere)
            except RuntimeLost:
                await asyncio.sleep(ASKED_AGAIN_S)

    async def _forget_everywhere(self, digest: str) -> None:
        """Raises RuntimeLost while one of the runtimes has not heard of it."""
        for cache in self._caches.values():
            await cache.forget(digest)
            await cache.cache_report()  # frames keep their order: who answers this has read the other

    async def refresh(self, model: str) -> None:
        """What an upload, a deletion or an alias has changed for this model. Never raises: pins only save time."""
        cache = self._caches.get(model)
        if cache is None:
            return
        try:
            pinned = await self._finetunes.list_pinned()
        except StorageError as error:
            logger.warning("pins of %s are not renewed: %s", model, error)
            return
        cache.pin([ref for each in pinned if each.model == model for ref in _pointed(each)])

    async def pin(self, reference: str, pinned: bool) -> dict[str, Any]:
        """Pins or unpins. Raises ObjectNotFound, BadInput when there is nothing to pin yet."""
        finetune = await self._finetunes.find_for_operator(reference)
        if pinned and finetune.current is None:
            raise BadInput(f"finetune {finetune.name!r} has no version that is ready")
        await self._finetunes.pin(finetune, pinned)
        await self.refresh(finetune.model)
        return _named(finetune, [ref.digest for ref in _pointed(finetune)])

    async def warm(self, reference: str) -> dict[str, Any]:
        """Brings the current version to memory, as fast as it comes. Raises ObjectNotFound, BadInput."""
        finetune = await self._finetunes.find_for_operator(reference)
        refs = _current(finetune)
        if not refs:
            raise BadInput(f"finetune {finetune.name!r} has no version that is ready")
        for ref in refs:
            await self._cache(finetune.model).prefetch(ref)
        return _named(finetune, [ref.digest for ref in refs])

    async def evict(self, reference: str) -> dict[str, Any]:
        """Drops every version from device, memory and disk as soon as nobody uses it; the object store keeps it.

        Raises ObjectNotFound, BadInput while it is pinned.
        """
        finetune = await self._finetunes.find_for_operator(reference)
        if finetune.pinned:
            raise BadInput(f"finetune {finetune.name!r} is pinned; unpin it first")
        digests = [version.digest for version in finetune.versions if version.digest is not None]
        for digest in digests:
            await self._cache(finetune.model).forget(digest)
        return _named(finetune, digests)

    async def report(self) -> dict[str, Any]:
        """By model: the tiers, the adapters in them with their owners, the runtime's own figures; or what is wrong."""
        told: dict[str, Any] = {}
        for model, cache in self._caches.items():
            try:
                report = await cache.cache_report()
            except RuntimeLost as error:
                told[model] = {"problem": str(error), "tiers": [], "adapters": [], "runtime": {}}
                continue
            owners = await self._finetunes.owners([each.digest for each in report.adapters])
            told[model] = {
                "tiers": [_whole(tier) for tier in report.tiers],
                "adapters": [
                    _whole(each)
                    | {"owners": [{"account": a, "name": n, "version": v} for a, n, v in owners.get(each.digest, [])]}
                    for each in report.adapters
                ],
                "runtime": _whole(report.stats),
            }
        return told

    def _cache(self, model: str) -> AdapterCache:
        cache = self._caches.get(model)
        if cache is None:
            raise RuntimeUnavailable(f"no runtime serves {model} at the moment", retry_after_s=5)
        return cache


def _whole(record: msgspec.Struct) -> dict[str, Any]:
    """Every field, zeros too."""
    fields = msgspec.structs.asdict(record)
    return {name: msgspec.to_builtins(value) for name, value in fields.items()}


def _named(finetune: Finetune, digests: list[str]) -> dict[str, Any]:
    return {"id": finetune.id, "account": finetune.account_id, "name": finetune.name, "digests": digests}


def _pointed(finetune: Finetune) -> list[AdapterRef]:
    """The versions to which an alias leads."""
    return _refs(finetune, [version for version in finetune.versions if version.number in finetune.pointed])


def _current(finetune: Finetune) -> list[AdapterRef]:
    return _refs(finetune, [finetune.current] if finetune.current else [])


def _refs(finetune: Finetune, versions: list[Version]) -> list[AdapterRef]:
    return [
        AdapterRef(v.digest, v.object_key, v.size_bytes or 0, v.rank or 0, finetune.id)
        for v in versions
        if v.digest is not None and v.object_key is not None
    ]
