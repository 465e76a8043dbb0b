"""What the tests of the log share: real database, real object store, records of an exchange."""

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from gateway.ids import uuid7
from gateway.logs.log_store import LogStore
from gateway.logs.record import LogRecord
from gateway.settings import Logs
from storage.database import Database
from storage.objects.base import ObjectStore
from storage.objects.local import LocalObjects

ACME = "a" * 32
GLOBEX = "b" * 32


def record(question: str = "hello", answer: str = "hi", **changes: Any) -> LogRecord:
    """A finished native exchange of ACME."""
    fields: dict[str, Any] = {
        "id": uuid7(),
        "account_id": ACME,
        "gateway": "default",
        "token_id": "t" * 32,
        "created_at": time.time(),
        "path": "ai/run/@cf/lorikeet/demo-lora",
        "model": "@cf/lorikeet/demo-lora",
        "status_code": 200,
        "outcome": "stop",
        "duration_ms": 12,
        "request": msgspec.json.encode({"prompt": question}),
        "response": msgspec.json.encode({"result": {"response": answer}, "success": True}),
    }
    return LogRecord(**{**fields, **changes})


class House:
    """A data folder with its database and object store; `store` opens the log in it, as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = AsyncExitStack()
        self.database: Database
        self.objects: ObjectStore

    async def __aenter__(self) -> "House":
        self.database = await Database.open(self.folder / "rows.db")
        self._stack.push_async_callback(self.database.aclose)
        self.objects = LocalObjects(self.folder / "objects")
        self._stack.push_async_callback(self.objects.aclose)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def store(self, settings: Logs | None = None, *, database: Any = None, objects: Any = None) -> LogStore:
        """An open log; the caller closes it."""
        return await LogStore.open(
            database or self.database, objects or self.objects, self.folder / "logs", settings or Logs()
        )

    def segments(self) -> list[str]:
        """Names of the segment files."""
        return sorted(path.name for path in (self.folder / "logs").glob("*.wal"))
