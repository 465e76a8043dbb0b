"""Who am I: the calls with which wrangler and the SDKs find out what a token is and which account it belongs to.

A token here belongs to exactly one account, so every list has at most one entry; pages past it are empty.
"""

import hashlib
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import Account
from gateway.messages import Identity
from gateway.routes import ACCOUNT, V4, ApiRoute
from gateway.services import Services
from gateway.wire.envelope import iso_time, read_page, success, success_page

_ACTIVE: Final = ({"code": 10000, "message": "This API Token is valid and active"},)


async def verify_token(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the token that the call came with; an expired or revoked one never gets here."""
    token = await services.accounts.get_token(identity.token_id)
    result = {"id": token.id, "status": "active", "not_before": iso_time(token.created_at)}
    if token.expires_at is not None:
        result["expires_on"] = iso_time(token.expires_at)
    return success(result, messages=_ACTIVE)


async def user(request: Request, identity: Identity, services: Services) -> Response:
    """GET: there are no people here, so the token stands for one. The address is of a domain that cannot exist."""
    token = await services.accounts.get_token(identity.token_id)
    return success(
        {
            "id": token.id,
            "email": f"{token.id}@tokens.invalid",
            "username": token.name,
            "first_name": None,
            "last_name": None,
            "two_factor_authentication_enabled": False,
            "suspended": False,
            "created_on": iso_time(token.created_at),
        }
    )


async def list_accounts(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the token's account; `name` filters as the SDKs offer it."""
    page = read_page(request.query_params, 20)
    account = await services.accounts.get_account(identity.account_id)
    wanted = request.query_params.get("name")
    items = [_account(account)] if wanted in (None, account.name) else []
    return success_page(page.cut(items), page, len(items))


async def get_account(request: Request, identity: Identity, services: Services) -> Response:
    """GET one."""
    return success(_account(await services.accounts.get_account(identity.account_id)))


async def list_memberships(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the token's membership of its account; wrangler intersects these with the accounts."""
    page = read_page(request.query_params, 20)
    account = await services.accounts.get_account(identity.account_id)
    membership = {
        "id": hashlib.sha256(f"membership {identity.token_id}".encode()).hexdigest()[:32],
        "status": "accepted",
        "roles": ["Administrator"],
        "permissions": {},
        "account": _account(account),
    }
    return success_page(page.cut([membership]), page, 1)


def _account(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "type": "standard",
        "settings": {"enforce_twofactor": False},
        "created_on": iso_time(account.created_at),
    }


ROUTES: Final[tuple[ApiRoute, ...]] = (
    ApiRoute("GET", V4 + "/user/tokens/verify", verify_token, "any_token"),
    ApiRoute("GET", ACCOUNT + "/tokens/verify", verify_token, "any_token"),
    ApiRoute("GET", V4 + "/user", user, "any_token"),
    ApiRoute("GET", V4 + "/accounts", list_accounts, "any_token"),
    ApiRoute("GET", ACCOUNT, get_account, "any_token"),
    ApiRoute("GET", V4 + "/memberships", list_memberships, "any_token"),
)
