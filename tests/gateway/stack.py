"""The whole gateway in this process, on a fake backend: real database, log, routes and middleware, two accounts."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette

from gateway.app import build_app
from gateway.backends.base import Backend
from gateway.backends.fake import FakeBackend, Script
from gateway.errors import RuntimeUnavailable
from gateway.http_protocol import GuardedHttpProtocol
from gateway.logs.log_store import LogStore
from gateway.logs.record import LogRecord
from gateway.messages import ResolvedRequest
from gateway.permissions import PERMISSIONS
from gateway.services import Services
from gateway.settings import DEMO_MODEL, Settings

RUN = f"/ai/run/{DEMO_MODEL}"
CHAT = "/ai/v1/chat/completions"


class Records:
    """The log store with a look at what is appended; `hold` keeps appends waiting, `error` makes them fail."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self.seen: list[LogRecord] = []
        self.durable: list[str] = []
        self.hold: asyncio.Event | None = None
        self.error: Exception | None = None
        self.changed = asyncio.Condition()

    async def append(self, record: LogRecord) -> None:
        """The real append, observed."""
        self.seen.append(record)
        await self._tell()
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        await self._store.append(record)
        self.durable.append(record.id)
        await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, count: int) -> LogRecord:
        """Waits until `count` records were appended, and returns the last of them."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.seen) >= count)
        return self.seen[count - 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def broken_off(request: ResolvedRequest) -> Script:
    """An echo, a piece per word; "break" is answered by two words and the end of the runtime, "fail" by its end."""
    asked = request.request
    text = asked.messages[-1].content if asked.messages else asked.prompt or ""
    if text == "break":
        return ["one", " two", RuntimeUnavailable("the runtime went away", retry_after_s=2)]
    if text == "fail":
        return [RuntimeUnavailable("the runtime went away", retry_after_s=0.01)]
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


@dataclass
class Stack:
    """`client` calls as account A with every permission; `secret_b` belongs to account B."""

    app: Starlette
    services: Services
    records: Records
    fake: FakeBackend
    client: httpx.AsyncClient
    account: str
    account_b: str
    secret: str
    secret_b: str

    def url(self, path: str, account: str | None = None) -> str:
        """A path of an account."""
        return f"/client/v4/accounts/{account or self.account}{path}"

    async def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """POST as account A; `body` becomes JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(self.url(path), content=content, **more)

    async def token(self, *permissions: str, account: str | None = None) -> str:
        """A new secret."""
        return (await self.services.accounts.create_token(account or self.account, "t", permissions))[1]


@contextlib.asynccontextmanager
async def open_stack(
    folder: Path,
    fake: FakeBackend | None = None,
    *,
    backends: Mapping[str, Backend] | None = None,
    settings: Mapping[str, Any] | None = None,
    names: tuple[str, str] = ("a", "b"),
    encoder_sockets: Mapping[str, str] | None = None,
    runtime_token: str = "",
) -> AsyncIterator[Stack]:
    """Everything open; `settings` are sections as in lorikeet.toml, `names` those of the two accounts."""
    fake = fake or FakeBackend()
    app = build_app(
        msgspec.convert({"data_dir": str(folder / "data"), **(settings or {})}, Settings),
        runtime_sockets={},
        runtime_token=runtime_token,
        backends=backends or {DEMO_MODEL: fake},
        encoder_sockets=encoder_sockets,
    )
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        records = Records(services.logs)
        app.state.services = services = _with_logs(services, records)
        account_a = await services.accounts.create_account(names[0])
        account_b = await services.accounts.create_account(names[1])
        _, secret_a = await services.accounts.create_token(account_a.id, "all", PERMISSIONS)
        _, secret_b = await services.accounts.create_token(account_b.id, "all", PERMISSIONS)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://lorikeet.test",
            headers={"authorization": f"Bearer {secret_a}"},
        ) as client:
            yield Stack(app, services, records, fake, client, account_a.id, account_b.id, secret_a, secret_b)


def _with_logs(services: Services, records: Records) -> Services:
    fields = {name: getattr(services, name) for name in services.__dataclass_fields__}
    return Services(**{**fields, "logs": records})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serve(app: Starlette, send_buffer_bytes: int | None = None) -> AsyncIterator[str]:
    """The app on a real socket, as `lorikeet serve` sets it up; yields its URL. send_buffer_bytes: of the kernel's,
    which else takes megabytes of an answer that nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer_bytes is not None:  # connections have it from their listener
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        server = _Server(
            uvicorn.Config(
                app, loop="none", http=GuardedHttpProtocol, log_config=None, lifespan="off", timeout_graceful_shutdown=2
            )
        )
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[listener]))
            while not server.started:
                assert not serving.done()
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True


def events(body: str | bytes) -> list[Any]:
    """The JSON of every event of a stream; `[DONE]` stays a text."""
    text = body.decode() if isinstance(body, bytes) else body
    lines = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
