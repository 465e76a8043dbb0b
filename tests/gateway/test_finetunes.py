"""Finetunes through HTTP, on real storage: the life of an adapter, isolation, quota, races, and nothing left behind."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from gateway import errors
from gateway.errors import BadInput, FinetuneIncomplete, FinetuneNotFound, ObjectNotFound, OverCapacity
from gateway.finetunes import Finetunes
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.ingest.spool import Spool
from gateway.wire.multipart import Part, read_parts
from storage.errors import StorageError, StorageFull, StorageUnavailable
from storage.objects.base import single
from storage.objects.local import LocalObjects
from storage.packed import read_packed
from tests.gateway import tiny_adapters as tiny
from tests.gateway.plane import LIMITS, MODEL, NO_LORA_MODEL, OTHER_MODEL, Plane, Tenant, open_plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with open_plane(tmp_path) as opened:
        yield opened


@pytest.fixture
async def tenant(plane: Plane) -> Tenant:
    return await plane.tenant("one")


async def make_ready(plane: Plane, tenant: Tenant, name: str, seed: int = 0) -> str:
    finetune = await plane.create(tenant, name)
    assert (await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())).status_code == 200
    reply = await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed)))
    assert reply.status_code == 200, reply.text
    return finetune


def nothing_left(plane: Plane) -> bool:
    return not plane.stored() and not plane.spooled()


def refusal(reply: httpx.Response) -> tuple[int, int]:
    body = reply.json()
    assert body["success"] is False
    assert body["messages"] == []
    return reply.status_code, body["errors"][0]["code"]


@pytest.mark.parametrize("order", [(CONFIG_FILE, WEIGHTS_FILE), (WEIGHTS_FILE, CONFIG_FILE)])
async def test_both_files_in_any_order_make_it_ready(plane: Plane, tenant: Tenant, order: tuple[str, str]) -> None:
    data = {CONFIG_FILE: tiny.config(), WEIGHTS_FILE: tiny.weights()}
    finetune = await plane.create(tenant, "helper")
    first = await plane.upload(tenant, finetune, order[0], data[order[0]])
    assert first.json()["result"] == {"id": finetune, "status": "pending", "missing": [order[1]]}
    second = await plane.upload(tenant, "helper", order[1], data[order[1]])
    assert second.json()["result"] == {"id": finetune, "status": "ready", "missing": []}

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
        "line\u2028", "cf-public-mine", "CF-Public-x", "ｃｆ-public-y", "public",
        "6f1c0c0e-7d0e-4d5b-9f3d-2b6e6f6f1f11", "\ud7ff\ue000",
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


BAD_FILES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("not json", CONFIG_FILE, lambda: b"{", "not valid JSON"),
    ("array", CONFIG_FILE, lambda: b"[]", "not a JSON object"),
    ("another family", CONFIG_FILE, lambda: tiny.config(model_type="gemma"), "model_type"),
    ("rank", CONFIG_FILE, lambda: tiny.config(r=9), "above the limit of 8"),
    ("quantised", CONFIG_FILE, lambda: tiny.config(base_model_name_or_path="x/llama-7b-bnb-4bit"), "quantised"),
    ("dora", CONFIG_FILE, lambda: tiny.config(use_dora=True), "DoRA"),
    ("bias", CONFIG_FILE, lambda: tiny.config(bias="all"), "bias"),
    ("modules_to_save", CONFIG_FILE, lambda: tiny.config(modules_to_save=["lm_head"]), "modules_to_save"),
    ("truncated", WEIGHTS_FILE, lambda: tiny.weights()[:-100], "truncated"),
    ("lying header", WEIGHTS_FILE, lambda: (2**60).to_bytes(8, "little") + tiny.weights()[8:], "length"),
    ("pickle", WEIGHTS_FILE, lambda: b"\x80\x04\x95" + bytes(200), "header"),
    ("shape", WEIGHTS_FILE, lambda: tiny.weights(tiny.tensors(rank=5)), "shape"),
    ("dtype", WEIGHTS_FILE, lambda: tiny.weights(tiny.tensors(dtype="float64")), "dtype"),
    ("nan", WEIGHTS_FILE, lambda: tiny.weights({k: v * np.nan for k, v in tiny.tensors().items()}), "NaN"),
]


@pytest.mark.parametrize(("file_name", "data", "why"), [case[1:] for case in BAD_FILES], ids=[c[0] for c in BAD_FILES])
async def test_a_bad_file_is_refused_with_its_reason_and_nothing_of_it_stays(
    plane: Plane, tenant: Tenant, file_name: str, data: Callable[[], bytes], why: str
) -> None:
    good = {CONFIG_FILE: tiny.config(), WEIGHTS_FILE: tiny.weights()}
    other = next(name for name in good if name != file_name)
    finetune = await plane.create(tenant, "x")
    assert (await plane.upload(tenant, finetune, other, good[other])).status_code == 200
    before = plane.stored()
    for _ in range(2):
        reply = await plane.upload(tenant, finetune, file_name, data())
        assert refusal(reply) == (400, 5006), reply.text
        assert why in reply.json()["errors"][0]["message"]
        assert any(why in reason for reason in reply.json()["errors"][0]["meta"]["reasons"])
        assert plane.stored() == before
        assert plane.spooled() == []
    failed = await plane.finetunes.get(tenant.id, finetune)
    assert failed.status == "failed"
    with pytest.raises(FinetuneIncomplete, match=file_name):
        await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), "x")
    reply = await plane.upload(tenant, finetune, file_name, good[file_name])
    assert reply.json()["result"]["status"] == "ready", reply.text


async def test_all_reasons_are_named_at_once(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    bad = tiny.config(r=64, use_dora=True, bias="all", peft_type="IA3", lora_alpha=-1)
    reasons = (await plane.upload(tenant, finetune, CONFIG_FILE, bad)).json()["errors"][0]["meta"]["reasons"]
    assert len(reasons) == 5
    detail = (await plane.http.get(f"{tenant.root}/ai/finetunes/x", headers=tenant.headers)).json()["result"]
    assert detail["status"] == "failed"
    assert detail["reasons"] == reasons
    assert detail["missing"] == [CONFIG_FILE, WEIGHTS_FILE]


async def test_an_earlier_file_may_be_replaced_and_leaves_no_object(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    first = plane.stored()
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config(lora_alpha=32))
    assert len(plane.stored()) == 1
    assert plane.stored() != first
    await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())
    packed_key = str((await plane.finetunes.get(tenant.id, finetune)).object_key)
    packed = read_packed((plane.folder / "objects" / packed_key).read_bytes())
    assert {entry.scaling for entry in packed.header.entries} == {8.0}


async def test_a_ready_finetune_takes_no_more_files(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    before = await plane.finetunes.get(tenant.id, finetune)
    reply = await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config(lora_alpha=1))
    assert refusal(reply) == (400, 5006)
    assert "create a new finetune" in reply.json()["errors"][0]["message"]
    assert await plane.finetunes.get(tenant.id, finetune) == before


@pytest.mark.parametrize(
    "file_name", ["../../x", "/etc/passwd", "adapter_model.bin", "", ".", "ADAPTER_CONFIG.JSON", "a" * 300, "x\0y"]
)
async def test_only_the_two_names_are_taken(plane: Plane, tenant: Tenant, file_name: str) -> None:
    finetune = await plane.create(tenant, "x")
    assert refusal(await plane.upload(tenant, finetune, file_name, b"{}")) == (400, 5006)
    assert nothing_left(plane)


async def raw_upload(plane: Plane, tenant: Tenant, finetune: str, body: bytes, content_type: str) -> httpx.Response:
    return await plane.http.post(
        f"{tenant.root}/ai/finetunes/{finetune}/finetune-assets/",
        headers={**tenant.headers, "content-type": content_type},
        content=body,
    )


async def test_parts_in_the_other_order_and_odd_headers(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    body = (
        b'--B\r\nContent-Disposition: form-data; name="extra"\r\n\r\nignored\r\n'
        b'--B\r\ncontent-type: application/json\r\nCONTENT-DISPOSITION: form-data; name="file"; '
        b'filename="we;ird \\" name.json"\r\n\r\n' + tiny.config() + b"\r\n"
        b"--B\r\nContent-Disposition: form-data; name=file_name\r\n\r\nadapter_config.json\r\n--B--\r\n"
    )
    reply = await raw_upload(plane, tenant, finetune, body, 'multipart/form-data; boundary="B"')
    assert reply.status_code == 200, reply.text
    assert (await plane.finetunes.get(tenant.id, finetune)).missing == (WEIGHTS_FILE,)


FIELD = b'--B\r\nContent-Disposition: form-data; name="file_name"\r\n\r\nadapter_config.json\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="blob"\r\n\r\n{}\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=B"),
        (b"hello", "multipart/form-data; boundary=B"),
        (FIELD + FILE, "multipart/form-data; boundary=B"),
        (FIELD + FILE + b"--B", "multipart/form-data; boundary=B"),
        (FIELD + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (FILE + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (FIELD + FILE + FILE + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (FIELD + FIELD + FILE + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (b"--B\r\n\r\nno name\r\n--B--\r\n", "multipart/form-data; boundary=B"),
        (FIELD + FILE + b"--B--\r\n", "multipart/form-data"),
        (FIELD + FILE + b"--B--\r\n", "multipart/form-data; boundary=other"),
        (FIELD + FILE + b"--B--\r\n", "application/json"),
        (FIELD + FILE + b"--B--\r\n", ""),
        (b'{"file_name": "adapter_config.json"}', "application/json"),
        (FIELD.replace(b"adapter_config.json", b"\xff\xfe") + FILE + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (FIELD + FILE.replace(b"{}", b"") + b"--B--\r\n", "multipart/form-data; boundary=B"),
        (b"--B\r\n" + b"X-Y: z\r\n" * 100 + b"\r\n\r\n--B--\r\n", "multipart/form-data; boundary=B"),
    ],
)
async def test_malformed_multipart_is_a_4xx(plane: Plane, tenant: Tenant, body: bytes, content_type: str) -> None:
    finetune = await plane.create(tenant, "x")
    reply = await raw_upload(plane, tenant, finetune, body, content_type)
    assert refusal(reply) == (400, 5006), reply.text
    assert nothing_left(plane)


async def drive_upload(plane: Plane, tenant: Tenant, finetune: str, messages: AsyncIterator[bytes]) -> tuple[int, Any]:
    """The upload as the server would call it, so that what was read from the connection can be counted."""
    path = f"{tenant.root}/ai/finetunes/{finetune}/finetune-assets"
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(messages), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "app": plane.app, "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        "root_path": "",
        "headers": [
            (b"authorization", tenant.headers["authorization"].encode()),
            (b"content-type", b"multipart/form-data; boundary=B"),
        ],
    }  # fmt: skip
    await plane.app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def test_over_the_limit_is_refused_while_it_streams(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    consumed = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal consumed
        yield FIELD.replace(b"adapter_config.json", b"adapter_model.safetensors") + FILE[: -len(b"{}\r\n")]
        while True:
            consumed += 50_000
            yield bytes(50_000)

    status, body = await drive_upload(plane, tenant, finetune, endless())
    assert status == 413
    assert b"3006" in body
    assert consumed == 250_000  # the limit is 200,000
    assert nothing_left(plane)


async def test_a_wrong_file_name_ends_the_upload_before_the_file(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    chunks = [FIELD.replace(b"adapter_config.json", b"evil.bin"), FILE[:-4], bytes(50_000), bytes(50_000)]
    consumed = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal consumed
        for chunk in chunks:
            consumed += 1
            yield chunk

    status, _ = await drive_upload(plane, tenant, finetune, body())
    assert (status, consumed) == (400, 2)  # the second piece holds the boundary that ends the name


async def test_a_declared_length_over_the_limit_reads_nothing(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    reply = await plane.http.post(
        f"{tenant.root}/ai/finetunes/{finetune}/finetune-assets",
        headers={**tenant.headers, "content-type": "multipart/form-data; boundary=B", "content-length": "9" * 12},
        content=b"--B--\r\n",
    )
    assert refusal(reply) == (413, 3006)


async def test_a_config_over_its_own_limit_is_refused(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    async with open_plane(plane.folder / "roomy", msgspec.structs.replace(LIMITS, max_bytes=5_000_000)) as roomy:
        other = await roomy.tenant("x")
        finetune = await roomy.create(other, "x")
        reply = await roomy.upload(other, finetune, CONFIG_FILE, b" " * 1_000_001)
        assert refusal(reply) == (413, 3006)
        assert nothing_left(roomy)


async def test_a_client_that_goes_away_leaves_nothing(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")

    async def broken() -> AsyncIterator[bytes]:
        yield FIELD + FILE[:-4]

    status, _ = await drive_upload(plane, tenant, finetune, broken())
    assert status == 400
    assert nothing_left(plane)


def parts_of(file_name: str, data: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[Part]:
    async def body() -> AsyncIterator[bytes]:
        yield FIELD.replace(b"adapter_config.json", file_name.encode())
        if gate is not None:
            await gate.wait()
        yield FILE.replace(b"{}", data) + b"--B--\r\n"

    return read_parts("multipart/form-data; boundary=B", body())


async def test_two_uploads_at_once_are_serialised(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    results = await asyncio.gather(
        plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config())),
        plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights())),
    )
    assert sorted(result.status for result in results) == ["pending", "ready"]
    assert len(plane.stored()) == 3


async def test_two_uploads_of_the_same_file_end_as_one_of_them(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    results = await asyncio.gather(
        *(
            plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed))))
            for seed in range(4)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, BadInput)]
    assert len(refused) == 3
    assert len(plane.stored()) == 3
    found = await plane.finetunes.get(tenant.id, finetune)
    packed = (plane.folder / "objects" / str(found.object_key)).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == found.digest


async def test_too_many_uploads_at_once_are_refused_not_queued(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    gate = asyncio.Event()
    uploads = [
        asyncio.create_task(plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config(), gate)))
        for _ in range(8)
    ]
    while len(plane.spooled()) < 8:
        await asyncio.sleep(0)
    with pytest.raises(OverCapacity):
        await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    gate.set()
    await asyncio.gather(*uploads)
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    assert len(plane.stored()) == 1


async def test_cancelled_at_every_point_leaves_no_object_without_a_row(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    for power in range(80):
        task = asyncio.create_task(plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights())))
        for _ in range(int(1.2**power)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await plane.finetunes.get(tenant.id, finetune)
        rows = {file.object_key for file in found.files} | ({found.object_key} - {None})
        assert set(plane.stored()) == rows
        assert plane.spooled() == []
        if found.status == "ready":
            return
    pytest.fail("no upload was given enough time to end")


async def test_delete_removes_rows_objects_and_tells_the_backend(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    digest = (await plane.finetunes.get(tenant.id, finetune)).digest
    reply = await plane.http.delete(f"{tenant.root}/ai/finetunes/x", headers=tenant.headers)
    assert reply.json()["result"] == {"id": finetune}
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


async def test_an_upload_that_loses_against_a_delete(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    gate = asyncio.Event()
    upload = asyncio.create_task(
        plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config(), gate))
    )
    while not plane.spooled():
        await asyncio.sleep(0)
    await plane.finetunes.delete(tenant.id, finetune)
    gate.set()
    with pytest.raises(ObjectNotFound):
        await upload
    assert nothing_left(plane)


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


async def test_what_a_killed_process_left_is_swept_at_the_next_start(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "kept")
    kept = await plane.finetunes.get(tenant.id, finetune)
    orphan = f"adapters/{tenant.id}/{'0' * 64}.lora"
    await plane.objects.put(orphan, single(b"half a commit"), max_bytes=100)
    abandoned = Spool(plane.folder / "spool").scratch()
    scratch = await abandoned.__aenter__()
    await scratch.note([orphan, str(kept.object_key), "adapters/never/written"])

    restarted = Finetunes(plane.database, plane.objects, plane.catalog, LIMITS, plane.folder / "spool")
    assert await restarted.sweep() == 1
    assert plane.spooled() == []
    assert orphan not in plane.stored()
    assert kept.object_key in plane.stored()
    assert await restarted.sweep() == 0


class FailingStore:
    """The local store, but its nth put or delete finds a full or absent disk."""

    def __init__(self, inner: LocalObjects, fail_at: int, after: bool) -> None:
        self._inner = inner
        self._left = fail_at
        self._after = after

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise StorageFull("no room")
        size = await self._inner.put(key, data, max_bytes=max_bytes)
        if self._left == 0:
            raise StorageUnavailable("stored, but the answer was lost")
        return size

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._inner.get(key, start=start, length=length)

    async def size(self, key: str) -> int:
        return await self._inner.size(key)

    async def delete(self, key: str) -> None:
        await self._inner.delete(key)

    async def aclose(self) -> None:
        """The inner store is closed by its owner."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", [1, 2])
