"""`POST …/ai/run/{model}`: native inference. A model may be written `@cf/a/b` or `@cf%2Fa%2Fb`; the path is decoded."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.answer import Answer
from gateway.exchange import Exchange
from gateway.messages import ChatRequest, Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.workers_ai import WorkersAIReply, parse


async def run(request: Request, identity: Identity, services: Services) -> Response:
    """Whatever the content type says, the body is JSON."""
    model: str = request.path_params["model"]
    settings = request.query_params.multi_items()

    reply = WorkersAIReply()

    def parse_body(body: bytes) -> ChatRequest:
        asked = parse(body, settings, model)
        reply.describe(asked)
        return asked

    return Answer(request, Exchange(request, identity, model), identity, services, parse_body, reply)


ROUTES: tuple[ApiRoute, ...] = (ApiRoute("POST", ACCOUNT + "/ai/run/{model:path}", run, "workers_ai.read"),)
