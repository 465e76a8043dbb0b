"""The OpenAI routes: `POST …/ai/v1/chat/completions` and the list of models that OpenAI's clients ask for."""

import calendar
import time

from starlette.requests import Request
from starlette.responses import Response

from gateway.answer import Answer
from gateway.catalog import CatalogModel
from gateway.exchange import Exchange
from gateway.messages import ChatRequest, Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.envelope import JsonResponse
from gateway.wire.openai import OpenAIReply, models_list, parse


async def chat_completions(request: Request, identity: Identity, services: Services) -> Response:
    """`lora` is one more field of the body."""
    exchange = Exchange(request, identity)
    reply = OpenAIReply(exchange.log_id, int(time.time()))

    def parse_body(body: bytes) -> ChatRequest:
        asked = parse(body)
        reply.describe(asked)
        return asked

    return Answer(request, exchange, identity, services, parse_body, reply)


async def list_models(request: Request, identity: Identity, services: Services) -> Response:
    """The models that have weights."""
    return JsonResponse(models_list([(model.name, _created(model)) for model in services.catalog.served()]))


def _created(model: CatalogModel) -> int:
    return calendar.timegm(time.strptime(model.created_at[:19], "%Y-%m-%d %H:%M:%S"))


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", ACCOUNT + "/ai/v1/chat/completions", chat_completions, "workers_ai.read", openai_errors=True),
    ApiRoute("GET", ACCOUNT + "/ai/v1/models", list_models, "workers_ai.read", openai_errors=True),
)
