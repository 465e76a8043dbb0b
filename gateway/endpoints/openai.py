"""The routes below `…/ai/v1`: OpenAI's shapes, Anthropic's messages, and the list of models for such clients."""

import calendar
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from gateway.answer import Answer
from gateway.catalog import CatalogModel
from gateway.encoders import EncoderModel
from gateway.errors import ObjectNotFound
from gateway.exchange import Exchange
from gateway.messages import ChatRequest, Identity
from gateway.names import printable
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire import anthropic_body, completions, openai, responses_body
from gateway.wire.anthropic_reply import AnthropicReply
from gateway.wire.completions import CompletionReply
from gateway.wire.envelope import JsonResponse
from gateway.wire.openai import OpenAIReply, model_object
from gateway.wire.reply import Reply
from gateway.wire.responses_reply import ResponsesReply


class _Described(Reply, Protocol):
    def describe(self, request: ChatRequest) -> None: ...


Parse = Callable[[bytes, Iterable[tuple[str, str]]], ChatRequest]


async def chat_completions(request: Request, identity: Identity, services: Services) -> Response:
    """`lora` is one more field of the body, here and below."""
    exchange = Exchange(request, identity)
    return _answer(request, exchange, identity, services, openai.parse, OpenAIReply(exchange.log_id, int(time.time())))


async def complete(request: Request, identity: Identity, services: Services) -> Response:
    """A prompt, continued."""
    exchange = Exchange(request, identity)
    reply = CompletionReply(exchange.log_id, int(time.time()))
    return _answer(request, exchange, identity, services, completions.parse, reply)


async def messages(request: Request, identity: Identity, services: Services) -> Response:
    """Anthropic's shape."""
    exchange = Exchange(request, identity)
    return _answer(request, exchange, identity, services, anthropic_body.parse, AnthropicReply(exchange.log_id))


async def responses(request: Request, identity: Identity, services: Services) -> Response:
    """The Responses shape, without memory of earlier ones."""
    exchange = Exchange(request, identity)
    query = request.query_params.multi_items()
    reply = ResponsesReply(exchange.log_id, int(time.time()))

    def parse_body(body: bytes) -> ChatRequest:
        asked, told = responses_body.parse(body, query)
        reply.describe(asked, told)
        return asked

    return Answer(request, exchange, identity, services, parse_body, reply)


def _answer(
    request: Request, exchange: Exchange, identity: Identity, services: Services, parse: Parse, reply: _Described
) -> Answer:
    query = request.query_params.multi_items()

    def parse_body(body: bytes) -> ChatRequest:
        asked = parse(body, query)
        reply.describe(asked)
        return asked

    return Answer(request, exchange, identity, services, parse_body, reply)


async def list_models(request: Request, identity: Identity, services: Services) -> Response:
    """The models that have weights."""
    data = [model_object(model.name, _created(model)) for model in _served(services)]
    return JsonResponse({"object": "list", "data": data})


async def get_model(request: Request, identity: Identity, services: Services) -> Response:
    """One of them."""
    name: str = request.path_params["model"]
    for model in _served(services):
        if model.name == name:
            return JsonResponse(model_object(model.name, _created(model)))
    raise ObjectNotFound(f"there is no model {printable(name)!r} here; GET /ai/v1/models lists those there are")


def _served(services: Services) -> tuple[CatalogModel | EncoderModel, ...]:
    return (*services.catalog.served(), *services.encoders.served())


def _created(model: CatalogModel | EncoderModel) -> int:
    return calendar.timegm(time.strptime(model.created_at[:19], "%Y-%m-%d %H:%M:%S"))


V1: Final = ACCOUNT + "/ai/v1"
ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", V1 + "/chat/completions", chat_completions, "workers_ai.read", openai_errors=True),
    ApiRoute("POST", V1 + "/completions", complete, "workers_ai.read", openai_errors=True),
    ApiRoute("POST", V1 + "/responses", responses, "workers_ai.read", openai_errors=True),
    ApiRoute("POST", V1 + "/messages", messages, "workers_ai.read", openai_errors=True),
    ApiRoute("GET", V1 + "/models", list_models, "workers_ai.read", openai_errors=True),
    ApiRoute("GET", V1 + "/models/{model:path}", get_model, "workers_ai.read", openai_errors=True),
)
