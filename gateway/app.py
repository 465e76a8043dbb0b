"""The composition root: opens every part in order, closes them in reverse, and joins the route table with middleware.

    Tracing > Front (id, plain path, failures) > known paths > route table > the row's own guard > handler

`app.state.services` is there from start-up to shut-down. Tests give their own `backends`; nothing else can be replaced,
because everything else runs anywhere.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp

from gateway.accounts import Accounts
from gateway.authorize import build_routes
from gateway.backends.base import Backend
from gateway.backends.encoder import EncoderBackend
from gateway.backends.runtime import RuntimeBackend
from gateway.batches.desk import BatchDesk
from gateway.batches.queue import BatchQueue
from gateway.batches.records import BatchRecords
from gateway.body_budget import BodyBudget
from gateway.cache_care import CacheCare
from gateway.catalog import ALIASES, Catalog, CatalogModel
from gateway.data_dir import DataDir, object_folder
from gateway.encoders import EncoderCatalog, EncoderModel
from gateway.endpoints import (
    embeddings,
    finetune_versions,
    health,
    identity,
    logs,
    models,
    openai,
    openapi,
    run,
    token_count,
)
from gateway.endpoints import finetunes as finetunes_endpoint
from gateway.finetunes import Finetunes
from gateway.ids import new_id
from gateway.known_paths import KnownPaths
from gateway.logs.log_store import LogStore
from gateway.middleware.front import Front
from gateway.middleware.telemetry import Tracing
from gateway.openapi.document import document
from gateway.pipeline import Pipeline
from gateway.routes import ApiRoute, PublicRoute
from gateway.runtime_address import RuntimeAddress, remote_runtimes
from gateway.runtime_match import RuntimeMatch
from gateway.services import Services
from gateway.settings import DEMO_MODEL, Settings, SettingsError, adapter_limits
from gateway.telemetry import Telemetry
from gateway.text.encoder_tokenizer import EncoderTokenizer
from gateway.text.tokenizer import Tokenizer, TokenizerFault
from gateway.text.tool_calls.base import FormatName
from runtime.client import RuntimeClient
from runtime.encoder.client import EncoderClient
from storage.database import Database
from storage.objects.base import ObjectStore
from storage.objects.local import LocalObjects
from storage.objects.s3 import S3Objects

logger = logging.getLogger(__name__)

ROWS: Final[tuple[ApiRoute | PublicRoute, ...]] = (
    *run.ROUTES,  # the busiest first: the table is searched from the top
    *openai.ROUTES,
    *embeddings.ROUTES,
    *token_count.ROUTES,
    *health.ROUTES,
    *identity.ROUTES,
    *models.ROUTES,
    *finetunes_endpoint.ROUTES,
    *finetune_versions.ROUTES,
    *logs.ROUTES,
    *openapi.ROUTES,
)


def build_app(
    settings: Settings,
    *,
    runtime_sockets: Mapping[str, Path],
    runtime_token: str,
    backends: Mapping[str, Backend] | None = None,
    encoder_sockets: Mapping[str, str] | None = None,
) -> Starlette:
    """The ASGI application. `runtime_sockets` maps catalogue names to where the runtimes started here listen.

    Start-up raises SettingsError, StorageError or StorageUnavailable when a part cannot be opened.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_services(settings, runtime_sockets, runtime_token, backends, encoder_sockets or {}) as services:
            app.state.services = services
            yield

    app = _App(routes=build_routes(ROWS), lifespan=lifespan)
    # Paths have one form (Front), so a redirect to the other would come back for ever; and it would name the Host.
    app.router.redirect_slashes = False
    return app


class _App(Starlette):
    """Without Starlette's own two layers: what they do for failures is `Front`'s to do."""

    def build_middleware_stack(self) -> ASGIApp:
        """Outermost first."""
        return Tracing(Front(KnownPaths(self.router.routes, self.router.app)))


