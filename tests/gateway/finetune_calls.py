"""Calls and checks that several tests of finetunes share."""

import asyncio
from collections.abc import AsyncIterator

import httpx

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.wire.multipart import Part, read_parts
from tests.gateway import tiny_adapters as tiny
from tests.gateway.plane import Plane, Tenant

FIELD = b'--B\r\nContent-Disposition: form-data; name="file_name"\r\n\r\nadapter_config.json\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="blob"\r\n\r\n{}\r\n'


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


def parts_of(file_name: str, data: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[Part]:
    async def body() -> AsyncIterator[bytes]:
        yield FIELD.replace(b"adapter_config.json", file_name.encode())
        if gate is not None:
            await gate.wait()
        yield FILE.replace(b"{}", data) + b"--B--\r\n"

    return read_parts("multipart/form-data; boundary=B", body())


async def replace(plane: Plane, tenant: Tenant, finetune: str, seed: int, *, activate: bool = True) -> int:
    """A new version from both files; its number."""
    opened = await plane.call(tenant, "POST", f"/{finetune}/versions", {"activate": activate})
    number = int(opened["version"])
    for file_name, data in (
        (CONFIG_FILE, tiny.config()),
        (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed))),
    ):
        reply = await plane.upload(tenant, f"{finetune}/versions/{number}", file_name, data)
        assert reply.status_code == 200, reply.text
    return number
