"""Sixteen streams over accounts, adapters and dialects at once, each with the moments of what it saw."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.admin_client import open_admin
from gateway.demo import ADAPTERS_FOLDER
from gateway.settings import Settings
from gateway.supervisor import Stack
from runtime.client import RuntimeClient
from runtime.config import RuntimeConfig
from runtime.protocol import Stats
from tests.e2e.deployment import MODEL

ASKED = {"stream": True, "ignore_eos": True, "temperature": 1.5}
LORAS = (None, *sorted(folder.name for folder in ADAPTERS_FOLDER.iterdir()))


@dataclass
class Account:
    """One tenant with every adapter of the demo, and a client of its own."""

    http: httpx.AsyncClient

    async def upload(self) -> None:
        """All adapters of the demo."""
        for name in filter(None, LORAS):
            created = await self.http.post("/ai/finetunes", json={"model": MODEL, "name": name})
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                reply = await self.http.post(
                    f"/ai/finetunes/{created.json()['result']['id']}/finetune-assets",
                    data={"file_name": file},
                    files={"file": ("blob", (ADAPTERS_FOLDER / name / file).read_bytes())},
                )
                assert reply.status_code == 200, reply.text

    async def ask(self, question: str, lora: str | None = None) -> httpx.Response:
        """One native call at temperature 0."""
        body = {"prompt": question, "temperature": 0, **({"lora": lora} if lora else {})}
        return await self.http.post(f"/ai/run/{MODEL}", json=body)

    async def rows(self, count: int) -> list[dict[str, Any]]:
        """The log, once it has `count` rows, and whatever comes beyond them."""
        async with asyncio.timeout(20):
            while True:
                reply = await self.http.get("/ai-gateway/gateways/default/logs", params={"per_page": 50})
                rows: list[dict[str, Any]] = reply.json()["result"]
                if len(rows) >= count:
                    return rows
                await asyncio.sleep(0.05)


@dataclass
class Stream:
    """One streamed answer. `event` is its last, `error` what broke the connection."""

    account: Account
    openai: bool
    lora: str | None
    max_tokens: int
    log_id: str = ""
    status: int = 0
    event: str = ""
    events: int = 0
    ended_at: float = 0.0
    error: Exception | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        """Until it ends, in whatever way."""
        body: dict[str, Any] = {**ASKED, "max_tokens": self.max_tokens, **({"lora": self.lora} if self.lora else {})}
        path = "/ai/v1/chat/completions" if self.openai else f"/ai/run/{MODEL}"
        body |= {"model": MODEL, "messages": [{"role": "user", "content": "x"}]} if self.openai else {"prompt": "x"}
        try:
            async with self.account.http.stream("POST", path, json=body) as reply:
                self.status, self.log_id = reply.status_code, reply.headers.get("cf-aig-log-id", "")
                async for line in reply.aiter_lines():
                    if line.startswith("data: "):
                        self.event, self.events = line.removeprefix("data: "), self.events + 1
                        if self.events == 3:
                            self.started.set()
        except httpx.HTTPError as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()
            self.started.set()

    @property
    def code(self) -> int | None:
        """Of the error event that it ended with; None for any other end."""
        told = {} if self.event == "[DONE]" else json.loads(self.event)
        if self.openai:
            return int(told["error"]["code"]) if "error" in told else None
        return told["errors"][0]["code"] if told.get("errors") else None


@asynccontextmanager
async def accounts(stack_url: str, settings: Settings, count: int) -> AsyncIterator[list[Account]]:
    """New accounts with every adapter."""
    async with open_admin(settings) as admin:
        made = [await admin.create_account(f"tenant-{index}") for index in range(count)]
        secrets = [(await admin.create_token(account.id, "t"))[1] for account in made]
    clients = [
        httpx.AsyncClient(
            base_url=f"{stack_url}/client/v4/accounts/{account.id}",
            headers={"Authorization": f"Bearer {secret}"},
            timeout=120,
        )
        for account, secret in zip(made, secrets, strict=True)
    ]
    try:
        tenants = [Account(client) for client in clients]
        for tenant in tenants:
            await tenant.upload()
        yield tenants
    finally:
        for client in clients:
            await client.aclose()


@asynccontextmanager
async def streams(tenants: list[Account], *, max_tokens: int = 900) -> AsyncIterator[list[Stream]]:
    """Sixteen streams that have all begun to answer; read to their ends before the block is left."""
    made = [Stream(tenants[i % len(tenants)], bool(i % 2), LORAS[i // 2 % len(LORAS)], max_tokens) for i in range(16)]
    async with asyncio.TaskGroup() as group, asyncio.timeout(120):
        for stream in made:
            group.create_task(stream.read())
        for stream in made:
            await stream.started.wait()
        yield made


async def idle_stats(stack: Stack) -> Stats:
    """Asked of the runtime itself, once nothing runs there."""
    config = RuntimeConfig.from_json(stack.runtimes[MODEL].config)
    async with RuntimeClient(socket_path=Path(config.socket_path), token=config.token, gateway_id="test") as client:
        await client.wait_ready(60)
        async with asyncio.timeout(30):
            while client.stats is None or client.stats.running or client.stats.waiting:
                await asyncio.sleep(0.02)
        return client.stats
