"""`/healthz`: this process answers. `/readyz`: requests can be served, or sentences that say what is missing.

Both are public and say nothing about accounts; `/readyz` is for load balancers and start scripts.
"""

from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from gateway.routes import PublicRoute
from gateway.services import Services
from gateway.wire.envelope import JsonResponse
from storage.errors import StorageError

_FRESH = {"cache-control": "no-cache"}


async def healthz(request: Request, services: Services) -> Response:
    """Always 200 while the event loop runs."""
    return JsonResponse({"status": "ok"}, headers=_FRESH)


async def readyz(request: Request, services: Services) -> Response:
    """200, or 503 with what is missing."""
    missing = [f"{name}: {problem}" for name, backend in services.backends.items() if (problem := backend.ready())]
    for name, encoder in services.encoder_backends.items():
        if (problem := encoder.ready()) is not None:
            missing.append(f"{name}: {problem}")
    try:
        async with services.database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except StorageError as error:
        missing.append(f"database: {error}")
    # Without its record no answer leaves: a balancer that kept sending requests here would have them all refused.
    if (problem := services.logs.failing) is not None:
        missing.append(f"log: it takes no records ({problem})")
    if missing:
        return JsonResponse({"status": "not ready", "missing": missing}, 503, {**_FRESH, "retry-after": "1"})
    return JsonResponse({"status": "ready"}, headers=_FRESH)


ROUTES: tuple[PublicRoute, ...] = (PublicRoute("GET", "/healthz", healthz), PublicRoute("GET", "/readyz", readyz))
