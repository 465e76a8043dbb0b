"""`/ai/finetunes`: create, list, public ones, and the upload of the two files (wire-contract 3.6). Ours beyond it:
read, describe and delete one, download a file, paging of the list. Parse, call, reply; the rules live in
`gateway.finetunes`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, Literal, cast, get_args

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from gateway.errors import BadInput, BadQuery, ObjectNotFound, RequestTooLarge
from gateway.finetune_desk import WhenInUse
from gateway.finetune_records import Finetune, Version
from gateway.ids import PUBLIC_ACCOUNT_ID
from gateway.ingest.adapter import ADAPTER_FILES, WEIGHTS_FILE
from gateway.messages import Identity
from gateway.names import printable
from gateway.permissions import Permission
from gateway.routes import ACCOUNT, ApiRoute, Handler
from gateway.services import Services
from gateway.wire.envelope import read_page, success, success_page
from gateway.wire.finetune_bodies import CreateFinetune, DescribeFinetune
from gateway.wire.finetune_json import Residency, finetune_detail, finetune_json
from gateway.wire.json_body import read_as
from gateway.wire.multipart import read_parts
from runtime.protocol import AdapterRef

FINETUNES: Final = ACCOUNT + "/ai/finetunes"
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
MAX_CREATE_BYTES: Final = 64 * 1024
# What a multipart body may hold besides the file itself.
MAX_OVERHEAD_BYTES: Final = 256 * 1024
ORDERS: Final[dict[str, Callable[[Finetune], Any]]] = {
    "created_at": lambda finetune: finetune.created_at,
    "modified_at": lambda finetune: finetune.modified_at,
    "name": lambda finetune: finetune.name,
    "model": lambda finetune: finetune.model,
    "id": lambda finetune: finetune.id,
}


async def create(request: Request, identity: Identity, services: Services) -> Response:
    """POST {model, name, description?}."""
    body = await read_as(request, CreateFinetune, MAX_CREATE_BYTES)
    if not body.model:
        raise BadInput("model must be the name of a base model", param="model")
    if body.public and identity.account_id != PUBLIC_ACCOUNT_ID:
        raise BadInput("public finetunes are the operator's; leave 'public' out", param="public")
    made = await services.finetunes.create(identity.account_id, body.model, body.name, body.description)
    return success(finetune_json(made))


async def list_all(request: Request, identity: Identity, services: Services) -> Response:
    """GET: a flat array, as wrangler reads it; one page of it when `page` or `per_page` is there."""
    query, account = request.query_params, identity.account_id
    if "page" not in query and "per_page" not in query:
        return success([finetune_json(finetune) for finetune in await services.finetunes.list_finetunes(account)])
    page = read_page(query)
    total = await services.finetunes.count(account)
    found = await services.finetunes.list_finetunes(account, page.per_page, (page.page - 1) * page.per_page)
    return success_page([finetune_json(finetune) for finetune in found], page, total)


async def list_public(request: Request, identity: Identity, services: Services) -> Response:
    """GET ?limit&offset&orderBy: the operator's, those that can be used."""
    query = request.query_params
    order, down = query.get("orderBy", "created_at"), False
    if order.startswith("-"):
        order, down = order[1:], True
    if order not in ORDERS:
        raise BadQuery(
            f"orderBy must be one of {', '.join(ORDERS)}, with '-' in front for the reverse", param="orderBy"
        )
    found = [each for each in await services.finetunes.list_finetunes(PUBLIC_ACCOUNT_ID) if each.current is not None]
    found.sort(key=ORDERS[order], reverse=down)
    offset = _natural(query.get("offset"), "offset", 0)
    limit = _natural(query.get("limit"), "limit", len(found))
    return success([finetune_json(finetune) for finetune in found[offset : offset + limit]])


async def get(request: Request, identity: Identity, services: Services) -> Response:
    """GET one, with its state, its versions and where its weights are; the operator's public ones too."""
    reference = request.path_params["finetune"]
    try:
        finetune = await services.finetunes.get(identity.account_id, reference)
    except ObjectNotFound as error:
        try:
            finetune = await services.finetunes.get(PUBLIC_ACCOUNT_ID, reference)
        except ObjectNotFound:
            raise error from None
    return success(finetune_detail(finetune, in_use(finetune, services), await residency(finetune, services)))


async def describe(request: Request, identity: Identity, services: Services) -> Response:
    """PATCH {description}."""
    body = await read_as(request, DescribeFinetune, MAX_CREATE_BYTES)
    reference = request.path_params["finetune"]
    changed = await services.finetunes.describe(identity.account_id, reference, body.description)
    return success(finetune_json(changed))


