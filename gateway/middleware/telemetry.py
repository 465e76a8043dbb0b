"""One server span around each HTTP request; see `gateway.telemetry`. Health checks leave no traces."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.telemetry import Telemetry, may_carry_trace

_QUIET: Final = frozenset({"/healthz", "/readyz"})


class Tracing:
    """Pure ASGI. The span ends when the last byte was handed to the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        telemetry: Telemetry = scope["app"].state.services.telemetry
        if not telemetry.enabled and not may_carry_trace(scope["headers"]):
            await self._app(scope, receive, send)
            return
        with telemetry.server_span(scope) as span:

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.answered(message["status"])
                await send(message)

            await self._app(scope, receive, watch)
