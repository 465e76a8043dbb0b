"""The operator's face: accounts and tokens over HTTP on a Unix socket that only this user can open.

It exists so that the command line never opens the database beside a running gateway, and so that a revoked token is
forgotten by the process that cached it. There is no authentication but the socket's file mode; the public server never
mounts this app. Bodies and answers are plain JSON; failures wear the usual envelope. Below `/public` are the calls of
`/ai/finetunes`, envelope and all, on the account of the public adapters, which has no token.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.accounts import Token
from gateway.endpoints import finetune_versions, finetunes
from gateway.errors import BadInput
from gateway.ids import PUBLIC_ACCOUNT_ID
from gateway.messages import Identity
from gateway.permissions import PERMISSIONS
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.envelope import JsonResponse, as_lorikeet_error, error_response
from gateway.wire.json_body import read_object

logger = logging.getLogger(__name__)
MAX_BODY_BYTES: Final = 64 * 1024
# Acts for the account of the public adapters, on this socket only.
OPERATOR: Final = Identity(PUBLIC_ACCOUNT_ID, "operator", frozenset(PERMISSIONS))
Operation = Callable[[Request, Services], Awaitable[Any]]


def admin_app(services: Services) -> Starlette:
    """The ASGI app over open services; it neither opens nor closes any."""

    def route(path: str, method: str, operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return JsonResponse(await operation(request, services))
            except Exception as error:
                return error_response(as_lorikeet_error(error))

        return Route(path, endpoint, methods=[method])

    def public(row: ApiRoute) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await row.handler(request, OPERATOR, services)
            except Exception as error:
                return error_response(as_lorikeet_error(error))

        return Route("/public" + row.path.removeprefix(ACCOUNT), endpoint, methods=[row.method])

    return Starlette(
        routes=[
            *(public(row) for row in (*finetunes.ROUTES, *finetune_versions.ROUTES)),
            route("/cache", "GET", _report_cache),
            route("/cache/trace", "GET", _trace),
            route("/cache/{verb}", "POST", _care_for_cache),
            route("/accounts", "POST", _create_account),
            route("/accounts", "GET", _list_accounts),
            route("/accounts/{account_id}", "PATCH", _set_weight),
            route("/accounts/{account_id}", "DELETE", _delete_account),
            route("/accounts/{account_id}/tokens", "POST", _create_token),
            route("/accounts/{account_id}/tokens", "GET", _list_tokens),
            route("/tokens/{token_id}", "DELETE", _revoke_token),
        ]
    )


async def _create_account(request: Request, services: Services) -> Any:
    body = await read_object(request, MAX_BODY_BYTES)
    return await services.accounts.create_account(body.get("name", ""), body.get("weight", 1.0))


async def _list_accounts(request: Request, services: Services) -> Any:
    return await services.accounts.list_accounts()


async def _set_weight(request: Request, services: Services) -> Any:
    body = await read_object(request, MAX_BODY_BYTES)
    return await services.accounts.set_weight(request.path_params["account_id"], body.get("weight"))


async def _delete_account(request: Request, services: Services) -> Any:
    """With its finetunes: they are deleted first, each completely, then the account and its tokens."""
    account_id: str = request.path_params["account_id"]
    await services.accounts.get_account(account_id)
    for finetune in await services.finetunes.list_finetunes(account_id):
        await services.finetunes.delete(account_id, finetune.id)
    await services.accounts.delete_account(account_id)
    return {}


async def _report_cache(request: Request, services: Services) -> Any:
    return await services.caches.report()


async def _trace(request: Request, services: Services) -> Any:
    """GET ?model=&limit=: which adapters the log says were asked for, oldest first, and what is known of each."""
    query = request.query_params
    limit = query.get("limit", "1000000")
    if not limit.isascii() or not limit.isdigit() or len(limit) > 8:
        raise BadInput("limit must be a whole number", param="limit")
    return await services.finetunes.trace(query.get("model", ""), int(limit))


async def _care_for_cache(request: Request, services: Services) -> Any:
    """POST /cache/pin | unpin | warm | evict {finetune}."""
    body = await read_object(request, MAX_BODY_BYTES)
    reference, caches = body.get("finetune"), services.caches
    if not isinstance(reference, str) or not reference:
        raise BadInput("finetune must be ACCOUNT_ID/NAME, an id, or the name of a public one", param="finetune")
    match request.path_params["verb"]:
        case "pin":
            return await caches.pin(reference, True)
        case "unpin":
            return await caches.pin(reference, False)
        case "warm":
            return await caches.warm(reference)
        case "evict":
            return await caches.evict(reference)
        case _:
            raise BadInput("only pin, unpin, warm and evict are known")


async def _create_token(request: Request, services: Services) -> Any:
    body = await read_object(request, MAX_BODY_BYTES)
    permissions, expires_at = body.get("permissions"), body.get("expires_at")
    if permissions is None:
        permissions = list(PERMISSIONS)
    if not isinstance(permissions, list) or not all(isinstance(item, str) for item in permissions):
        raise BadInput("permissions must be a list of strings", param="permissions")
    if expires_at is not None and (isinstance(expires_at, bool) or not isinstance(expires_at, int | float)):
        raise BadInput("expires_at must be a number of Unix seconds", param="expires_at")
    created: tuple[Token, str] = await services.accounts.create_token(
        request.path_params["account_id"], body.get("name", ""), permissions, expires_at
    )
    return {"token": created[0], "secret": created[1]}


async def _list_tokens(request: Request, services: Services) -> Any:
    return await services.accounts.list_tokens(request.path_params["account_id"])


async def _revoke_token(request: Request, services: Services) -> Any:
    await services.accounts.revoke(request.path_params["token_id"])
    return {}
