"""The operator's face on a real Unix socket, and the same client without a gateway."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from gateway.admin import admin_app
from gateway.admin_client import AdminClient, AdminRefused, open_admin
from gateway.data_dir import DataDir
from gateway.errors import AuthenticationFailed
from gateway.ingest.adapter import CONFIG_FILE
from gateway.settings import Settings
from tests.gateway import tiny_adapters as tiny
from tests.gateway.plane import Plane, open_plane


@contextlib.asynccontextmanager
async def serving(plane: Plane) -> AsyncIterator[None]:
    """The admin app on `admin.sock`, as the gateway process serves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(DataDir(plane.folder).admin_socket))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(admin_app(plane.services), lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def client_of(folder: Path, running: bool) -> AsyncIterator[AdminClient]:
    async with contextlib.AsyncExitStack() as stack:
        if running:
            plane = await stack.enter_async_context(open_plane(folder))
            await stack.enter_async_context(serving(plane))
        yield await stack.enter_async_context(open_admin(Settings(data_dir=str(folder))))


@pytest.mark.parametrize("running", [True, False])
async def test_both_ways_do_the_same(tmp_path: Path, running: bool) -> None:
    async with client_of(tmp_path, running) as admin:
        account = await admin.create_account("Acme Ltd")
        assert await admin.list_accounts() == [account]
        token, secret = await admin.create_token(account.id, "ci", ["workers_ai.read"], 4e9)
        assert secret.startswith("cfat_")
        assert (token.permissions, token.expires_at) == (("workers_ai.read",), 4e9)
        everything, _ = await admin.create_token(account.id, "all")
        assert len(everything.permissions) == 5
        assert await admin.list_tokens(account.id) == [token, everything]
        await admin.revoke_token(token.id)
        assert await admin.list_tokens(account.id) == [everything]
        light = await admin.create_account("Light", 0.5)
        assert (account.weight, light.weight) == (1.0, 0.5)
        heavy = await admin.set_weight(light.id, 8)
        assert heavy == (await admin.list_accounts())[1]
        assert (heavy.id, heavy.weight) == (light.id, 8.0)
        await admin.delete_account(light.id)
        for call, why in (
            (admin.create_account("Odd", 0.0), "weight must be a number from 0.01 to 100"),
            (admin.set_weight(account.id, float("1e9")), "weight must be"),
            (admin.set_weight(account.id, float("nan")), "must be"),
            (admin.create_account("Odd", float("inf")), "must be"),
            (admin.create_token(account.id, "x", ["ai_gateway.run"], float("nan")), "future|finite"),
            (admin.create_token(account.id, "x", ["ai_gateway.run"], float("inf")), "future|finite"),
            (admin.set_weight("none", 1.0), "no account 'none'; `lorikeet accounts list` shows"),
            (admin.create_account("acme ltd"), "exists already"),
            (admin.create_account(""), "1 to 128"),
            (admin.create_token(account.id, "x", ["root"]), "unknown permission"),
            (admin.create_token(account.id, "x", ["ai_gateway.run"], 5.0), "future"),
            (admin.create_token("../x", "x"), "no account"),
            (admin.list_tokens("none"), "no account"),
            (admin.revoke_token(token.id), "no token"),
            (admin.delete_account("none"), "no account 'none'; `lorikeet accounts list` shows"),
        ):
            with pytest.raises(AdminRefused, match=why):
                await call
        await admin.delete_account(account.id)
        assert await admin.list_accounts() == []


async def test_revoking_reaches_the_running_gateway(plane: Plane) -> None:
    tenant = await plane.tenant("one")
    async with serving(plane), open_admin(Settings(data_dir=str(plane.folder))) as admin:
        await plane.accounts.authenticate(tenant.secret)
        await admin.revoke_token(tenant.identity.token_id)
        with pytest.raises(AuthenticationFailed):
            await plane.accounts.authenticate(tenant.secret)


async def test_deleting_an_account_takes_its_finetunes_along(plane: Plane) -> None:
    tenant = await plane.tenant("one")
    finetune = await plane.create(tenant, "x")
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    async with serving(plane), open_admin(Settings(data_dir=str(plane.folder))) as admin:
        await admin.delete_account(tenant.id)
    assert plane.stored() == []
    assert await plane.accounts.list_accounts() == []


async def test_without_a_gateway_an_account_with_finetunes_stays(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as plane:
        tenant = await plane.tenant("one")
        await plane.create(tenant, "x")
    async with open_admin(Settings(data_dir=str(tmp_path))) as admin:
        with pytest.raises(AdminRefused, match="still has 1 finetunes"):
            await admin.delete_account(tenant.id)


async def test_a_dead_socket_is_no_gateway_and_a_locked_database_is_said(plane: Plane) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(DataDir(plane.folder).admin_socket))
    with pytest.raises(AdminRefused, match="in use by process"):
        async with open_admin(Settings(data_dir=str(plane.folder)), wait_s=0):
            pass


async def test_a_gateway_that_is_just_starting_is_waited_for(plane: Plane) -> None:
    """It holds the database already and will answer on its socket in a moment."""
    opened = asyncio.create_task(_first_account(plane.folder))
    await asyncio.sleep(0)
    async with serving(plane):
        assert await opened == "early"


async def _first_account(folder: Path) -> str:
    async with open_admin(Settings(data_dir=str(folder))) as admin:
        return (await admin.create_account("early")).name


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/accounts", b"", 400),
        ("POST", "/accounts", b"[]", 400),
        ("POST", "/accounts", b'{"name": 5}', 400),
        ("POST", "/accounts", b'{"name": "' + b"x" * 100_000 + b'"}', 413),
        ("POST", "/accounts/none/tokens", b'{"name": "x", "permissions": "all"}', 400),
        ("POST", "/accounts/none/tokens", b'{"name": "x", "expires_at": "soon"}', 400),
        ("POST", "/accounts/none/tokens", b'{"name": "x"}', 404),
        ("DELETE", "/tokens/none", b"", 404),
        ("GET", "/client/v4/user", b"", 404),
    ],
)
async def test_bad_admin_calls(plane: Plane, method: str, path: str, body: bytes, status: int) -> None:
    transport = httpx.ASGITransport(admin_app(plane.services))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as http:
        reply = await http.request(method, path, content=body)
    assert reply.status_code == status
    if path.startswith(("/accounts", "/tokens")):
        assert json.loads(reply.content)["success"] is False
