"""Uploads through HTTP: every bad file and every bad body is a 4xx, early, and nothing of it stays."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from gateway.errors import FinetuneIncomplete
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from storage.packed import read_packed
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import FIELD, FILE, make_ready, nothing_left, refusal
from tests.gateway.plane import LIMITS, MODEL, Plane, Tenant, open_plane

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


@pytest.mark.parametrize("order", [(WEIGHTS_FILE, CONFIG_FILE), (CONFIG_FILE, WEIGHTS_FILE)])
async def test_the_second_file_is_told_what_is_wrong_with_both(
    plane: Plane, tenant: Tenant, order: tuple[str, str]
) -> None:
    finetune = await plane.create(tenant, "x")
    bad = tiny.tensors(rank=3) | {"base_model.model.lm_head.weight": np.zeros(3, "float32")}
    config = tiny.config() if order[0] == CONFIG_FILE else tiny.config(use_dora=True, bias="all")
    files = {CONFIG_FILE: config, WEIGHTS_FILE: tiny.weights(bad)}
    assert (await plane.upload(tenant, finetune, order[0], files[order[0]])).status_code == 200
    reply = await plane.upload(tenant, finetune, order[1], files[order[1]])
    reasons = reply.json()["errors"][0]["meta"]["reasons"]
    expected = ["output layer", "has shape", *(["use_dora", "bias must be"] if order[1] == CONFIG_FILE else [])]
    assert all(any(why in reason for reason in reasons) for why in expected), reasons
    found = await plane.finetunes.get(tenant.id, finetune)
    assert (found.status, found.reasons, found.missing) == ("failed", tuple(reasons), (order[1],))
    assert (await plane.upload(tenant, finetune, WEIGHTS_FILE, tiny.weights())).status_code == 200
    assert (await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())).status_code == 200
    assert (await plane.finetunes.get(tenant.id, finetune)).status == "ready"


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


async def drive_upload(
    plane: Plane, tenant: Tenant, finetune: str, messages: AsyncIterator[bytes], *headers: tuple[bytes, bytes]
) -> tuple[int, Any]:
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
            *headers,
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


@pytest.mark.parametrize("length", [b"470000", b"9" * 18, b"9" * 5000])
async def test_a_declared_length_over_the_limit_reads_nothing(plane: Plane, tenant: Tenant, length: bytes) -> None:
    finetune = await plane.create(tenant, "x")
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield FIELD

    status, answer = await drive_upload(plane, tenant, finetune, body(), (b"content-length", length))
    assert (status, read) == (413, 0)
    assert b"3006" in answer


async def test_a_config_over_its_own_limit_is_refused(plane: Plane, tenant: Tenant) -> None:
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
