"""`GET /openapi.json`: every route, with schemas and examples. Public: it says nothing about any account."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.routes import PublicRoute
from gateway.services import Services
from gateway.wire.envelope import JsonResponse


async def describe(request: Request, services: Services) -> Response:
    """Made once, at the start."""
    return JsonResponse(services.description, headers={"cache-control": "public, max-age=300"})


ROUTES: tuple[PublicRoute, ...] = (PublicRoute("GET", "/openapi.json", describe),)
