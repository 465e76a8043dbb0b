"""One row per route: method, path, handler and the permission it takes. Rights are decided on this row, never on a URL.

Each file in `endpoints/` exports `ROUTES`; `app.py` joins them. `permission` None is allowed for two kinds only and
said by `public` (no token) or `any_token` (a valid token, no account in the path). A path with `{account_id}` is
answered only to tokens of that account; to others exactly as if the account did not exist.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from gateway.messages import Identity
from gateway.permissions import Permission
from gateway.services import Services

Handler = Callable[[Request, Identity, Services], Awaitable[Response]]
PublicHandler = Callable[[Request, Services], Awaitable[Response]]

V4 = "/client/v4"
ACCOUNT = "/client/v4/accounts/{account_id}"


@dataclass(frozen=True)
class ApiRoute:
    """A route that needs a valid token and, unless `any_token`, the permission. `openai_errors` adds `error{}`."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    permission: Permission | Literal["any_token"]
    openai_errors: bool = False


@dataclass(frozen=True)
class PublicRoute:
    """A route that answers without a token: health, and the description of all routes."""

    method: Literal["GET"]
    path: str
    handler: PublicHandler
