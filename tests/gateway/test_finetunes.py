"""Finetunes through HTTP, on real storage: the life of an adapter, isolation, quota, what a request resolves."""

import asyncio
import hashlib

import numpy as np
import pytest

from gateway.errors import BadInput, FinetuneIncomplete, FinetuneNotFound
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from storage.packed import read_packed
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, nothing_left, refusal
from tests.gateway.plane import MODEL, NO_LORA_MODEL, OTHER_MODEL, Plane, Tenant


@pytest.mark.parametrize("order", [(CONFIG_FILE, WEIGHTS_FILE), (WEIGHTS_FILE, CONFIG_FILE)])
async def test_both_files_in_any_order_make_it_ready(plane: Plane, tenant: Tenant, order: tuple[str, str]) -> None:
    data = {CONFIG_FILE: tiny.config(), WEIGHTS_FILE: tiny.weights()}
    finetune = await plane.create(tenant, "helper")
    first = await plane.upload(tenant, finetune, order[0], data[order[0]])
    assert first.json()["result"] == {"id": finetune, "status": "pending", "missing": [order[1]], "version": 1}
    second = await plane.upload(tenant, "helper", order[1], data[order[1]])
    assert second.json()["result"] == {"id": finetune, "status": "ready", "missing": [], "version": 1}

    detail = (await plane.http.get(f"{tenant.root}/ai/finetunes/helper", headers=tenant.headers)).json()["result"]
    assert detail["status"] == "ready"
    assert detail["rank"] == 4
    assert detail["modules"] == ["q_proj", "v_proj", "down_proj"]
    assert detail["residency"] == {
        "tier": "memory",
        "path": [{"tier": "disk", "ms": 2.0, "bytes": 100}, {"tier": "memory", "ms": 1.0, "bytes": 100}],
    }
    assert [adapter.digest for adapter in plane.backend.prefetched] == [detail["digest"]]

    packed_key = f"adapters/{tenant.id}/{detail['digest']}.lora"
    assert len(plane.stored()) == 3
    assert packed_key in plane.stored()
    packed = (plane.folder / "objects" / packed_key).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == detail["digest"]
    assert len(packed) == detail["size_bytes"]
    assert plane.spooled() == []


async def test_packed_values_are_the_uploaded_ones(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "exact", seed=7)
    found = await plane.finetunes.get(tenant.id, finetune)
    packed = read_packed((plane.folder / "objects" / str(found.object_key)).read_bytes())
    sent = tiny.tensors(seed=7)
    assert len(packed.header.entries) == 6
    for entry in packed.header.entries:
        a, b = packed.matrices(entry)
        np.testing.assert_array_equal(a, sent[tiny.tensor_name(entry.layer, entry.module, "A")])
        np.testing.assert_array_equal(b.T, sent[tiny.tensor_name(entry.layer, entry.module, "B")])
        assert entry.scaling == 2.0


async def test_list_is_a_flat_array_and_public_is_empty(plane: Plane, tenant: Tenant) -> None:
    first, second = await plane.create(tenant, "a"), await plane.create(tenant, "b")
    for path in ("/ai/finetunes", "/ai/finetunes/"):
        body = (await plane.http.get(tenant.root + path, headers=tenant.headers)).json()
        assert [row["id"] for row in body["result"]] == [first, second]
        assert {"id", "name", "model", "description", "created_at", "modified_at", "public"} <= set(body["result"][0])
    public = await plane.http.get(f"{tenant.root}/ai/finetunes/public?limit=5", headers=tenant.headers)
    assert public.json()["result"] == []


async def test_create_takes_json_whatever_the_content_type_says(plane: Plane, tenant: Tenant) -> None:
    for number, content_type in enumerate(("text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "")):
        reply = await plane.http.post(
            f"{tenant.root}/ai/finetunes/",
            headers={**tenant.headers, "content-type": content_type},
            content=b'{"model": "%s", "name": "n%d", "description": ""}' % (MODEL.encode(), number),
        )
        assert reply.status_code == 200, reply.text
        assert reply.json()["result"]["name"] == f"n{number}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, 3003),
        (b"not json", 400, 5006),
        (b"[]", 400, 5006),
        (b'{"name": "x"}', 400, 5006),
        (b'{"model": "%s"}' % MODEL.encode(), 400, 5006),
        (b'{"model": "%s", "name": 5}' % MODEL.encode(), 400, 5006),
        (b'{"model": "%s", "name": ""}' % MODEL.encode(), 400, 5006),
        (b'{"model": "%s", "name": "x", "public": true}' % MODEL.encode(), 400, 5006),
        (b'{"model": "@cf/none/such", "name": "x"}', 400, 5007),
        (b'{"model": "@cf/google/gemma-2b-it-lora", "name": "x"}', 400, 5007),
        (b'{"model": "%s", "name": "x"}' % NO_LORA_MODEL.encode(), 405, 5005),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, 5006),
        (b'{"name": "' + b"x" * 70_000 + b'"}', 413, 3006),
    ],
)
async def test_bad_create_is_refused(plane: Plane, tenant: Tenant, body: bytes, status: int, code: int) -> None:
    reply = await plane.http.post(f"{tenant.root}/ai/finetunes", headers=tenant.headers, content=body)
    assert refusal(reply) == (status, code), reply.text
    assert await plane.finetunes.list_finetunes(tenant.id) == []


