"""`POST …/ai/v1/messages/count_tokens`: how many tokens a prompt has for a model, by its own template and tokenizer.

Nothing is generated, and nothing logged: it is no inference. Agents ask before they send, to see what still fits.
"""

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import RuntimeUnavailable
from gateway.messages import Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire import anthropic_body
from gateway.wire.envelope import JsonResponse
from gateway.wire.json_body import read_body


async def count_tokens(request: Request, identity: Identity, services: Services) -> Response:
    """The body is that of `/ai/v1/messages`."""
    server, announced = services.settings.server, request.headers.get("content-length")
    with services.bodies.reserve(identity.account_id, announced, server.max_body_bytes) as hold:
        body = await read_body(request, server.max_body_bytes, hold.cover)
        asked = anthropic_body.parse(body, request.query_params.multi_items())
        model = services.catalog.get(asked.model)
        backend = services.backends.get(model.name)
        if backend is None:
            raise RuntimeUnavailable(f"no runtime serves {model.name} at the moment", retry_after_s=5)
        return JsonResponse({"input_tokens": await backend.count_tokens(asked)})


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", ACCOUNT + "/ai/v1/messages/count_tokens", count_tokens, "workers_ai.read", openai_errors=True),
)
