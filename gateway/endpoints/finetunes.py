"""`/ai/finetunes`: create, list, read, delete, and the upload of the two files (wire-contract 3.6; reading one and
deleting are ours). Parse, call, reply; the rules live in `gateway.finetunes`.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.errors import BadInput, RequestTooLarge
from gateway.finetune_rows import Finetune
from gateway.ingest.adapter import WEIGHTS_FILE
from gateway.messages import Identity
from gateway.permissions import Permission
from gateway.routes import ACCOUNT, ApiRoute, Handler
from gateway.services import Services
from gateway.wire.envelope import iso_time, success
from gateway.wire.json_body import read_object
from gateway.wire.multipart import read_parts
from runtime.protocol import AdapterRef

FINETUNES: Final = ACCOUNT + "/ai/finetunes"
Method = Literal["GET", "POST", "DELETE"]
MAX_CREATE_BYTES: Final = 64 * 1024
# What a multipart body may hold besides the file itself.
MAX_OVERHEAD_BYTES: Final = 256 * 1024


async def create(request: Request, identity: Identity, services: Services) -> Response:
    """POST {model, name, description?}."""
    body = await read_object(request, MAX_CREATE_BYTES)
    model, name, description = body.get("model"), body.get("name"), body.get("description")
    if not isinstance(model, str) or not model:
        raise BadInput("model must be the name of a base model", param="model")
    if not isinstance(name, str):
        raise BadInput("name must be a string", param="name")
    if not isinstance(description, str | None):
        raise BadInput("description must be a string", param="description")
    if body.get("public"):
        raise BadInput("public finetunes are not offered here; leave 'public' out", param="public")
    return success(_json(await services.finetunes.create(identity.account_id, model, name, description)))


async def list_all(request: Request, identity: Identity, services: Services) -> Response:
    """GET: a flat array, as wrangler reads it."""
    return success([_json(finetune) for finetune in await services.finetunes.list_finetunes(identity.account_id)])


async def list_public(request: Request, identity: Identity, services: Services) -> Response:
    """GET: this deployment offers none."""
    return success([])


async def get(request: Request, identity: Identity, services: Services) -> Response:
    """GET one, with its state, its files and where its weights are."""
    finetune = await services.finetunes.get(identity.account_id, request.path_params["finetune"])
    files = [{"file_name": f.file_name, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in finetune.files]
    detail = {
        "rank": finetune.rank,
        "modules": finetune.modules,
        "size_bytes": finetune.size_bytes,
        "digest": finetune.digest,
        "files": files,
        "missing": finetune.missing,
        "residency": _residency(finetune, services),
    }
    return success({**_json(finetune), **detail})


async def delete(request: Request, identity: Identity, services: Services) -> Response:
    """DELETE: rows, objects, and its place in every tier when no other finetune has the same weights."""
    finetune, digest = await services.finetunes.delete(identity.account_id, request.path_params["finetune"])
    backend = services.backends.get(finetune.model)
    if digest is not None and backend is not None:
        await backend.forget(digest)
    return success({"id": finetune.id})


async def upload(request: Request, identity: Identity, services: Services) -> Response:
    """POST multipart: `file_name` and `file`, in any order. The reply comes as soon as something is wrong."""
    max_bytes = services.settings.adapters.max_bytes + MAX_OVERHEAD_BYTES
    body = _limited(request, max_bytes)
    parts = read_parts(request.headers.get("content-type", ""), body)
    finetune = await services.finetunes.upload(identity.account_id, request.path_params["finetune"], parts)
    backend = services.backends.get(finetune.model)
    if finetune.status == "ready" and finetune.digest and finetune.object_key and backend is not None:
        size, rank = finetune.size_bytes or 0, finetune.rank or 0
        await backend.prefetch(AdapterRef(finetune.digest, finetune.object_key, size, rank, finetune.id))
    return success({"id": finetune.id, "status": finetune.status, "missing": finetune.missing})


async def _limited(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes, ended by RequestTooLarge at the limit; at once when its header already says so."""
    too_large = RequestTooLarge(f"{WEIGHTS_FILE} is above the limit of {max_bytes - MAX_OVERHEAD_BYTES} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
        raise too_large
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk
    except ClientDisconnect as error:
        raise BadInput("the upload broke off") from error


def _json(finetune: Finetune) -> dict[str, Any]:
    return {
        "id": finetune.id,
        "account_id": finetune.account_id,
        "name": finetune.name,
        "model": finetune.model,
        "description": finetune.description,
        "public": False,
        "created_at": iso_time(finetune.created_at),
        "modified_at": iso_time(finetune.modified_at),
        "status": finetune.status,
        "reasons": finetune.reasons,
    }


def _residency(finetune: Finetune, services: Services) -> dict[str, Any] | None:
    """Where the weights are now and how they last got there; before any request they are in the object store."""
    backend = services.backends.get(finetune.model)
    if finetune.status != "ready" or finetune.digest is None or backend is None:
        return None
    status = backend.adapter_status(finetune.digest)
    if status is None:
        return {"tier": "object", "path": []}
    path = [{"tier": v.tier, "ms": round(v.seconds * 1000, 3), "bytes": v.size_bytes} for v in status.visits]
    found: dict[str, Any] = {"tier": status.resident or "object", "path": path}
    if status.failure is not None:
        found["failure"] = status.failure.message
    return found


def _both(method: Method, path: str, handler: Handler, permission: Permission) -> tuple[ApiRoute, ApiRoute]:
    """With and without a slash at the end: the documentation's own curl sends one."""
    return (
        ApiRoute(method, FINETUNES + path, handler, permission),
        ApiRoute(method, f"{FINETUNES}{path}/", handler, permission),
    )


ROUTES: Final[tuple[ApiRoute, ...]] = (
    *_both("POST", "", create, "workers_ai.write"),
    *_both("GET", "", list_all, "workers_ai.read"),
    *_both("GET", "/public", list_public, "workers_ai.read"),
    *_both("GET", "/{finetune}", get, "workers_ai.read"),
    *_both("DELETE", "/{finetune}", delete, "workers_ai.write"),
    *_both("POST", "/{finetune}/finetune-assets", upload, "workers_ai.write"),
)
