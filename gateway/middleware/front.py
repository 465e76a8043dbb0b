"""The one layer between the server and the route table: an id, one form of each path, and an answer to every failure.

Every request gets an id (`x-request-id`), for its answer and for our own diagnostics. A caller's own id is not taken
over: it would let one caller make two requests look like one in our logs. Answers that say nothing about caching belong
to one token, so no proxy may keep them.

Clients write `/ai/finetunes/` and `/ai/finetunes`; the route table has one of them. What can only be an attack on file
names or log lines, control characters and `..`, matches no route at all.

Typed errors, and the few of Starlette's, become their answers. Whatever nobody expected becomes a 500 that says nothing
about the inside; the traceback goes to our own log. After the first byte nothing can be mended: the error goes on to
the server, which closes the connection, and the caller sees a broken answer, not a shortened one that looks whole.

All of it is one layer because each costs every request some microseconds, and every piece of a stream some more.
"""

import logging
import re
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.authorize import ROUTE_KEY
from gateway.errors import InternalError, InvalidRequest, LorikeetError, RouteNotFound
from gateway.ids import uuid7
from gateway.routes import ApiRoute
from gateway.wire.envelope import as_lorikeet_error, error_response
from storage.errors import StorageError

logger = logging.getLogger(__name__)

SCOPE_KEY: Final = "lorikeet.request_id"
_NOWHERE: Final = "/ "
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Front:
    """Pure ASGI. Puts the id into `scope["lorikeet.request_id"]`; changes the scope's decoded path, not the raw one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[SCOPE_KEY] = uuid7()
        scope["path"] = _plain(scope["path"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"private, no-store"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            refusal = _refusal(error, scope, started)
            if refusal is None:
                raise
            await error_response(refusal, openai=_speaks_openai(scope))(scope, receive, send_with_id)


def _plain(path: str) -> str:
    if _CONTROL.search(path) or (".." in path and ".." in path.split("/")):
        return _NOWHERE
    return path.rstrip("/") or "/" if path.endswith("/") and path != "/" else path


def _refusal(error: Exception, scope: Scope, started: bool) -> LorikeetError | None:
    """What the caller is told, None when it is too late for that."""
    request_id = scope[SCOPE_KEY]
    if not started:
        if isinstance(error, LorikeetError):
            return error
        if isinstance(error, StorageError):
            logger.error("request %s: storage failed: %s", request_id, error)
            return as_lorikeet_error(error)
        if isinstance(error, HTTPException):
            return RouteNotFound("No route for that URI") if error.status_code == 404 else InvalidRequest(error.detail)
    logger.error("request %s: %s %r failed", request_id, scope["method"], scope["path"], exc_info=error)
    return None if started else InternalError(f"Internal error; give the operator the request id {request_id}")


def _speaks_openai(scope: Scope) -> bool:
    row = scope.get(ROUTE_KEY)
    return row.openai_errors if isinstance(row, ApiRoute) else "/ai/v1/" in scope["path"]
