"""Replacing an adapter under its name: versions, what the name means, roll back, what is kept and what goes."""

import asyncio

import pytest

from gateway.errors import BadInput, FinetuneIncomplete, FinetuneNotFound, ObjectNotFound
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.messages import ResolvedAdapter
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, nothing_left, parts_of, replace
from tests.gateway.plane import MODEL, Plane, Tenant


async def resolved(plane: Plane, tenant: Tenant, lora: str) -> ResolvedAdapter:
    return await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), lora, "log-id")


async def test_a_new_version_keeps_name_and_id(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "helper", seed=1)
    first = await resolved(plane, tenant, "helper")
    opened = await plane.call(tenant, "POST", "/helper/versions")
    assert (opened["version"], opened["status"], opened["missing"]) == (2, "pending", [CONFIG_FILE, WEIGHTS_FILE])
    assert await resolved(plane, tenant, "helper") == first, "what is in the making changes nothing"
    data = {WEIGHTS_FILE: tiny.weights(tiny.tensors(seed=2)), CONFIG_FILE: tiny.config(lora_alpha=4)}
    for file_name, content in data.items():
        reply = await plane.upload(tenant, "helper/versions/2", file_name, content)
        assert reply.status_code == 200, reply.text
    assert reply.json()["result"] == {"id": finetune, "status": "ready", "missing": [], "version": 2}
    second = await resolved(plane, tenant, finetune)
    assert (second.finetune_id, second.name, second.version) == (finetune, "helper", 2)
    assert second.digest != first.digest
    detail = await plane.call(tenant, "GET", "/helper")
    assert (detail["version"], detail["digest"]) == (2, second.digest)
    assert [(v["version"], v["status"], v["aliases"]) for v in detail["versions"]] == [
        (2, "ready", ["default"]),
        (1, "ready", []),
    ]
    assert [ref.digest for ref in plane.backend.prefetched] == [first.digest, second.digest]
    assert (await plane.call(tenant, "GET", "/helper/versions/1"))["digest"] == first.digest


async def test_roll_back_and_forth(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    digests = {1: (await resolved(plane, tenant, "x")).digest}
    for seed in (2, 3):
        await replace(plane, tenant, "x", seed)
        digests[seed] = (await resolved(plane, tenant, "x")).digest
    assert len(set(digests.values())) == 3
    for number in (1, 3, 2):
        answer = await plane.call(tenant, "PUT", "/x/aliases/default", {"version": number})
        assert answer == {"alias": "default", "version": number, "canary": None}
        found = await resolved(plane, tenant, "x")
        assert (found.version, found.digest) == (number, digests[number])
        assert (await resolved(plane, tenant, f"x@{number}")).digest == digests[number]
        assert (await resolved(plane, tenant, f"x@v{number}")).digest == digests[number]


async def test_a_version_beside_the_current_one(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    assert await replace(plane, tenant, "x", 2, activate=False) == 2
    assert (await resolved(plane, tenant, "x")).version == 1
    assert (await resolved(plane, tenant, "x@2")).version == 2


async def test_versions_are_listed_by_pages_newest_first(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    for seed in (2, 3):
        await replace(plane, tenant, "x", seed)
    for page, numbers in ((1, [3, 2]), (2, [1]), (3, [])):
        reply = await plane.http.get(
            f"{tenant.root}/ai/finetunes/x/versions?page={page}&per_page=2", headers=tenant.headers
        )
        body = reply.json()
        assert [version["version"] for version in body["result"]] == numbers
        assert body["result_info"] == {
            "page": page,
            "per_page": 2,
            "count": len(numbers),
            "total_count": 3,
            "total_pages": 2,
        }


async def test_a_file_sent_again_is_taken_another_one_is_not(plane: Plane, tenant: Tenant) -> None:
    """An answer may get lost: whoever sends the last file again must be told that all is well."""
    finetune = await make_ready(plane, tenant, "x", seed=1)
    stored = plane.stored()
    for target in (finetune, "x/versions/1"):
        for file_name, data in ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=1)))):
            reply = await plane.upload(tenant, target, file_name, data)
            assert reply.json()["result"] == {"id": finetune, "status": "ready", "missing": [], "version": 1}
        reply = await plane.upload(tenant, target, WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=2)))
        assert reply.status_code == 400
        assert "open a new version" in reply.json()["errors"][0]["message"]
    assert plane.stored() == stored


