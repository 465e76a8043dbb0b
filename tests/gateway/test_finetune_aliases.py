"""What a reference means: aliases, percentage splits, names with an "@" of their own."""

import pytest

from gateway.errors import BadInput, FinetuneNotFound
from gateway.finetune_records import Pointer, split_reference
from gateway.messages import ResolvedAdapter
from tests.gateway.finetune_calls import make_ready, replace
from tests.gateway.plane import MODEL, Plane, Tenant


async def resolved(
    plane: Plane, tenant: Tenant, lora: str, request: str = "r", session: str | None = None
) -> ResolvedAdapter:
    return await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), lora, request, session)


async def two_versions(plane: Plane, tenant: Tenant, name: str = "x") -> None:
    await make_ready(plane, tenant, name, seed=1)
    await replace(plane, tenant, name, 2, activate=False)


async def test_an_alias_leads_to_its_version(plane: Plane, tenant: Tenant) -> None:
    await two_versions(plane, tenant)
    await plane.call(tenant, "PUT", "/x/aliases/stable", {"version": 1})
    await plane.call(tenant, "PUT", "/x/aliases/next", {"version": 2})
    found = await plane.finetunes.get(tenant.id, "x")
    for lora, version in (("x", 1), ("x@stable", 1), ("x@next", 2), (f"{found.id}@next", 2), ("x@default", 1)):
        assert (await resolved(plane, tenant, lora)).version == version
    await plane.call(tenant, "PUT", "/x/aliases/stable", {"version": 2})
    assert (await resolved(plane, tenant, "x@stable")).version == 2
    assert await plane.call(tenant, "GET", "/x/aliases") == [
        {"alias": "default", "version": 1, "canary": None},
        {"alias": "next", "version": 2, "canary": None},
        {"alias": "stable", "version": 2, "canary": None},
    ]
    assert [each["alias"] for each in await plane.call(tenant, "GET", "/x/aliases?page=2&per_page=2")] == ["stable"]
    assert await plane.call(tenant, "GET", "/x/aliases?page=3&per_page=2") == []
    await plane.call(tenant, "DELETE", "/x/aliases/next")
    with pytest.raises(FinetuneNotFound):
        await resolved(plane, tenant, "x@next")
    assert await plane.call(tenant, "DELETE", "/x/aliases/next", status=404) == 7003
    assert await plane.call(tenant, "DELETE", "/x/aliases/default", status=400) == 5006


async def test_a_split_gives_each_side_its_share(plane: Plane, tenant: Tenant) -> None:
    await two_versions(plane, tenant)
    body = {"version": 1, "canary": {"version": 2, "percent": 20}}
    assert await plane.call(tenant, "PUT", "/x/aliases/default", body) == {"alias": "default", **body}
    picked = [(await resolved(plane, tenant, "x", f"request-{n}")).version for n in range(5000)]
    assert abs(picked.count(2) / len(picked) - 0.2) < 0.02  # 3.5 standard deviations
    assert set(picked) == {1, 2}


async def test_a_session_stays_with_its_side_and_a_larger_share_only_adds(plane: Plane, tenant: Tenant) -> None:
    await two_versions(plane, tenant)
    sides: dict[int, list[int]] = {}
    for percent in (5, 30, 60):
        body = {"version": 1, "canary": {"version": 2, "percent": percent}}
        await plane.call(tenant, "PUT", "/x/aliases/default", body)
        for _ in range(2):
            sides[percent] = [
                (await resolved(plane, tenant, "x", f"r{n}-{percent}", f"session-{n}")).version for n in range(300)
            ]
            assert sides[percent] == [
                (await resolved(plane, tenant, "x", "another", f"session-{n}")).version for n in range(300)
            ]
    for less, more in ((5, 30), (30, 60)):
        assert sides[less].count(2) < sides[more].count(2)
        assert all(b == 2 for a, b in zip(sides[less], sides[more], strict=True) if a == 2)


async def test_sessions_are_dealt_anew_for_each_finetune_and_alias(plane: Plane, tenant: Tenant) -> None:
    """Otherwise the same callers would be the guinea pigs of every experiment."""
    for name in ("x", "y"):
        await two_versions(plane, tenant, name)
        for alias in ("default", "beta"):
            body = {"version": 1, "canary": {"version": 2, "percent": 50}}
            await plane.call(tenant, "PUT", f"/{name}/aliases/{alias}", body)
    sides = {
        lora: tuple([(await resolved(plane, tenant, lora, "r", f"s{n}")).version for n in range(200)])
        for lora in ("x", "y", "x@beta")
    }
    assert len(set(sides.values())) == 3