async def delete(request: Request, identity: Identity, services: Services) -> Response:
    """DELETE ?when_in_use=drain|refuse: rows at once, objects and tiers after the last answer that needs them."""
    reference, chosen = request.path_params["finetune"], when_in_use(request)
    removed = await services.finetunes.delete(identity.account_id, reference, chosen)
    if removed.finetune.pinned:
        await services.caches.refresh(removed.finetune.model)
    return success({"id": removed.finetune.id, "in_use": removed.num_in_use})


async def upload(request: Request, identity: Identity, services: Services) -> Response:
    """POST multipart: `file_name` and `file`, in any order. The reply comes as soon as something is wrong."""
    return await take_upload(request, identity, services, None)


async def take_upload(request: Request, identity: Identity, services: Services, number: int | None) -> Response:
    """An upload to one version; None: see `Finetunes.upload`."""
    max_bytes = services.settings.adapters.max_bytes + MAX_OVERHEAD_BYTES
    body = _limited(request, max_bytes)
    parts = read_parts(request.headers.get("content-type", ""), body)
    reference = request.path_params["finetune"]
    finetune, version = await services.finetunes.upload(identity.account_id, reference, parts, number)
    if version.status == "ready":
        await prefetch(finetune, version, services)
        if finetune.pinned:
            await services.caches.refresh(finetune.model)
    result = {"id": finetune.id, "status": version.status, "missing": version.missing, "version": version.number}
    return success(result)


async def download(request: Request, identity: Identity, services: Services) -> Response:
    """GET one uploaded file, of the current version."""
    finetune = await services.finetunes.get(identity.account_id, request.path_params["finetune"])
    return await send_file(finetune.shown, request.path_params["file_name"], services)


async def send_file(version: Version, file_name: str, services: Services) -> Response:
    """The file as it was uploaded. Its digest is in the row, so nothing is checked here; the reader can."""
    if file_name not in ADAPTER_FILES or (file := version.file(file_name)) is None:
        raise ObjectNotFound(f"version {version.number} has no file {printable(file_name, 64)!r}")
    chunks = services.finetunes.read_file(file)
    first = await anext(chunks, b"")  # a store that is away gets a status and not a broken body

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(cast(Any, chunks)):
            yield first
            async for chunk in chunks:
                yield chunk

    headers = {
        "cache-control": "private, no-store",
        "content-length": str(file.size_bytes),
        "content-disposition": f'attachment; filename="{file_name}"',
        "etag": f'"{file.sha256}"',
    }
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


async def prefetch(finetune: Finetune, version: Version, services: Services) -> None:
    """The first request will find the weights in memory, if there is time until then."""
    backend = services.backends.get(finetune.model)
    if backend is not None and version.digest and version.object_key:
        size, rank = version.size_bytes or 0, version.rank or 0
        await backend.prefetch(AdapterRef(version.digest, version.object_key, size, rank, finetune.id))


def when_in_use(request: Request) -> WhenInUse:
    """Raises BadQuery."""
    chosen = request.query_params.get("when_in_use", "drain")
    if chosen not in get_args(WhenInUse):
        raise BadQuery("when_in_use must be drain or refuse", param="when_in_use")
    return cast(WhenInUse, chosen)


def in_use(finetune: Finetune, services: Services) -> Callable[[int], int]:
    """How many answers are under way with a version."""
    return lambda number: services.finetunes.uses.count(finetune.id, (number,))


async def residency(finetune: Finetune, services: Services) -> Residency | None:
    """Where the digests of its versions are; None without a backend."""
    backend = services.backends.get(finetune.model)
    if backend is None:
        return None
    digests = [version.digest for version in finetune.versions if version.digest is not None]
    return (await backend.adapter_statuses(digests)).get


def both(method: Method, path: str, handler: Handler, permission: Permission) -> tuple[ApiRoute, ApiRoute]:
    """With and without a slash at the end: the documentation's own curl sends one."""
    return (
        ApiRoute(method, FINETUNES + path, handler, permission),
        ApiRoute(method, f"{FINETUNES}{path}/", handler, permission),
    )


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


def _natural(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 7:
        raise BadQuery(f"{name} must be a whole number from 0 to 9999999", param=name)
    return int(text)


ROUTES: Final[tuple[ApiRoute, ...]] = (
    *both("POST", "", create, "workers_ai.write"),
    *both("GET", "", list_all, "workers_ai.read"),
    *both("GET", "/public", list_public, "workers_ai.read"),
    *both("GET", "/{finetune}", get, "workers_ai.read"),
    *both("PATCH", "/{finetune}", describe, "workers_ai.write"),
    *both("DELETE", "/{finetune}", delete, "workers_ai.write"),
    *both("POST", "/{finetune}/finetune-assets", upload, "workers_ai.write"),
    *both("GET", "/{finetune}/finetune-assets/{file_name}", download, "workers_ai.read"),
)