async def test_a_refused_version_leaves_the_current_one_in_place(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    await plane.call(tenant, "POST", "/x/versions")
    reply = await plane.upload(tenant, "x/versions/2", CONFIG_FILE, tiny.config(r=64, use_dora=True))
    assert len(reply.json()["errors"][0]["meta"]["reasons"]) == 2
    assert (await resolved(plane, tenant, "x")).version == 1
    detail = await plane.call(tenant, "GET", "/x")
    assert (detail["status"], [v["status"] for v in detail["versions"]]) == ("ready", ["failed", "ready"])
    with pytest.raises(FinetuneIncomplete, match="DoRA"):
        await resolved(plane, tenant, "x@2")
    await plane.upload(tenant, "x/versions/2", CONFIG_FILE, tiny.config())
    await plane.upload(tenant, "x/versions/2", WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=2)))
    assert (await resolved(plane, tenant, "x")).version == 2


async def test_two_replaces_at_once_do_not_mix_their_files(plane: Plane, tenant: Tenant) -> None:
    """Each opens its own version; afterwards both are whole, and one of them is what the name means."""
    await make_ready(plane, tenant, "x", seed=1)

    async def one(seed: int, alpha: int) -> int:
        number = int((await plane.call(tenant, "POST", "/x/versions"))["version"])
        target = f"x/versions/{number}"
        for name, data in (
            (CONFIG_FILE, tiny.config(lora_alpha=alpha)),
            (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed))),
        ):
            assert (await plane.upload(tenant, target, name, data)).status_code == 200
        return number

    alone = {}
    for seed, alpha in ((2, 4), (3, 32)):
        number = await one(seed, alpha)
        alone[seed] = (await resolved(plane, tenant, f"x@{number}")).digest
    numbers = await asyncio.gather(one(2, 4), one(3, 32))
    assert {(await resolved(plane, tenant, f"x@{number}")).digest for number in numbers} == set(alone.values())
    assert (await resolved(plane, tenant, "x")).version in numbers


