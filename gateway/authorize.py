"""Rows of the route table become Starlette routes that cannot be entered without the right to.

Shape: `build_routes` wraps each row's handler in an ASGI callable that asks, in this order: is there exactly one
credential, whose is it, is the account in the path its own, does it carry the row's permission. Everything is decided
on the row that matched; no URL is looked at. Another tenant's account answers exactly like one that does not exist.
The body is not touched before all that is settled.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import AuthenticationFailed, BadInput, MethodNotSupported, ObjectNotFound, PermissionMissing
from gateway.headers import ApiRequest
from gateway.names import printable
from gateway.permissions import allows
from gateway.routes import ApiRoute, PublicRoute
from gateway.services import Services

ROUTE_KEY = "lorikeet.route"
_CREDENTIALS = ("authorization", "x-auth-key", "x-api-key")


class Guarded:
    """The ASGI callable of one row that needs a token."""

    def __init__(self, row: ApiRoute) -> None:
        self.row = row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE_KEY] = self.row
        request = ApiRequest(scope, receive, send)
        services: Services = scope["app"].state.services
        identity = await services.accounts.authenticate(read_secret(request.headers))
        account_id = request.path_params.get("account_id")
        if account_id is not None and account_id != identity.account_id:
            path = printable(scope["path"], 256)
            raise ObjectNotFound(f"Could not route to {path}, perhaps your object identifier is invalid?")
        if self.row.permission != "any_token" and not allows(identity.permissions, self.row.permission):
            raise PermissionMissing(
                f"this token lacks the permission {self.row.permission}; use one that has it, or create one"
            )
        response = await self.row.handler(request, identity, services)
        await response(scope, receive, send)


class Open:
    """The ASGI callable of one public row: health."""

    def __init__(self, row: PublicRoute) -> None:
        self.row = row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE_KEY] = self.row
        response = await self.row.handler(Request(scope, receive, send), scope["app"].state.services)
        await response(scope, receive, send)


class TableRoute(Route):
    """A route made of a row; the only kind that the app has. A wrong method is a typed error, not Starlette's own."""

    def __init__(self, row: ApiRoute | PublicRoute) -> None:
        super().__init__(
            row.path, Guarded(row) if isinstance(row, ApiRoute) else Open(row), methods=[row.method], name=row.path
        )
        self.row = row
        self.allowed = set(self.methods or ())  # and those of the other rows of this path

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises MethodNotSupported where only the path matched."""
        if self.methods is not None and scope["method"] not in self.methods:
            raise MethodNotSupported(
                f"{printable(scope['method'], 16)} not supported for requested URI.", tuple(sorted(self.allowed))
            )
        await self.app(scope, receive, send)


def build_routes(rows: Sequence[ApiRoute | PublicRoute]) -> list[TableRoute]:
    """One route per row, tried in the table's order. Raises ValueError for a row that an earlier one would shadow."""
    routes: list[TableRoute] = []
    for row in rows:
        for earlier in routes:
            if earlier.row.method == row.method and earlier.path_regex.match(row.path):
                raise ValueError(f"{row.path} can never be reached: {earlier.row.path} stands before it")
        route = TableRoute(row)
        for sibling in (earlier for earlier in routes if earlier.row.path == row.path):
            sibling.allowed |= route.allowed
            route.allowed |= sibling.allowed
        routes.append(route)
    return routes


def read_secret(headers: Headers) -> str:
    """The caller's one credential: `Authorization: Bearer …`, the key of an `X-Auth-Email` / `X-Auth-Key` pair, or the
    `X-Api-Key` that Anthropic's clients send.

    Raises AuthenticationFailed; BadInput when two credentials came and nobody can say whose call this is.
    """
    if any(len(headers.getlist(name)) > 1 for name in _CREDENTIALS):
        raise BadInput("more than one credential was sent; send exactly one Authorization header")
    authorization, key, api_key = (headers.get(name) for name in _CREDENTIALS)
    if sum(sent is not None for sent in (authorization, key, api_key)) > 1:
        raise BadInput("more than one of Authorization, X-Auth-Key and X-Api-Key was sent; send exactly one of them")
    if api_key is not None:
        return api_key.strip()
    if key is not None:
        if "x-auth-email" not in headers:
            raise AuthenticationFailed
        return key
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise AuthenticationFailed
    return secret.strip()