@pytest.mark.parametrize(
    "name",
    [
        " lead", "trail ", "a" * 129, "tab\there", "zero\u200bwidth", "bidi\u202etxt", "nul\0", "a/b", "a\\b",
        ".", "..", "line\u2028", "cf-public-mine", "CF-Public-x", "ｃｆ-public-y", "public",
        "6f1c0c0e-7d0e-4d5b-9f3d-2b6e6f6f1f11", "\ud7ff\ue000", "\u0441f-public-x", "cf\u2013public\u2013x",
        "cf-\u0440ublic-x", "\u0440ublic", "CF\u2010PUBLIC\u2010X", "cf-publ\u0131c-x",
    ],
)  # fmt: skip
async def test_bad_names_are_refused(plane: Plane, tenant: Tenant, name: str) -> None:
    with pytest.raises(BadInput):
        await plane.finetunes.create(tenant.id, MODEL, name)


async def test_names_that_look_alike_count_as_one(plane: Plane, tenant: Tenant) -> None:
    await plane.finetunes.create(tenant.id, MODEL, "Café")
    for same in ("Cafe\u0301", "café", "Ｃａｆé"):
        with pytest.raises(BadInput, match="exists already"):
            await plane.finetunes.create(tenant.id, MODEL, same)
    await plane.finetunes.create(tenant.id, MODEL, "support-tone")
    for same in (
        "su\u0440\u0440ort-tone",
        "SUPPORT\u2013T\u041eNE",
        "\u0455upport-ton\u0435",
        "supp\u03bfrt\u2212tone",
        "\ua4e2upport-tone",
        "suppo\u13a1t-tone",
        "support-\u1d1bone",
        "supp\u2c9frt-tone",
    ):
        with pytest.raises(BadInput, match="exists already"):
            await plane.finetunes.create(tenant.id, MODEL, same)
    await plane.finetunes.create(tenant.id, MODEL, "\u043c\u043e\u0434\u0435\u043b\u044c")  # a word of its own alphabet
    other = await plane.tenant("other")
    await plane.finetunes.create(other.id, MODEL, "Café")
    found = await plane.finetunes.get(tenant.id, "Cafe\u0301")
    assert found.name == "Café"


