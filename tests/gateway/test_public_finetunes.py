"""The operator's public adapters: made on the operator's socket only, used by every account, changed by none."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.accounts import Accounts
from gateway.admin import admin_app
from gateway.errors import BadInput, FinetuneNotFound, ObjectNotFound
from gateway.ids import PUBLIC_ACCOUNT_ID
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready
from tests.gateway.plane import MODEL, Plane, Tenant

NAME = "cf-public-magicoder"


@pytest.fixture
async def operator(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    """What answers on the admin socket."""
    transport = httpx.ASGITransport(admin_app(plane.services))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin/public/ai/finetunes") as http:
        yield http


async def publish(operator: httpx.AsyncClient, name: str = NAME, seed: int = 0) -> str:
    created = await operator.post("", json={"model": MODEL, "name": name, "public": True})
    assert created.status_code == 200, created.text
    for file_name, data in ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed)))):
        reply = await operator.post(
            f"/{name}/finetune-assets", data={"file_name": file_name}, files={"file": ("blob", data)}
        )
        assert reply.status_code == 200, reply.text
    return str(created.json()["result"]["id"])


async def public(plane: Plane, tenant: Tenant, query: str = "") -> Any:
    return await plane.call(tenant, "GET", f"/public{query}")


async def test_every_account_may_use_it(plane: Plane, tenant: Tenant, operator: httpx.AsyncClient) -> None:
    finetune = await publish(operator)
    other = await plane.tenant("other")
    for each in (tenant, other):
        for lora in (NAME, finetune, f"{NAME}@1"):
            found = await plane.finetunes.resolve(each.identity, plane.catalog.get(MODEL), lora)
            assert (found.finetune_id, found.name) == (finetune, NAME)
        assert [(row["name"], row["public"]) for row in await public(plane, each)] == [(NAME, True)]
        assert (await plane.call(each, "GET", f"/{NAME}"))["status"] == "ready"
        assert await plane.call(each, "GET", "") == []
    await operator.delete(f"/{NAME}")
    for each in (tenant, other):
        with pytest.raises(FinetuneNotFound):
            await plane.finetunes.resolve(each.identity, plane.catalog.get(MODEL), NAME)
        assert await public(plane, each) == []
    assert plane.stored() == []


async def test_no_tenant_can_change_it(plane: Plane, tenant: Tenant, operator: httpx.AsyncClient) -> None:
    finetune = await publish(operator)
    for reference in (NAME, finetune):
        for method, path, body in (
            ("DELETE", "", None), ("PATCH", "", {"description": "mine"}), ("POST", "/versions", {}),
            ("PUT", "/aliases/a", {"version": 1}), ("DELETE", "/versions/1", None), ("GET", "/versions", None),
            ("GET", f"/finetune-assets/{WEIGHTS_FILE}", None),
        ):  # fmt: skip
            assert await plane.call(tenant, method, f"/{reference}{path}", body, status=404) == 7003
        reply = await plane.upload(tenant, reference, CONFIG_FILE, tiny.config())
        assert reply.status_code == 404
    assert (await operator.get(f"/{NAME}")).json()["result"]["status"] == "ready"


async def test_only_the_operator_takes_the_prefix_and_only_the_prefix(
    plane: Plane, tenant: Tenant, operator: httpx.AsyncClient
) -> None:
    for name in (NAME, "CF-public-x", "ｃｆ-public-x"):
        with pytest.raises(BadInput, match="reserved"):
            await plane.finetunes.create(tenant.id, MODEL, name)
    assert await plane.call(tenant, "POST", "", {"model": MODEL, "name": "x", "public": True}, status=400) == 5006
    for name in ("magicoder", "public", "CF-PUBLIC-X"):
        reply = await operator.post("", json={"model": MODEL, "name": name})
        assert (reply.status_code, reply.json()["errors"][0]["code"]) == (400, 5006)


async def test_an_accounts_own_goes_first(plane: Plane, tenant: Tenant, operator: httpx.AsyncClient) -> None:
    """By id a name can never collide; a private name beginning with the prefix cannot exist."""
    own = await make_ready(plane, tenant, "mine", seed=3)
    await publish(operator)
    assert (await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), own)).finetune_id == own


async def test_replacing_reaches_everybody_at_once(plane: Plane, tenant: Tenant, operator: httpx.AsyncClient) -> None:
    await publish(operator)
    model = plane.catalog.get(MODEL)
    before = await plane.finetunes.resolve(tenant.identity, model, NAME)
    await operator.post(f"/{NAME}/versions")
    for file_name, data in ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=5)))):
        await operator.post(
            f"/{NAME}/versions/2/finetune-assets", data={"file_name": file_name}, files={"file": ("blob", data)}
        )
    after = await plane.finetunes.resolve(tenant.identity, model, NAME)
    assert (before.version, after.version) == (1, 2)
    assert before.digest != after.digest


async def test_the_public_list_is_ordered_and_cut(plane: Plane, tenant: Tenant, operator: httpx.AsyncClient) -> None:
    for name in ("cf-public-b", "cf-public-c", "cf-public-a"):
        await publish(operator, name)
    await operator.post("", json={"model": MODEL, "name": "cf-public-unfinished"})
    for query, names in (
        ("", "bca"), ("?orderBy=name", "abc"), ("?orderBy=-name", "cba"), ("?limit=2", "bc"), ("?offset=1", "ca"),
        ("?limit=1&offset=1", "c"), ("?limit=0", ""), ("?offset=9", ""),
    ):  # fmt: skip
        assert [row["name"][-1] for row in await public(plane, tenant, query)] == list(names)
    for query in ("?orderBy=size", "?limit=-1", "?limit=x", "?offset=99999999"):
        assert await plane.call(tenant, "GET", f"/public{query}", status=400) == 7001


async def test_quota_is_for_tenants(plane: Plane, operator: httpx.AsyncClient) -> None:
    for number in range(8):
        assert (await operator.post("", json={"model": MODEL, "name": f"cf-public-{number}"})).status_code == 200


async def test_the_account_behind_it_is_nobodys(plane: Plane, operator: httpx.AsyncClient) -> None:
    await publish(operator)
    accounts: Accounts = plane.accounts
    assert await accounts.list_accounts() == []
    for call in (
        accounts.get_account(PUBLIC_ACCOUNT_ID),
        accounts.create_token(PUBLIC_ACCOUNT_ID, "t", ["workers_ai.read"]),
        accounts.delete_account(PUBLIC_ACCOUNT_ID),
        accounts.set_weight(PUBLIC_ACCOUNT_ID, 1.0),
        accounts.list_tokens(PUBLIC_ACCOUNT_ID),
    ):
        with pytest.raises(ObjectNotFound):
            await call
