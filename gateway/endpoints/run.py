"""`POST …/ai/run/{model}`: native inference. A model may be written `@cf/a/b` or `@cf%2Fa%2Fb`; the path is decoded.
`POST …/ai/run` has model and input in its body instead, for encoders as well. With `?queueRequest=true` the answers
are asked for later.
"""

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from gateway.answer import Answer
from gateway.endpoints.embeddings import run_encoder
from gateway.errors import BadInput, LorikeetError, RouteNotFound
from gateway.exchange import Exchange
from gateway.messages import ChatRequest, Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.envelope import success
from gateway.wire.json_body import read_body
from gateway.wire.workers_ai import WorkersAIReply, named_model, parse, unwrap


async def run(request: Request, identity: Identity, services: Services) -> Response:
    """Whatever the content type says, the body is JSON."""
    model: str = request.path_params["model"]
    if model.startswith("dynamic/"):  # a route of a gateway, which has no place in this path
        raise RouteNotFound("No route for that URI")
    if request.query_params.get("websocket", "").lower() == "true":
        raise BadInput("websockets are not served here; leave 'websocket' out", param="websocket")
    if model in services.encoders:
        return await run_encoder(request, identity, services, model)
    if request.query_params.get("queueRequest", "").lower() == "true":
        return await _queue(request, identity, services, model)
    return _answer(request, identity, services, model)


async def _queue(request: Request, identity: Identity, services: Services, model: str) -> Response:
    """A batch is taken in, or asked about."""
    server, announced = services.settings.server, request.headers.get("content-length")
    with services.bodies.reserve(identity.account_id, announced, server.max_body_bytes) as hold:
        body = await read_body(request, server.max_body_bytes, hold.cover)
        return success(await services.batches.take(identity, model, body, request.headers.items()))


async def run_named(request: Request, identity: Identity, services: Services) -> Response:
    """{model, input}: `input` is what the other route takes as its body.

    Who answers stands in the body, so that is read first, and read again by whoever it is. What is wrong with it is
    theirs to tell and to log.
    """
    server, announced = services.settings.server, request.headers.get("content-length")
    try:
        with services.bodies.reserve(identity.account_id, announced, server.max_body_bytes) as hold:
            body = await read_body(request, server.max_body_bytes, hold.cover)
    except (LorikeetError, ClientDisconnect) as failure:
        return _answer(Request(request.scope, _failing(failure)), identity, services, None)
    again = Request(request.scope, _replayed(body, request.receive))
    if (model := named_model(body)) is not None and model in services.encoders:
        return await run_encoder(again, identity, services, model, is_wrapped=True)
    return _answer(again, identity, services, None)


def _failing(failure: Exception) -> Receive:
    async def receive() -> Message:
        raise failure

    return receive


def _replayed(body: bytes, later: Receive) -> Receive:
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            return await later()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _answer(request: Request, identity: Identity, services: Services, model: str | None) -> Answer:
    settings = request.query_params.multi_items()
    reply = WorkersAIReply()

    def parse_body(body: bytes) -> ChatRequest:
        named, native = unwrap(body) if model is None else (model, body)
        asked = parse(native, settings, named)
        reply.describe(asked)
        return asked

    return Answer(request, Exchange(request, identity, model or ""), identity, services, parse_body, reply)


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", ACCOUNT + "/ai/run/{model:path}", run, "workers_ai.read"),
    ApiRoute("POST", ACCOUNT + "/ai/run", run_named, "workers_ai.read"),
)