async def test_the_oldest_versions_go_when_there_are_too_many(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    first = await resolved(plane, tenant, "x")
    await plane.call(tenant, "PUT", "/x/aliases/kept", {"version": 1})
    for seed in range(2, 8):
        await replace(plane, tenant, "x", seed)
    detail = await plane.call(tenant, "GET", "/x")
    assert [version["version"] for version in detail["versions"]] == [7, 6, 5, 4, 1]
    assert len(plane.backend.forgotten) == 2
    assert first.digest not in plane.backend.forgotten
    found = await plane.finetunes.get(tenant.id, "x")
    assert set(plane.stored()) == {key for version in found.versions for key in version.keys}
    with pytest.raises(FinetuneNotFound):
        await resolved(plane, tenant, "x@2")


async def test_what_the_name_meant_before_is_kept_to_roll_back_to(plane: Plane, tenant: Tenant) -> None:
    """Five newer ones beside it, which nobody points to, push it out as little as an alias would let them."""
    await make_ready(plane, tenant, "x", seed=1)
    for seed in range(2, 6):
        await replace(plane, tenant, "x", seed, activate=False)
    assert await replace(plane, tenant, "x", 6) == 6
    assert [v["version"] for v in (await plane.call(tenant, "GET", "/x"))["versions"]] == [6, 5, 4, 3, 1]
    await plane.call(tenant, "PUT", "/x/aliases/default", {"version": 1})
    assert (await resolved(plane, tenant, "x")).version == 1


async def test_a_version_is_removed_unless_an_alias_leads_to_it(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    digest = (await resolved(plane, tenant, "x")).digest
    assert await plane.call(tenant, "DELETE", "/x/versions/1", status=400) == 5006
    await replace(plane, tenant, "x", 2)
    await plane.call(tenant, "PUT", "/x/aliases/old", {"version": 1})
    assert await plane.call(tenant, "DELETE", "/x/versions/1", status=400) == 5006
    await plane.call(tenant, "DELETE", "/x/aliases/old")
    await plane.call(tenant, "DELETE", "/x/versions/1")
    assert plane.backend.forgotten == [digest]
    assert await plane.call(tenant, "DELETE", "/x/versions/1", status=404) == 7003
    assert await plane.call(tenant, "GET", "/x/versions/0", status=404) == 7003
    assert await plane.call(tenant, "GET", "/x/versions/one", status=404) == 7003
    assert len(plane.stored()) == 3
    await plane.call(tenant, "DELETE", "/x")
    assert nothing_left(plane)


async def test_numbers_are_never_given_twice(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    await plane.call(tenant, "POST", "/x/versions")
    await plane.call(tenant, "DELETE", "/x/versions/2")
    assert (await plane.call(tenant, "POST", "/x/versions"))["version"] == 3


async def test_open_versions_are_bounded_and_abandoned_ones_make_room(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    for _ in range(8):
        number = (await plane.call(tenant, "POST", "/x/versions"))["version"]
        await plane.upload(tenant, f"x/versions/{number}", CONFIG_FILE, tiny.config(lora_alpha=number))
    with pytest.raises(BadInput, match="8 versions"):
        await plane.finetunes.versions.open(tenant.id, "x")
    desk = plane.finetunes.versions._desk
    now, desk.now = desk.now(), lambda: now + 25 * 3600
    _, version = await plane.finetunes.versions.open(tenant.id, "x")
    assert version.number == 10
    found = await plane.finetunes.get(tenant.id, "x")
    assert [each.number for each in found.versions] == [1, 10]
    assert len(plane.stored()) == 3


@pytest.mark.parametrize(
    "body", [b"[]", b"no", b'{"activate": 1}', b'{"activate": null}'], ids=["array", "text", "number", "null"]
)
async def test_a_bad_body_opens_nothing(plane: Plane, tenant: Tenant, body: bytes) -> None:
    await make_ready(plane, tenant, "x")
    url = f"{tenant.root}/ai/finetunes/x/versions"
    reply = await plane.http.post(url, headers=tenant.headers, content=body)
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (400, 5006)
    assert len((await plane.finetunes.get(tenant.id, "x")).versions) == 1


async def test_another_account_reaches_no_version(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    stranger = await plane.tenant("stranger")
    for method, path, body in (
        ("GET", "/versions", None), ("POST", "/versions", None), ("GET", "/versions/1", None),
        ("DELETE", "/versions/1", None), ("GET", "/aliases", None), ("PUT", "/aliases/a", {"version": 1}),
        ("DELETE", "/aliases/a", None), ("GET", f"/finetune-assets/{CONFIG_FILE}", None),
        ("PATCH", "", {"description": ""}),
        ("GET", f"/versions/1/finetune-assets/{CONFIG_FILE}", None),
    ):  # fmt: skip
        for reference in (finetune, "x"):
            assert await plane.call(stranger, method, f"/{reference}{path}", body, status=404) == 7003
    for lora in (f"{finetune}@1", "x@1", "x@default"):
        with pytest.raises(FinetuneNotFound):
            await resolved(plane, stranger, lora)
    with pytest.raises(ObjectNotFound):
        await plane.finetunes.upload(stranger.id, finetune, parts_of(CONFIG_FILE, tiny.config()), 1)
    assert len((await plane.finetunes.get(tenant.id, "x")).versions) == 1


async def test_validating_is_seen_while_it_lasts(plane: Plane, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    reached, go_on = asyncio.Event(), asyncio.Event()
    put = plane.objects.put

    async def slow_put(key: str, data: object, *, max_bytes: int) -> int:
        reached.set()
        await go_on.wait()
        return await put(key, data, max_bytes=max_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(plane.objects, "put", slow_put)
    upload = asyncio.create_task(plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights()))
    await reached.wait()
    assert (await plane.call(tenant, "GET", "/x"))["status"] == "validating"
    assert (await plane.call(tenant, "GET", ""))[0]["status"] == "validating"
    go_on.set()
    assert (await upload).json()["result"]["status"] == "ready"
    assert (await plane.call(tenant, "GET", "/x"))["status"] == "ready"


async def test_the_description_can_be_changed(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    assert (await plane.call(tenant, "PATCH", "/x", {"description": "new words"}))["description"] == "new words"
    assert (await plane.call(tenant, "GET", "/x"))["description"] == "new words"
    for body in ({}, {"description": 1}, {"description": "x", "name": "y"}, {"description": "x" * 5000}):
        assert await plane.call(tenant, "PATCH", "/x", body, status=400) == 5006
