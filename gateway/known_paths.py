"""Which row of the route table a path belongs to, remembered for paths that come again: the table is searched from the
top, with a regular expression for each row. It decides nothing: what it has not seen, and what matches no row, goes to
the table itself, and rights are asked for on the row as ever.
"""

from collections.abc import Sequence
from typing import Any, Final

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_PATHS: Final = 1024
MAX_PATH_CHARS: Final = 256  # longer ones are searched for each time: callers choose them


class KnownPaths:
    """Pure ASGI, before the table. Holds at most MAX_PATHS paths; the oldest goes first."""

    def __init__(self, routes: Sequence[BaseRoute], table: ASGIApp) -> None:
        """`table` is Starlette's router over `routes`."""
        self._routes = routes
        self._table = table
        self._known: dict[tuple[str, str], tuple[Route, dict[str, Any]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._known.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            self._learn(scope)
            await self._table(scope, receive, send)
            return
        route, path_params = found
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, dict(path_params)
        await route.handle(scope, receive, send)

    def _learn(self, scope: Scope) -> None:
        if scope["type"] != "http" or scope.get("root_path") or len(scope["path"]) > MAX_PATH_CHARS:
            return
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL and isinstance(route, Route):
                if len(self._known) >= MAX_PATHS:
                    del self._known[next(iter(self._known))]
                self._known[scope["method"], scope["path"]] = (route, found["path_params"])
                return