@asynccontextmanager
async def open_services(
    settings: Settings,
    runtime_sockets: Mapping[str, Path],
    runtime_token: str,
    backends: Mapping[str, Backend] | None = None,
    encoder_sockets: Mapping[str, str] | None = None,
) -> AsyncIterator[Services]:
    """Everything that handlers use, open; closed in reverse at the end. Raises as `build_app` says."""
    data_dir = DataDir(await asyncio.to_thread(_make_data_dir, settings.data_dir))
    catalog, encoders = Catalog(_folders(settings)), EncoderCatalog(settings.encoders)
    async with AsyncExitStack() as stack:
        telemetry = Telemetry.from_settings(settings.telemetry)
        stack.push_async_callback(telemetry.aclose)
        database = await Database.open(data_dir.database)
        stack.push_async_callback(database.aclose)
        objects = await _open_objects(settings)
        stack.push_async_callback(objects.aclose)
        answering: Mapping[str, Backend] = {}

        async def forget(model: str, digest: str) -> None:
            backend = answering.get(model)
            if backend is not None:
                await backend.forget(digest)

        finetunes = Finetunes(database, objects, catalog, adapter_limits(settings), data_dir.spool, forget=forget)
        await finetunes.sweep()
        finetunes.start()
        stack.push_async_callback(finetunes.aclose)
        log_store = await LogStore.open(database, objects, data_dir.logs, settings.logs)
        stack.push_async_callback(log_store.aclose)
        clients: dict[str, RuntimeClient] = {}
        if backends is None:
            clients = await _open_clients(stack, settings, catalog, runtime_sockets, runtime_token)
            backends = {
                name: await _runtime_backend(settings, catalog.get(name), client) for name, client in clients.items()
            }

        answering = backends

        caches = CacheCare(finetunes, clients, settings.tiers)
        await caches.start()
        stack.push_async_callback(caches.aclose)

        def hang_up() -> None:
            for client in clients.values():
                client.hang_up()

        encoder_backends = {
            name: await _encoder_backend(stack, settings, encoders.get(name), path, runtime_token)
            for name, path in (encoder_sockets or {}).items()
        }
        pipeline = Pipeline(catalog, finetunes, backends, telemetry)
        accounts = Accounts(database)
        records = BatchRecords(database, objects)
        queue = BatchQueue(records, pipeline, accounts, log_store, settings.server.request_timeout_s)
        queue.start()
        stack.push_async_callback(queue.aclose)

        yield Services(
            settings=settings,
            database=database,
            objects=objects,
            accounts=accounts,
            catalog=catalog,
            finetunes=finetunes,
            caches=caches,
            logs=log_store,
            backends=backends,
            pipeline=pipeline,
            telemetry=telemetry,
            bodies=BodyBudget(settings.server.body_buffer_bytes),
            hang_up=hang_up,
            batches=BatchDesk(catalog, queue),
            encoders=encoders,
            encoder_backends=encoder_backends,
            description=msgspec.Raw(msgspec.json.encode(document(ROWS, version("lorikeet")))),
        )


async def _open_objects(settings: Settings) -> ObjectStore:
    storage = settings.storage
    if storage.objects == "local":
        return LocalObjects(object_folder(settings))
    return await S3Objects.open(
        bucket=storage.bucket,
        endpoint=storage.endpoint,
        region=storage.region,
        access_key_id=storage.access_key_id,
        secret_access_key=storage.secret_access_key,
    )


async def _open_clients(
    stack: AsyncExitStack, settings: Settings, catalog: Catalog, sockets: Mapping[str, Path], token: str
) -> dict[str, RuntimeClient]:
    """A client per runtime, connecting in the background: the gateway starts without waiting for any of them."""
    gateway_id, remote = new_id(), remote_runtimes(settings)
    clients: dict[str, RuntimeClient] = {}
    for name in (*sockets, *remote):
        model, here = catalog.get(name), name in sockets
        address = RuntimeAddress(str(sockets[name])) if here else remote[name].address
        clients[model.name] = await stack.enter_async_context(
            RuntimeClient(
                socket_path=address.socket_path or None,
                host=address.host or None,
                port=address.port or None,
                token=token if here else remote[name].token,
                gateway_id=gateway_id,
                # Another's runtime is not ours to kill, not even on this machine: other gateways may be served by it.
                on_hung=functools.partial(_replace_hung, model.name) if here else None,
                check=RuntimeMatch(model),
                max_gap_s=settings.server.stream_gap_ms / 1000,
            )
        )
    return clients


async def _runtime_backend(settings: Settings, model: CatalogModel, client: RuntimeClient) -> Backend:
    formats = {ALIASES.get(key, key): asked.tool_format for key, asked in settings.models.items()}
    tokenizer = await asyncio.to_thread(_load_tokenizer, model, formats.get(model.name))
    return RuntimeBackend(
        client,
        tokenizer,
        context_window=model.context_window,
        restart_wait_s=settings.runtime.restart_wait_s,
        request_timeout_s=settings.server.request_timeout_s,
    )


async def _encoder_backend(
    stack: AsyncExitStack, settings: Settings, model: EncoderModel, path: str, token: str
) -> EncoderBackend:
    assert model.folder is not None, "EncoderCatalog.get gives models with a folder"
    try:
        tokenizer = await asyncio.to_thread(EncoderTokenizer, model.folder, model.max_tokens)
    except TokenizerFault as error:
        raise SettingsError(f'encoders."{model.name}".path = {str(model.folder)!r}: {error}') from error
    hung = functools.partial(_replace_hung, model.name)
    client = await stack.enter_async_context(EncoderClient(path, token, on_hung=hung))
    wait_s, timeout_s = settings.runtime.restart_wait_s, settings.server.request_timeout_s
    return EncoderBackend(model, client, tokenizer, wait_s=wait_s, timeout_s=timeout_s)


def _replace_hung(model: str, pid: int) -> None:
    """A runtime that stopped answering is killed, so that the supervisor starts another; it is on this machine."""
    logger.error("the runtime of %s (pid %d) does not answer: killed, so that it is replaced", model, pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _make_data_dir(text: str) -> Path:
    try:
        folder = Path(text).resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"data_dir = {text!r}: cannot be used ({error.strerror})") from error
    return folder


def _load_tokenizer(model: CatalogModel, tool_format: FormatName | None) -> Tokenizer:
    assert model.folder is not None, "Catalog.get gives models with a folder"
    try:
        return Tokenizer.from_folder(model.folder, tool_format)
    except TokenizerFault as error:
        raise SettingsError(f'models."{model.name}".path = {str(model.folder)!r}: {error}') from error


def _folders(settings: Settings) -> dict[str, Path | None]:
    folders: dict[str, Path | None] = {} if settings.demo_model else {DEMO_MODEL: None}
    return folders | {name: Path(model.path).expanduser() for name, model in settings.models.items()}
