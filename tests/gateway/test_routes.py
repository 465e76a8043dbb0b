"""Every route of the app is a row of the table, and every row is walked with the tokens that must not open it."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import Response

from gateway.app import ROWS
from gateway.authorize import Guarded, Open, TableRoute, build_routes
from gateway.permissions import PERMISSIONS, allows
from gateway.routes import ApiRoute, PublicRoute
from gateway.services import Services
from tests.gateway.stack import Stack, open_stack

API = [row for row in ROWS if isinstance(row, ApiRoute)]
OTHER = {"GET": "DELETE", "POST": "PUT", "PATCH": "PUT", "DELETE": "PUT", "PUT": "PATCH"}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One for the whole file: nothing here leaves anything behind."""
    async with open_stack(tmp_path_factory.mktemp("stack")) as opened:
        yield opened


def name(row: ApiRoute | PublicRoute) -> str:
    return f"{row.method} {row.path}"


def filled(row: ApiRoute | PublicRoute, account: str) -> str:
    """The row's path with the account and, elsewhere, ids that exist nowhere."""
    return re.sub(r"\{[a-z_]+(:path)?\}", "nothing", row.path.replace("{account_id}", account))


def lacking(row: ApiRoute) -> list[str]:
    """Every permission that does not open the row."""
    assert row.permission != "any_token"
    return [p for p in PERMISSIONS if not allows(frozenset({p}), row.permission)]


async def test_the_app_has_no_other_routes(stack: Stack) -> None:
    assert {(type(route), route.row) for route in stack.app.routes if isinstance(route, TableRoute)} == {
        (TableRoute, row) for row in ROWS
    }
    assert len(stack.app.routes) == len(ROWS)
    for route in stack.app.routes:
        assert isinstance(route, TableRoute)
        assert isinstance(route.app, Guarded if isinstance(route.row, ApiRoute) else Open)


async def test_rows_are_sound() -> None:
    assert len({(row.method, row.path) for row in ROWS}) == len(ROWS)
    public = [row.path for row in ROWS if isinstance(row, PublicRoute)]
    assert public == ["/healthz", "/readyz", "/openapi.json"]
    for row in API:
        if row.permission != "any_token":
            assert row.path.startswith("/client/v4/accounts/{account_id}/"), name(row)


async def test_a_row_that_cannot_be_reached_stops_the_start() -> None:
    async def handler(request: Request, services: Services) -> Response:
        raise AssertionError

    rows = [PublicRoute("GET", "/a/{id}", handler), PublicRoute("GET", "/a/list", handler)]
    with pytest.raises(ValueError, match="/a/list can never be reached"):
        build_routes(rows)
    build_routes(rows[::-1])


@pytest.mark.parametrize("row", API, ids=name)
async def test_no_token_opens_nothing(stack: Stack, row: ApiRoute) -> None:
    for path in (filled(row, stack.account), filled(row, stack.account) + "/"):
        answer = await stack.client.request(row.method, path, headers={"authorization": ""})
        assert (answer.status_code, answer.json()["errors"]) == (
            401,
            [{"code": 10000, "message": "Authentication error"}],
        )
        assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize("row", [row for row in API if "{account_id}" in row.path], ids=name)
async def test_another_tenants_token_sees_an_account_that_does_not_exist(stack: Stack, row: ApiRoute) -> None:
    headers = {"authorization": f"Bearer {stack.secret_b}"}
    real = await stack.client.request(row.method, filled(row, stack.account), headers=headers)
    unknown_id = "0" * 32
    unknown = await stack.client.request(row.method, filled(row, unknown_id), headers=headers)
    assert (real.status_code, real.json()["errors"][0]["code"]) == (404, 7003)
    assert real.text == unknown.text.replace(unknown_id, stack.account)
    assert set(real.headers) == set(unknown.headers)


@pytest.mark.parametrize("row", [row for row in API if row.permission != "any_token"], ids=name)
async def test_a_token_without_the_permission(stack: Stack, row: ApiRoute) -> None:
    secret = await stack.token(*lacking(row))
    answer = await stack.client.request(
        row.method, filled(row, stack.account), headers={"authorization": f"Bearer {secret}"}
    )
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (403, 9109)
    assert row.permission in error["message"]


@pytest.mark.parametrize("row", API, ids=name)
async def test_the_right_token_gets_past_the_guard(stack: Stack, row: ApiRoute) -> None:
    """The control of the tests above: with the permission the handler is reached, whatever it then says."""
    granted = PERMISSIONS if row.permission == "any_token" else (row.permission,)
    secret = await stack.token(*granted)
    answer = await stack.client.request(
        row.method, filled(row, stack.account), headers={"authorization": f"Bearer {secret}"}
    )
    assert answer.status_code not in (401, 403), answer.text
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("row", ROWS, ids=name)
async def test_a_wrong_method(stack: Stack, row: ApiRoute | PublicRoute) -> None:
    methods = {other.method for other in ROWS if other.path == row.path}
    wrong = next(m for m in ("PUT", "PATCH", "DELETE", "POST", "GET") if m not in methods)
    answer = await stack.client.request(wrong, filled(row, stack.account))
    if answer.json()["errors"][0]["code"] != 7001:  # another row has this path's form and that method
        assert answer.status_code in (400, 404)
        return
    assert answer.status_code == 405
    assert answer.json()["errors"][0]["message"] == f"{wrong} not supported for requested URI."
    assert set(answer.headers["allow"].split(", ")) == methods | ({"HEAD"} if "GET" in methods else set())