async def test_a_replaced_version_ends_the_split(plane: Plane, tenant: Tenant) -> None:
    await two_versions(plane, tenant)
    await plane.call(tenant, "PUT", "/x/aliases/default", {"version": 1, "canary": {"version": 2, "percent": 50}})
    assert await plane.call(tenant, "DELETE", "/x/versions/2", status=400) == 5006
    assert await replace(plane, tenant, "x", 3) == 3
    assert {(await resolved(plane, tenant, "x", f"r{n}")).version for n in range(50)} == {3}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"version": 0}, {"version": 3}, {"version": "1"}, {"version": True}, {"version": 1.5}, {"version": 2**40},
        {"version": 1, "canary": 2}, {"version": 1, "canary": {"version": 2}},
        {"version": 1, "canary": {"version": 2, "percent": 0}},
        {"version": 1, "canary": {"version": 2, "percent": 100}},
        {"version": 1, "canary": {"version": 2, "percent": -1}}, {"version": 1, "canary": {"version": 1, "percent": 5}},
        {"version": 1, "canary": {"version": 9, "percent": 5}},
        {"version": 1, "canary": {"version": 2, "percent": "5"}},
        {"version": 1, "canary": {"version": 2, "percent": True}}, {"version": 1, "more": 1},
        {"version": 1, "canary": {"version": 2, "percent": 5, "more": 1}},
    ],
)  # fmt: skip
async def test_what_is_no_pointer(plane: Plane, tenant: Tenant, body: dict[str, object]) -> None:
    await two_versions(plane, tenant)
    assert await plane.call(tenant, "PUT", "/x/aliases/a", body, status=400) == 5006
    assert list((await plane.finetunes.get(tenant.id, "x")).aliases) == ["default"]


async def test_an_alias_does_not_lead_to_a_version_in_the_making(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    await plane.call(tenant, "POST", "/x/versions")
    assert await plane.call(tenant, "PUT", "/x/aliases/a", {"version": 2}, status=400) == 5006


@pytest.mark.parametrize("alias", ["1", "v2", "A", "a b", "-a", ".", "a" * 33, "é", "a%00b", "..", "a@b", "%2e%2e"])
async def test_what_is_no_alias(plane: Plane, tenant: Tenant, alias: str) -> None:
    await make_ready(plane, tenant, "x")
    reply = await plane.http.put(
        f"{tenant.root}/ai/finetunes/x/aliases/{alias}", headers=tenant.headers, json={"version": 1}
    )
    assert reply.status_code in (400, 404, 405), reply.text
    assert list((await plane.finetunes.get(tenant.id, "x")).aliases) == ["default"]


async def test_aliases_are_bounded(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    for number in range(31):
        await plane.finetunes.versions.point(tenant.id, "x", f"a{number}", Pointer(1))
    with pytest.raises(BadInput, match="32 aliases"):
        await plane.finetunes.versions.point(tenant.id, "x", "more", Pointer(1))
    await plane.finetunes.versions.point(tenant.id, "x", "a0", Pointer(1))


async def test_a_name_with_an_at_of_its_own_goes_before_an_alias(plane: Plane, tenant: Tenant) -> None:
    await two_versions(plane, tenant)
    await plane.call(tenant, "PUT", "/x/aliases/beta", {"version": 2})
    assert (await resolved(plane, tenant, "x@beta")).name == "x"
    await make_ready(plane, tenant, "x@beta", seed=5)
    assert (await resolved(plane, tenant, "x@beta")).name == "x@beta"
    await plane.call(tenant, "DELETE", "/x@beta")
    assert (await resolved(plane, tenant, "x@beta")).version == 2


def test_references() -> None:
    assert split_reference("x@beta") == ("x", "beta")
    assert split_reference("a@b@v3") == ("a@b", "v3")
    for plain in ("x", "x@", "@beta", "x@Beta", "x@0", "x@a b", "x@../y"):
        assert split_reference(plain) is None
