"""The demo's view of the public HTTP API: plain httpx, the calls that any client would send."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.settings import DEMO_MODEL


@dataclass(frozen=True)
class Answer:
    """One streamed answer: text, usage, seconds to the first piece and to the end, and its log's id."""

    text: str
    completion_tokens: int
    first_s: float
    total_s: float
    log_id: str


@dataclass(frozen=True)
class Account:
    """Who calls: the id in the path and the token in the header."""

    name: str
    account_id: str
    token: str


class CallFailed(Exception):
    """A call that should have worked did not; the text is the server's."""


class Api:
    """Calls of one account."""

    def __init__(self, http: httpx.AsyncClient, account: Account) -> None:
        self._http = http
        self.account = account
        self._root = f"/client/v4/accounts/{account.account_id}"
        self._headers = {"Authorization": f"Bearer {account.token}"}

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any call below the account's root; the reply whatever its status."""
        return await self._http.request(method, self._root + path, headers=self._headers, **options)

    async def result(self, method: str, path: str, **options: Any) -> Any:
        """`result` of a call that must succeed. Raises CallFailed."""
        reply = await self.call(method, path, **options)
        if reply.status_code != 200:
            raise CallFailed(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply.json()["result"]

    async def create_finetune(self, name: str, description: str) -> str:
        """A finetune of the demo base; returns its id."""
        body = {"model": DEMO_MODEL, "name": name, "description": description}
        result = await self.result("POST", "/ai/finetunes", json=body)
        return str(result["id"])

    async def upload(self, finetune_id: str, file_name: str, content: bytes) -> httpx.Response:
        """One of the two files, as multipart; the reply whatever its status."""
        return await self.call(
            "POST",
            f"/ai/finetunes/{finetune_id}/finetune-assets",
            data={"file_name": file_name},
            files={"file": (file_name, content, "application/octet-stream")},
        )

    async def upload_folder(self, finetune_id: str, folder: Path) -> None:
        """Both files of a PEFT folder. Raises CallFailed."""
        for file_name in ("adapter_config.json", "adapter_model.safetensors"):
            reply = await self.upload(finetune_id, file_name, (folder / file_name).read_bytes())
            if reply.status_code != 200:
                raise CallFailed(f"upload of {file_name}: {reply.status_code} {reply.text}")

    async def ask(self, prompt: str, lora: str | None) -> Answer:
        """Streams one answer at temperature 0. Raises CallFailed when the stream is not complete."""
        body = {"prompt": prompt, "stream": True, "temperature": 0, "max_tokens": 64}
        if lora is not None:
            body["lora"] = lora
        text, usage, first_s, done = "", 0, 0.0, False
        began = time.perf_counter()
        async with self._http.stream(
            "POST", f"{self._root}/ai/run/{DEMO_MODEL}", headers=self._headers, json=body
        ) as reply:
            if reply.status_code != 200:
                raise CallFailed(f"{prompt!r}: {reply.status_code} {(await reply.aread()).decode()}")
            async for line in reply.aiter_lines():
                data = line.removeprefix("data: ")
                if data == line:
                    continue
                if data == "[DONE]":
                    done = True
                    continue
                chunk = json.loads(data)
                if chunk.get("response") and not text:
                    first_s = time.perf_counter() - began
                text += chunk.get("response", "")
                usage = chunk.get("usage", {}).get("completion_tokens", usage)
        if not done:
            raise CallFailed(f"{prompt!r}: the stream broke off after {text!r}")
        return Answer(text, usage, first_s, time.perf_counter() - began, reply.headers["cf-aig-log-id"])
