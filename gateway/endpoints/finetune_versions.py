"""`/ai/finetunes/{finetune}/versions` and `/aliases`: replace, roll back, split. All of it is ours; the original has no
way to change a finetune. Parse, call, reply; the rules live in `gateway.finetune_versions`.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.finetunes import both, in_use, residency, send_file, take_upload, when_in_use
from gateway.errors import ObjectNotFound
from gateway.finetune_records import Pointer
from gateway.messages import Identity
from gateway.names import printable
from gateway.routes import ApiRoute
from gateway.services import Services
from gateway.wire.envelope import read_page, success, success_page
from gateway.wire.finetune_bodies import OpenVersion, SetAlias
from gateway.wire.finetune_json import pointer_json, version_json
from gateway.wire.json_body import read_as

MAX_BODY_BYTES: Final = 16 * 1024


async def open_version(request: Request, identity: Identity, services: Services) -> Response:
    """POST {activate?}: a new, empty version. `activate` false leaves the name as it is when the version is ready."""
    body = await read_as(request, OpenVersion, MAX_BODY_BYTES, may_be_empty=True)
    account_id, name = identity.account_id, _name(request)
    finetune, version = await services.finetunes.versions.open(account_id, name, activate=body.activate)
    return success(version_json(finetune, version, in_use(finetune, services), await residency(finetune, services)))


async def list_versions(request: Request, identity: Identity, services: Services) -> Response:
    """GET: one page, newest first."""
    page = read_page(request.query_params)
    finetune = await services.finetunes.get(identity.account_id, _name(request))
    versions = finetune.versions[::-1]
    used, where = in_use(finetune, services), await residency(finetune, services)
    items = [version_json(finetune, version, used, where) for version in page.cut(versions)]
    return success_page(items, page, len(versions))


async def get_version(request: Request, identity: Identity, services: Services) -> Response:
    """GET one."""
    finetune, version = await services.finetunes.versions.get(identity.account_id, _name(request), _number(request))
    return success(version_json(finetune, version, in_use(finetune, services), await residency(finetune, services)))


async def delete_version(request: Request, identity: Identity, services: Services) -> Response:
    """DELETE ?when_in_use=drain|refuse: one version to which no alias leads."""
    chosen, number = when_in_use(request), _number(request)
    removed = await services.finetunes.versions.delete(identity.account_id, _name(request), number, chosen)
    return success({"id": removed.finetune.id, "version": number, "in_use": removed.num_in_use})


async def upload_to_version(request: Request, identity: Identity, services: Services) -> Response:
    """POST multipart, as `finetune-assets` without a version."""
    return await take_upload(request, identity, services, _number(request))


async def download_of_version(request: Request, identity: Identity, services: Services) -> Response:
    """GET one uploaded file."""
    _, version = await services.finetunes.versions.get(identity.account_id, _name(request), _number(request))
    return await send_file(version, request.path_params["file_name"], services)


async def list_aliases(request: Request, identity: Identity, services: Services) -> Response:
    """GET: one page, by name."""
    page = read_page(request.query_params)
    finetune = await services.finetunes.get(identity.account_id, _name(request))
    items = [{"alias": name, **pointer_json(pointer)} for name, pointer in sorted(finetune.aliases.items())]
    return success_page(page.cut(items), page, len(items))


async def set_alias(request: Request, identity: Identity, services: Services) -> Response:
    """PUT {version, canary?: {version, percent}}: `default` is what the bare name means."""
    body = await read_as(request, SetAlias, MAX_BODY_BYTES)
    alias = request.path_params["alias"]
    canary = body.canary
    pointer = Pointer(body.version) if canary is None else Pointer(body.version, canary.version, canary.percent)
    finetune = await services.finetunes.versions.point(identity.account_id, _name(request), alias, pointer)
    if finetune.pinned:
        await services.caches.refresh(finetune.model)
    return success({"alias": alias, **pointer_json(pointer)})


async def delete_alias(request: Request, identity: Identity, services: Services) -> Response:
    """DELETE one, but never `default`."""
    alias = request.path_params["alias"]
    await services.finetunes.versions.unpoint(identity.account_id, _name(request), alias)
    return success({"alias": alias})


def _name(request: Request) -> str:
    name: str = request.path_params["finetune"]
    return name


def _number(request: Request) -> int:
    text: str = request.path_params["version"]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ObjectNotFound(f"there is no version {printable(text, 64)!r}; versions are numbers")
    return int(text)


ROUTES: Final[tuple[ApiRoute, ...]] = (
    *both("GET", "/{finetune}/versions", list_versions, "workers_ai.read"),
    *both("POST", "/{finetune}/versions", open_version, "workers_ai.write"),
    *both("GET", "/{finetune}/versions/{version}", get_version, "workers_ai.read"),
    *both("DELETE", "/{finetune}/versions/{version}", delete_version, "workers_ai.write"),
    *both("POST", "/{finetune}/versions/{version}/finetune-assets", upload_to_version, "workers_ai.write"),
    *both("GET", "/{finetune}/versions/{version}/finetune-assets/{file_name}", download_of_version, "workers_ai.read"),
    *both("GET", "/{finetune}/aliases", list_aliases, "workers_ai.read"),
    *both("PUT", "/{finetune}/aliases/{alias}", set_alias, "workers_ai.write"),
    *both("DELETE", "/{finetune}/aliases/{alias}", delete_alias, "workers_ai.write"),
)
