"""What a request's `lora` means: from a caller's word to one version of one finetune, on the request path.

    id of the account's own > name in the account > the same with "@" and an alias or number > `cf-public-…`

Answers come from a bounded cache that every change to the account empties; words that mean nothing are remembered for
two seconds, so that a client that repeats them costs no look-up. Only the account's own rows and the operator's public
ones are ever looked at: no other account's word, id or cache entry can be reached from here.
"""

import time
import uuid
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache, TTLCache

from gateway import finetune_rows as rows
from gateway.catalog import CatalogModel
from gateway.errors import BadInput, FinetuneIncomplete, FinetuneNotFound
from gateway.finetune_records import DEFAULT_ALIAS, Finetune, Version, numbered, split_reference
from gateway.ids import PUBLIC_ACCOUNT_ID
from gateway.messages import Identity, ResolvedAdapter
from gateway.names import printable
from storage.database import Database

MAX_CACHED: Final = 20_000
UNKNOWN_S: Final = 2.0
MAX_REFERENCE_CHARS: Final = 256

_Meant = tuple[Finetune, str]  # and the selector: an alias or a number


class AdapterResolver:
    """`resolve` on the request path; `forget` after every change."""

    def __init__(self, database: Database, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        # Keyed by (account, word): a hit proves that this account may use what it finds.
        self._known: LRUCache[tuple[str, str], _Meant] = LRUCache(MAX_CACHED)
        self._unknown: TTLCache[tuple[str, str], None] = TTLCache(MAX_CACHED, UNKNOWN_S, monotonic)
        self._generation = 0

    async def resolve(
        self, identity: Identity, model: CatalogModel, lora: str, request_id: str | None, session: str | None = None
    ) -> ResolvedAdapter:
        """The adapter that `lora` means to this caller on this model; `session` stays with one side of a canary.

        Raises FinetuneNotFound, FinetuneIncomplete, BadInput when it belongs to another model.
        """
        request_id = request_id or str(uuid.uuid4())
        found = await self._find(identity.account_id, lora)
        if found is None:
            raise _not_found(lora, request_id)
        finetune, selector = found
        if finetune.model != model.name:
            raise BadInput(
                f"finetune {finetune.name!r} was made for {finetune.model}; use it with that model", param="lora"
            )
        version = _choose(finetune, selector, session or request_id)
        if version is None:
            raise _not_found(lora, request_id)
        if version.status != "ready":
            raise FinetuneIncomplete(_incomplete(finetune, version), param="lora", reasons=version.reasons)
        assert version.digest is not None, "a ready version has been packed"
        assert version.object_key is not None, "a ready version has been stored"
        return ResolvedAdapter(
            finetune_id=finetune.id,
            name=finetune.name,
            digest=version.digest,
            object_key=version.object_key,
            size_bytes=version.size_bytes or 0,
            rank=version.rank or 0,
            version=version.number,
        )

    def forget(self, account_id: str) -> None:
        """Something of this account has changed; of the public ones: for everybody."""
        self._generation += 1
        for cache in (self._known, self._unknown):
            for key in [key for key in cache if account_id in (key[0], PUBLIC_ACCOUNT_ID)]:
                cache.pop(key, None)

    async def _find(self, account_id: str, lora: str) -> _Meant | None:
        """The finetune and the selector; the whole word as a name or id goes before its part up to an "@"."""
        key = (account_id, lora)
        found = self._known.get(key)
        if found is not None:
            return found
        if not lora or len(lora) > MAX_REFERENCE_CHARS or key in self._unknown:
            return None
        generation = self._generation
        parts = split_reference(lora)
        async with self._database.read() as connection:
            for word, selector in ((lora, DEFAULT_ALIAS), *([parts] if parts else ())):
                for owner in (account_id, PUBLIC_ACCOUNT_ID):
                    if found is None and (finetune := await rows.find(connection, owner, word)) is not None:
                        found = (finetune, selector)
        if generation == self._generation:
            if found is None:
                self._unknown[key] = None
            elif found[0].current is not None:
                self._known[key] = found
        return found


def _choose(finetune: Finetune, selector: str, key: str) -> Version | None:
    """The version that the selector means; of a finetune that has no ready one yet, the one in the making."""
    number = numbered(selector)
    if number is None:
        pointer = finetune.aliases.get(selector)
        if pointer is None:
            return finetune.shown if selector == DEFAULT_ALIAS else None
        number = pointer.pick(f"{finetune.id}/{selector}/{key}")
    return finetune.version(number)


def _not_found(lora: str, request_id: str) -> FinetuneNotFound:
    return FinetuneNotFound(f"AiError: AiError: Finetune {printable(lora)} not found ({request_id})", param="lora")


def _incomplete(finetune: Finetune, version: Version) -> str:
    text = f"Finetune {finetune.name} is missing required files"
    if version.missing:
        text += f": upload {' and '.join(version.missing)}"
    if version.reasons:
        text += f"; the last upload was refused: {'; '.join(version.reasons)}"
    return text
