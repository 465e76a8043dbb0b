"""Gives every request an id (`x-request-id`), for the answer and for our own diagnostics, and answers their defaults.

A caller's own id is not taken over: it would let one caller make two requests look like one in our logs. Answers that
say nothing about caching belong to one token, so no proxy may keep them.
"""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.ids import uuid7

SCOPE_KEY: Final = "lorikeet.request_id"


class RequestId:
    """Pure ASGI. Puts the id into `scope["lorikeet.request_id"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[SCOPE_KEY] = uuid7()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                headers.append((b"x-request-id", request_id.encode()))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"private, no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_id)
