"""Whatever nobody expected becomes a 500 that says nothing about the inside; the traceback goes to our own log.

Sits innermost, so that the answer still passes through all other middleware. After the first byte nothing can be
mended: the error goes on to the server, which closes the connection, and the caller sees a broken answer, not a
shortened one that looks whole.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import InternalError
from gateway.middleware.request_id import SCOPE_KEY
from gateway.wire.envelope import error_response

logger = logging.getLogger(__name__)


class LastResort:
    """Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            request_id = scope.get(SCOPE_KEY)
            logger.exception("request %s: %s %r failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            error = InternalError(f"Internal error; give the operator the request id {request_id}")
            await error_response(error, openai="/ai/v1/" in scope["path"])(scope, receive, send)
