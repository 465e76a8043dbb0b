"""Encoders over HTTP: `/ai/run/{model}` for embeddings and reranking, and OpenAI's `/ai/v1/embeddings`.

Logged like every inference: the record is on disk before the answer leaves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.backends.encoder import EncoderBackend
from gateway.encoders import EncoderModel
from gateway.errors import BadInput, LorikeetError, RuntimeUnavailable
from gateway.exchange import CLIENT_ABORT_STATUS, Exchange
from gateway.messages import Chunk, Identity, Usage
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire import embeddings
from gateway.wire.envelope import error_body, error_headers
from gateway.wire.json_body import read_body
from gateway.wire.workers_ai import unwrap

_encode = msgspec.json.Encoder().encode
Work = Callable[[Exchange], Awaitable[tuple[bytes, int]]]  # -> (answer, tokens)


async def run_encoder(
    request: Request, identity: Identity, services: Services, model: str, *, is_wrapped: bool = False
) -> Response:
    """The native call of a model that is an encoder. `is_wrapped`: the body is {model, input}."""
    lora = request.query_params.get("lora")

    async def work(exchange: Exchange) -> tuple[bytes, int]:
        body = unwrap(exchange.body)[1] if is_wrapped else exchange.body
        found = services.encoders.get(model)
        backend = _backend(services, found)
        result: dict[str, Any]
        if found.task == "rank":
            query, contexts, top_k = embeddings.parse_rank(body, lora)
            values, tokens = await backend.rank(query, contexts)
            result = embeddings.rank_result(values, top_k)
        else:
            texts, pooling = embeddings.parse_embed(body, found.pooling, lora)
            values, tokens = await backend.embed(texts, pooling)
            result = await asyncio.to_thread(embeddings.embed_result, values, found.size, pooling)
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        told = {"result": {**result, "usage": usage}, "success": True, "errors": [], "messages": []}
        return await asyncio.to_thread(_encode, told), tokens

    return await _exchange(request, identity, services, model, work, openai=False)


async def create_embeddings(request: Request, identity: Identity, services: Services) -> Response:
    """OpenAI's shape."""
    lora = request.query_params.get("lora")

    async def work(exchange: Exchange) -> tuple[bytes, int]:
        asked = embeddings.parse_openai(exchange.body)
        name = asked.model or ""
        exchange.named(name)
        if name not in services.encoders:
            services.catalog.canonical(name)  # raises for a name that is nowhere
            raise BadInput(f"AiError: Bad input: Error: {name} makes no embeddings; name an encoder", param="model")
        found = services.encoders.get(name)
        if found.task != "embed":
            raise BadInput(f"AiError: Bad input: Error: {name} ranks texts; call it by /ai/run/{name}", param="model")
        embeddings.check_openai(asked, found.size, lora)
        assert isinstance(asked.input, list), "parse_openai makes it one"
        values, tokens = await _backend(services, found).embed(asked.input, found.pooling)
        form: Literal["float", "base64"] = "base64" if asked.encoding_format == "base64" else "float"
        result = await asyncio.to_thread(embeddings.openai_result, values, found.size, name, tokens, form)
        return await asyncio.to_thread(_encode, result), tokens

    return await _exchange(request, identity, services, "", work, openai=True)


def _backend(services: Services, model: EncoderModel) -> EncoderBackend:
    backend = services.encoder_backends.get(model.name)
    if backend is None:
        raise RuntimeUnavailable(f"no encoder serves {model.name} at the moment", retry_after_s=5)
    return backend


async def _exchange(
    request: Request, identity: Identity, services: Services, model: str, work: Work, *, openai: bool
) -> Response:
    """Body in, record on disk, answer out."""
    exchange, server = Exchange(request, identity, model), services.settings.server
    error: LorikeetError
    try:
        announced = request.headers.get("content-length")
        with services.bodies.reserve(identity.account_id, announced, server.max_body_bytes) as hold:
            exchange.body = await read_body(request, server.max_body_bytes, hold.cover)
            exchange.check_gateway()
            exchange.check_log(services.logs)
            answer, tokens = await work(exchange)
    except ClientDisconnect:
        await exchange.close(services.logs, CLIENT_ABORT_STATUS, b"", outcome="client_abort")
        return Response(status_code=400)  # nobody hears it
    except LorikeetError as failure:
        error = failure
    else:
        exchange.first_byte()
        exchange.finished(Chunk("", "stop", Usage(tokens, 0)))
        await exchange.close(services.logs, 200, answer, outcome="stop")
        return Response(answer, 200, {name.decode(): value.decode() for name, value in exchange.headers}, _JSON)
    told = error_body(error, openai=openai)
    answer = _encode(told if openai else {**told, "result": {}})
    await exchange.close(services.logs, error.status, answer, outcome="error", error=error)
    headers = {name.decode(): value.decode() for name, value in exchange.headers} | error_headers(error)
    return Response(answer, error.status, headers, _JSON)


_JSON: Final = "application/json"
ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", ACCOUNT + "/ai/v1/embeddings", create_embeddings, "workers_ai.read", openai_errors=True),
)