async def test_quota_is_exact_under_parallel_creates(plane: Plane, tenant: Tenant) -> None:
    results = await asyncio.gather(
        *(plane.finetunes.create(tenant.id, MODEL, f"n{n}") for n in range(20)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(results) - len(refused) == 6
    assert all(isinstance(error, BadInput) and "the most it can have" in str(error) for error in refused)
    await plane.finetunes.delete(tenant.id, (await plane.finetunes.list_finetunes(tenant.id))[0].id)
    await plane.finetunes.create(tenant.id, MODEL, "again")


async def test_other_accounts_see_nothing(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "secret")
    stranger = await plane.tenant("stranger")
    for reference in (finetune, "secret"):
        path = f"{stranger.root}/ai/finetunes/{reference}"
        unknown = await plane.http.get(f"{stranger.root}/ai/finetunes/unknown", headers=stranger.headers)
        reply = await plane.http.get(path, headers=stranger.headers)
        assert refusal(reply) == refusal(unknown) == (404, 7003)
        assert refusal(await plane.http.delete(path, headers=stranger.headers)) == (404, 7003)
        assert refusal(await plane.upload(stranger, reference, CONFIG_FILE, tiny.config())) == (404, 7003)
        with pytest.raises(FinetuneNotFound):
            await plane.finetunes.resolve(stranger.identity, plane.catalog.get(MODEL), reference)
    foreign_path = await plane.http.get(f"{tenant.root}/ai/finetunes", headers=stranger.headers)
    assert foreign_path.status_code == 404
    assert (await plane.http.get(f"{stranger.root}/ai/finetunes", headers=stranger.headers)).json()["result"] == []
    assert (await plane.finetunes.get(tenant.id, finetune)).status == "ready"


async def test_permissions(plane: Plane) -> None:
    reader = await plane.tenant("reader", ("workers_ai.read",))
    nobody = await plane.tenant("nobody", ("ai_gateway.run",))
    assert (await plane.http.get(f"{reader.root}/ai/finetunes", headers=reader.headers)).status_code == 200
    for method, path in (("POST", ""), ("POST", "/x/finetune-assets"), ("DELETE", "/x")):
        reply = await plane.http.request(method, f"{reader.root}/ai/finetunes{path}", headers=reader.headers)
        assert refusal(reply) == (403, 9109)
    assert refusal(await plane.http.get(f"{nobody.root}/ai/finetunes", headers=nobody.headers)) == (403, 9109)


async def test_delete_removes_rows_objects_and_tells_the_backend(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    digest = (await plane.finetunes.get(tenant.id, finetune)).digest
    reply = await plane.http.delete(f"{tenant.root}/ai/finetunes/x", headers=tenant.headers)
    assert reply.json()["result"] == {"id": finetune, "in_use": 0}
    assert plane.backend.forgotten == [digest]
    assert nothing_left(plane)
    assert refusal(await plane.http.delete(f"{tenant.root}/ai/finetunes/x", headers=tenant.headers)) == (404, 7003)
    assert await plane.create(tenant, "x") != finetune


async def test_weights_shared_by_two_finetunes_live_until_both_are_gone(plane: Plane, tenant: Tenant) -> None:
    first, second = await make_ready(plane, tenant, "a"), await make_ready(plane, tenant, "b")
    other = await plane.tenant("other")
    third = await make_ready(plane, other, "c")
    key = str((await plane.finetunes.get(tenant.id, first)).object_key)
    for account, finetune, left in ((tenant, first, 6), (tenant, second, 3), (other, third, 0)):
        await plane.http.delete(f"{account.root}/ai/finetunes/{finetune}", headers=account.headers)
        assert len([name for name in plane.stored() if name == key]) == (1 if finetune == first else 0)
        assert len(plane.stored()) == left
        assert len(plane.backend.forgotten) == (1 if finetune == third else 0)


async def test_resolve_finds_by_id_and_name_and_forgets_what_was_deleted(plane: Plane, tenant: Tenant) -> None:
    model = plane.catalog.get(MODEL)
    finetune = await make_ready(plane, tenant, "helper")
    by_id = await plane.finetunes.resolve(tenant.identity, model, finetune)
    assert by_id == await plane.finetunes.resolve(tenant.identity, model, "helper")
    assert by_id.finetune_id == finetune
    with pytest.raises(BadInput, match=MODEL):
        await plane.finetunes.resolve(tenant.identity, plane.catalog.get(OTHER_MODEL), "helper")
    await plane.finetunes.delete(tenant.id, "helper")
    for reference in (finetune, "helper"):
        with pytest.raises(FinetuneNotFound) as error:
            await plane.finetunes.resolve(tenant.identity, model, reference, "the-log-id")
        assert error.value.message == f"AiError: AiError: Finetune {reference} not found (the-log-id)"


async def test_resolve_uses_no_database_once_warm(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "helper")
    model = plane.catalog.get(MODEL)
    warm = await plane.finetunes.resolve(tenant.identity, model, "helper")
    await plane.database.aclose()
    assert await plane.finetunes.resolve(tenant.identity, model, "helper") == warm


@pytest.mark.parametrize("lora", ["", "../x", "cf-public-magicoder", "x" * 100_000, "a\0b", "http://x/y", "\n\x1b[31m"])
async def test_unknown_lora_is_3037_whatever_it_is(plane: Plane, tenant: Tenant, lora: str) -> None:
    with pytest.raises(FinetuneNotFound) as error:
        await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), lora)
    assert len(error.value.message) < 300
    assert error.value.message.isprintable()


async def test_incomplete_names_the_missing_files(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    model = plane.catalog.get(MODEL)
    with pytest.raises(FinetuneIncomplete, match=f"{CONFIG_FILE} and {WEIGHTS_FILE}"):
        await plane.finetunes.resolve(tenant.identity, model, finetune)
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    with pytest.raises(FinetuneIncomplete, match=f"upload {WEIGHTS_FILE}"):
        await plane.finetunes.resolve(tenant.identity, model, finetune)
