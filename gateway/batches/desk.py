"""Taking a batch in, and telling how far it is: `POST /ai/run/{model}?queueRequest=true`.

Every request is checked before the batch is accepted, so that what can be known at once is said at once. At work is
only one gateway's queue: the one that shares the row store.
"""

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gateway.batches.queue import BatchQueue
from gateway.batches.records import Accepted
from gateway.catalog import Catalog
from gateway.errors import InvalidRequest, RequestTooLarge
from gateway.messages import Identity
from gateway.wire import chat_body, workers_ai
from gateway.wire.body import MAX_BATCH

MAX_BYTES: Final = 10 * 1000**2
MAX_REFERENCE_CHARS: Final = 512
_KEPT_HEADERS: Final = frozenset({
    "cf-aig-metadata", "cf-aig-collect-log", "cf-aig-collect-log-payload", "cf-aig-gateway-id", "user-agent",
    "x-session-affinity",
})  # fmt: skip


class _One(msgspec.Struct):
    external_reference: str | None = None


_requests: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_one: Final = msgspec.json.Decoder(_One)


class BatchDesk:
    """`queue` is told of what was added."""

    def __init__(self, catalog: Catalog, queue: BatchQueue) -> None:
        self._catalog = catalog
        self._queue = queue

    async def take(self, identity: Identity, model: str, body: bytes, headers: Iterable[tuple[str, str]]) -> Any:
        """The result of a submission or of a poll, as JSON. Raises BadInput, EmptyBody, RequestTooLarge, UnknownModel,
        OverCapacity, ObjectNotFound."""
        fields = chat_body.decode(body)
        if fields.request_id is not None:
            return await self._state(identity, fields.request_id)
        if len(body) >= MAX_BYTES:
            raise RequestTooLarge(f"a batch must be smaller than {MAX_BYTES} bytes; send several")
        name = self._catalog.get(model).name
        kept = [(key, value) for key, value in headers if key in _KEPT_HEADERS]
        accepted = await asyncio.to_thread(_checked, bytes(fields.requests), name, kept)
        batch_id = str(uuid.uuid4())
        batch = await self._queue.records.add(batch_id, identity.account_id, identity.token_id, name, accepted)
        self._queue.added()
        return {"status": "queued", "request_id": batch.id, "model": model}

    async def _state(self, identity: Identity, batch_id: str) -> Any:
        batch = await self._queue.records.get(identity.account_id, batch_id)
        if batch.status != "done":
            return {"status": batch.status, "request_id": batch.id}
        return msgspec.Raw(await self._queue.records.responses(batch))


def _checked(raw: bytes, model: str, headers: list[tuple[str, str]]) -> Accepted:
    """Raises BadInput that names the request by its place."""
    try:
        requests = _requests.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        requests = None
    if not requests or len(requests) > MAX_BATCH:
        chat_body.bad(f"'requests' must be a list of 1 to {MAX_BATCH} inputs", "requests")
    references = []
    for index, one in enumerate(requests):
        try:
            workers_ai.parse(bytes(one), (), model)
            reference = _one.decode(one).external_reference
        except InvalidRequest as error:
            sentence = error.message.removeprefix("AiError: Bad input: Error: ")
            chat_body.bad(f"'requests[{index}]': {sentence}", "requests")
        except msgspec.ValidationError:
            chat_body.bad(f"'requests[{index}].external_reference' must be a string", "requests")
        if reference is not None and len(reference) > MAX_REFERENCE_CHARS:
            most = f"at most {MAX_REFERENCE_CHARS} characters"
            chat_body.bad(f"'requests[{index}].external_reference' may have {most}", "requests")
        references.append(reference)
    return Accepted(requests, references, headers)
