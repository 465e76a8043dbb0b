"""Who-am-I calls and the list of models, through HTTP, with the shapes that wrangler and the SDKs read."""

from datetime import datetime

import pytest

from gateway.settings import DEMO_MODEL
from tests.gateway.plane import MODEL, Plane, Tenant

V4 = "/client/v4"


async def test_verify(plane: Plane, tenant: Tenant) -> None:
    for path in (f"{V4}/user/tokens/verify", f"{tenant.root}/tokens/verify"):
        body = (await plane.http.get(path, headers=tenant.headers)).json()
        assert body["success"] is True
        assert body["result"]["status"] == "active"
        assert body["result"]["id"] == tenant.identity.token_id
        assert body["messages"] == [{"code": 10000, "message": "This API Token is valid and active"}]
        datetime.fromisoformat(body["result"]["not_before"])


async def test_verify_without_or_with_a_wrong_token(plane: Plane, tenant: Tenant) -> None:
    other = await plane.tenant("other")
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {tenant.secret}"}):
        reply = await plane.http.get(f"{V4}/user/tokens/verify", headers=headers)
        assert (reply.status_code, reply.json()["errors"][0]["code"]) == (401, 10000)
        assert reply.json()["errors"][0]["message"] == "Authentication error"
    assert (await plane.http.get(f"{tenant.root}/tokens/verify", headers=other.headers)).status_code == 404


async def test_accounts_and_memberships_agree_and_end(plane: Plane, tenant: Tenant) -> None:
    await plane.tenant("other")
    accounts = (await plane.http.get(f"{V4}/accounts?page=1", headers=tenant.headers)).json()
    memberships = (await plane.http.get(f"{V4}/memberships?page=1", headers=tenant.headers)).json()
    assert [account["id"] for account in accounts["result"]] == [tenant.id]
    assert [row["account"]["id"] for row in memberships["result"]] == [tenant.id]
    assert memberships["result"][0]["status"] == "accepted"
    for path in ("accounts", "memberships"):
        first = (await plane.http.get(f"{V4}/{path}", headers=tenant.headers)).json()["result_info"]
        assert first == {"page": 1, "per_page": 20, "count": 1, "total_count": 1, "total_pages": 1}
        past = (await plane.http.get(f"{V4}/{path}?page=2&per_page=5", headers=tenant.headers)).json()
        assert past["result"] == []
        assert past["result_info"] == {"page": 2, "per_page": 5, "count": 0, "total_count": 1, "total_pages": 1}
    assert (await plane.http.get(f"{V4}/accounts?name=zzz", headers=tenant.headers)).json()["result"] == []


async def test_user_and_account(plane: Plane, tenant: Tenant) -> None:
    user = (await plane.http.get(f"{V4}/user", headers=tenant.headers)).json()["result"]
    assert user["email"].endswith("@tokens.invalid")
    account = (await plane.http.get(tenant.root, headers=tenant.headers)).json()["result"]
    assert (account["id"], account["name"], account["type"]) == (tenant.id, "one", "standard")


async def test_models_have_what_wrangler_reads(plane: Plane, tenant: Tenant) -> None:
    body = (await plane.http.get(f"{tenant.root}/ai/models/search?per_page=50&page=1", headers=tenant.headers)).json()
    by_name = {model["name"]: model for model in body["result"]}
    assert DEMO_MODEL in by_name
    for model in body["result"]:
        assert isinstance(model["id"], str)
        assert model["source"] == 1
        assert model["task"]["name"] in ("Text Generation", "Text Embeddings", "Text Classification")
        assert {"description", "created_at", "tags", "properties"} <= set(model)
    assert {"property_id": "context_window", "value": "15000"} in by_name["@cf/mistral/mistral-7b-instruct-v0.2-lora"][
        "properties"
    ]
    assert {"property_id": "lora", "value": "true"} in by_name[MODEL]["properties"]


async def test_paging_ends(plane: Plane, tenant: Tenant) -> None:
    seen: list[str] = []
    for page in range(1, 20):
        url = f"{tenant.root}/ai/models/search?per_page=3&page={page}"
        rows = (await plane.http.get(url, headers=tenant.headers)).json()["result"]
        if not rows:
            break
        seen += [row["name"] for row in rows]
    assert len(seen) == len(set(seen)) == len(plane.catalog.all()) + len(plane.services.encoders.all())


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("search=GEMMA", 2), ("author=google", 2), ("task=text%20generation", 8), ("task=Translation", 0),
        ("source=2", 0), ("source=1", 13), ("hide_experimental=true&include_deprecated=true", 13), ("search=zzz", 0),
        ("unknown=1", 13),
    ],
)  # fmt: skip
async def test_filters(plane: Plane, tenant: Tenant, query: str, count: int) -> None:
    body = (await plane.http.get(f"{tenant.root}/ai/models/search?{query}", headers=tenant.headers)).json()
    assert len(body["result"]) == body["result_info"]["total_count"] == count


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=-1", "page=x", "page=1.5", "page=%D9%A1", "per_page=0", "page=99999999999999999999", "source=3",
     "hide_experimental=maybe"],
)  # fmt: skip
async def test_bad_queries(plane: Plane, tenant: Tenant, query: str) -> None:
    reply = await plane.http.get(f"{tenant.root}/ai/models/search?{query}", headers=tenant.headers)
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (400, 7001)


async def test_schema_tasks_and_authors(plane: Plane, tenant: Tenant) -> None:
    url = f"{tenant.root}/ai/models/schema"
    schema = (await plane.http.get(f"{url}?model=%40cf%2Florikeet%2Fdemo-lora", headers=tenant.headers)).json()
    assert schema["result"]["input"]["oneOf"][0]["properties"]["temperature"]["maximum"] == 5
    assert (await plane.http.get(url, headers=tenant.headers)).status_code == 400
    unknown = await plane.http.get(f"{url}?model=x", headers=tenant.headers)
    assert unknown.json()["errors"][0]["code"] == 5007
    tasks = (await plane.http.get(f"{tenant.root}/ai/tasks/search", headers=tenant.headers)).json()["result"]
    assert [task["name"] for task in tasks] == ["Text Generation", "Text Embeddings", "Text Classification"]
    authors = (await plane.http.get(f"{tenant.root}/ai/authors/search", headers=tenant.headers)).json()["result"]
    assert {"name": "google"} in authors