async def test_a_failing_object_store_changes_nothing(plane: Plane, tenant: Tenant, fail_at: int, after: bool) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.finetunes.upload(tenant.id, finetune, parts_of(CONFIG_FILE, tiny.config()))
    before, stored = await plane.finetunes.get(tenant.id, finetune), plane.stored()
    store = FailingStore(plane.objects, fail_at, after)
    failing = Finetunes(plane.database, store, plane.catalog, LIMITS, plane.folder / "spool")
    with pytest.raises(StorageError):
        await failing.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights()))
    assert await plane.finetunes.get(tenant.id, finetune) == before
    assert plane.stored() == stored
    assert plane.spooled() == []
    assert (await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())).json()["result"]["status"] == "ready"


async def test_a_damaged_stored_file_is_noticed(plane: Plane, tenant: Tenant) -> None:
    finetune = await plane.create(tenant, "x")
    await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
    path = plane.folder / "objects" / plane.stored()[0]
    path.write_bytes(tiny.config().replace(b"8", b"9"))
    with pytest.raises(errors.StorageUnavailable, match=f"the stored {CONFIG_FILE} is damaged"):
        await plane.finetunes.upload(tenant.id, finetune, parts_of(WEIGHTS_FILE, tiny.weights()))
    assert (await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())).status_code == 200
    assert (await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())).json()["result"]["status"] == "ready"
