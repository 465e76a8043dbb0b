"""One form of each path: clients write `/ai/finetunes/` and `/ai/finetunes`, the route table has one of them.

What can only be an attack on file names or log lines, control characters and `..`, matches no route at all.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_NOWHERE = "/ "
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class PlainPath:
    """Pure ASGI. Changes the decoded path of the scope, not the raw one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if _CONTROL.search(path) or ".." in path.split("/"):
                scope["path"] = _NOWHERE
            elif path.endswith("/") and path != "/":
                scope["path"] = path.rstrip("/") or "/"
        await self._app(scope, receive, send)
