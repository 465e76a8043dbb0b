"""The management plane on real parts: SQLite file, local objects, catalogue, route guard; only the backend records."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import Accounts
from gateway.authorize import build_routes
from gateway.cache_care import CacheCare
from gateway.catalog import Catalog
from gateway.encoders import EncoderCatalog
from gateway.endpoints import finetune_versions as finetune_versions_endpoint
from gateway.endpoints import finetunes as finetunes_endpoint
from gateway.endpoints import identity as identity_endpoint
from gateway.endpoints import models as models_endpoint
from gateway.errors import LorikeetError
from gateway.finetunes import Finetunes
from gateway.messages import Identity
from gateway.permissions import PERMISSIONS
from gateway.services import Services
from gateway.settings import Adapters, Settings
from gateway.wire.envelope import error_response
from runtime.protocol import AdapterRef, AdapterStatus, TierVisit
from storage.database import Database
from storage.objects.local import LocalObjects
from tests.gateway.tiny_adapters import write_base

MODEL = "@cf/tiny/base-lora"
OTHER_MODEL = "@cf/tiny/other-lora"
NO_LORA_MODEL = "@cf/tiny/no-lora"
LIMITS = Adapters(max_rank=8, max_bytes=200_000, max_per_account=6)


class RecordingBackend:
    """Stands where a runtime would: remembers what the plane told it."""

    def __init__(self) -> None:
        self.prefetched: list[AdapterRef] = []
        self.forgotten: list[str] = []

    async def adapter_statuses(self, digests: Sequence[str]) -> dict[str, AdapterStatus]:
        seen = {adapter.digest for adapter in self.prefetched}
        way = (TierVisit("disk", 0.002, 100), TierVisit("memory", 0.001, 100))
        return {digest: AdapterStatus(digest, "memory", way) for digest in digests if digest in seen}

    async def prefetch(self, adapter: AdapterRef) -> None:
        self.prefetched.append(adapter)

    async def forget(self, digest: str) -> None:
        self.forgotten.append(digest)


@dataclass
class Tenant:
    """An account and a token of it."""

    id: str
    secret: str
    identity: Identity

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}

    @property
    def root(self) -> str:
        return f"/client/v4/accounts/{self.id}"


@dataclass
class Plane:
    """Everything open, and an HTTP client on the routes."""

    folder: Path
    database: Database
    objects: LocalObjects
    accounts: Accounts
    catalog: Catalog
    finetunes: Finetunes
    services: Services
    http: httpx.AsyncClient
    app: Starlette
    backend: RecordingBackend = field(default_factory=RecordingBackend)

    async def tenant(self, name: str, permissions: tuple[str, ...] = PERMISSIONS) -> Tenant:
        account = await self.accounts.create_account(name)
        _, secret = await self.accounts.create_token(account.id, "test", permissions)
        return Tenant(account.id, secret, await self.accounts.authenticate(secret))

    def stored(self) -> list[str]:
        """Every file of the object store, finished or not."""
        root = self.folder / "objects"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def spooled(self) -> list[Path]:
        """Everything left in the spool."""
        return list((self.folder / "spool").iterdir())

    async def upload(self, tenant: Tenant, finetune: str, file_name: str, data: bytes) -> httpx.Response:
        return await self.http.post(
            f"{tenant.root}/ai/finetunes/{finetune}/finetune-assets",
            headers=tenant.headers,
            data={"file_name": file_name},
            files={"file": ("blob", data, "application/octet-stream")},
        )

    async def call(self, tenant: Tenant, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """A call below /ai/finetunes: `result`, or the error's code when a `status` other than 200 is expected."""
        reply = await self.http.request(method, f"{tenant.root}/ai/finetunes{path}", headers=tenant.headers, json=body)
        assert reply.status_code == status, reply.text
        answer = reply.json()
        assert answer["success"] is (status == 200)
        return answer["result"] if status == 200 else answer["errors"][0]["code"]

    async def create(self, tenant: Tenant, name: str, model: str = MODEL) -> str:
        reply = await self.http.post(
            f"{tenant.root}/ai/finetunes", headers=tenant.headers, json={"model": model, "name": name}
        )
        assert reply.status_code == 200, reply.text
        return str(reply.json()["result"]["id"])


@contextlib.asynccontextmanager
async def open_plane(folder: Path, limits: Adapters = LIMITS) -> AsyncIterator[Plane]:
    """Opens everything under `folder`."""
    catalog = Catalog(
        {
            MODEL: write_base(folder / "base"),
            OTHER_MODEL: write_base(folder / "other"),
            NO_LORA_MODEL: write_base(folder / "no-lora", model_type="gpt_neox"),
        }
    )
    database = await Database.open(folder / "lorikeet.db")
    objects = LocalObjects(folder / "objects")
    accounts = Accounts(database)
    backend = RecordingBackend()

    async def forget(model: str, digest: str) -> None:
        if model == MODEL:
            await backend.forget(digest)

    finetunes = Finetunes(database, objects, catalog, limits, folder / "spool", forget=forget)
    missing = cast(Any, None)
    services = Services(
        settings=Settings(adapters=limits),
        database=database,
        objects=objects,
        accounts=accounts,
        catalog=catalog,
        finetunes=finetunes,
        caches=CacheCare(finetunes, {}, Settings().tiers),
        logs=missing,
        backends={MODEL: cast(Any, backend)},
        pipeline=missing,
        telemetry=missing,
        bodies=missing,
        hang_up=missing,
        description=missing,
        batches=missing,
        encoders=EncoderCatalog({}),
        encoder_backends={},
    )

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, LorikeetError)
        return error_response(error)

    rows = (
        *identity_endpoint.ROUTES,
        *finetunes_endpoint.ROUTES,
        *finetune_versions_endpoint.ROUTES,
        *models_endpoint.ROUTES,
    )
    app = Starlette(routes=build_routes(rows), exception_handlers={LorikeetError: failed})
    app.router.redirect_slashes = False
    app.state.services = services
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Plane(folder, database, objects, accounts, catalog, finetunes, services, http, app, backend)
    finally:
        await finetunes.aclose()
        await objects.aclose()
        await database.aclose()
