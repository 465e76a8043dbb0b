"""`/ai/models/search` and its neighbours: the catalogue as wrangler and the SDKs list it (wire-contract 3.5)."""

import uuid
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from gateway.catalog import CatalogModel
from gateway.encoders import EncoderModel
from gateway.errors import BadQuery
from gateway.messages import Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.encoder_schema import EMBED_SCHEMAS, RANK_SCHEMAS
from gateway.wire.envelope import read_page, success, success_page
from gateway.wire.text_generation_schema import INPUT_SCHEMA, OUTPUT_SCHEMA

_ID_SPACE: Final = uuid.UUID("8d3f9c52-6b3e-5f0a-9d0e-3f1b6f6a7c10")
Listed = CatalogModel | EncoderModel


def _task(name: str, description: str) -> dict[str, str]:
    return {"id": str(uuid.uuid5(_ID_SPACE, name)), "name": name, "description": description}


_GENERATION: Final = _task("Text Generation", "Language models that continue a prompt or answer in a conversation.")
_EMBEDDINGS: Final = _task("Text Embeddings", "Models that turn texts into vectors.")
_RANKING: Final = _task("Text Classification", "Models that say how well texts answer a query.")


async def search(request: Request, identity: Identity, services: Services) -> Response:
    """GET: one page of the models that match; an empty page past the end, because clients ask until they get one."""
    query = request.query_params
    page = read_page(query, 100)
    found = [model for model in _all(services) if _matches(model, query)]
    return success_page([_json(model) for model in page.cut(found)], page, len(found))


async def schema(request: Request, identity: Identity, services: Services) -> Response:
    """GET ?model=: the JSON Schemas of input and output."""
    name = request.query_params.get("model")
    if not name:
        raise BadQuery("name a model in the query: ?model=@cf/…", param="model")
    if name in services.encoders:
        ranks = any(model.name == name and model.task == "rank" for model in services.encoders.all())
        return success(RANK_SCHEMAS if ranks else EMBED_SCHEMAS)
    services.catalog.canonical(name)
    return success({"input": INPUT_SCHEMA, "output": OUTPUT_SCHEMA})


async def tasks(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the kinds of models there are."""
    return success([_GENERATION, _EMBEDDINGS, _RANKING])


async def authors(request: Request, identity: Identity, services: Services) -> Response:
    """GET: who the models are by."""
    names = sorted({model.author for model in _all(services) if model.author})
    return success([{"name": name} for name in names])


def _all(services: Services) -> tuple[Listed, ...]:
    return (*services.catalog.all(), *services.encoders.all())


def _task_of(model: Listed) -> dict[str, str]:
    if isinstance(model, CatalogModel):
        return _GENERATION
    return _RANKING if model.task == "rank" else _EMBEDDINGS


def _matches(model: Listed, query: QueryParams) -> bool:
    search = query.get("search", "").casefold()
    task, author, source = query.get("task"), query.get("author"), query.get("source")
    if source is not None and source not in ("1", "2"):
        raise BadQuery("source must be 1 (@cf) or 2 (@hf)", param="source")
    _flag(query, "hide_experimental")  # nothing here is experimental, nor deprecated
    _flag(query, "include_deprecated")
    return (
        (search in model.name.casefold() or search in model.description.casefold())
        and (not task or task.casefold() == _task_of(model)["name"].casefold())
        and (not author or author.casefold() == model.author.casefold())
        and (source is None or source == str(model.source))
    )


def _flag(query: QueryParams, name: str) -> None:
    if query.get(name, "false").lower() not in ("true", "false", "1", "0", ""):
        raise BadQuery(f"{name} must be true or false", param=name)


def _json(model: Listed) -> dict[str, Any]:
    if isinstance(model, CatalogModel):
        properties = [{"property_id": "context_window", "value": str(model.context_window)}]
        if model.supports_lora:
            properties.append({"property_id": "lora", "value": "true"})
    else:
        properties = [{"property_id": "max_input_tokens", "value": str(model.max_tokens)}]
        if model.task == "embed" and model.size:
            properties.append({"property_id": "output_dimensions", "value": str(model.size)})
    if model.folder is not None:
        properties.append({"property_id": "served", "value": "true"})
    return {
        "id": model.id,
        "source": model.source,
        "name": model.name,
        "description": model.description,
        "task": _task_of(model),
        "created_at": model.created_at,
        "tags": [],
        "properties": properties,
    }


ROUTES: Final[tuple[ApiRoute, ...]] = (
    ApiRoute("GET", ACCOUNT + "/ai/models/search", search, "workers_ai.read"),
    ApiRoute("GET", ACCOUNT + "/ai/models/schema", schema, "workers_ai.read"),
    ApiRoute("GET", ACCOUNT + "/ai/tasks/search", tasks, "workers_ai.read"),
    ApiRoute("GET", ACCOUNT + "/ai/authors/search", authors, "workers_ai.read"),
)
