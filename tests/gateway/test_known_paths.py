"""Remembered paths answer as the table does, the second time too, and are bounded."""

from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from gateway.app import ROWS
from gateway.authorize import build_routes
from gateway.known_paths import MAX_PATH_CHARS, MAX_PATHS, KnownPaths

ACCOUNT = "/client/v4/accounts/abc"
PATHS = [
    ACCOUNT + "/ai/run/@cf/a/b", ACCOUNT + "/ai/run", ACCOUNT + "/ai/v1/chat/completions", ACCOUNT + "/ai/v1/models",
    ACCOUNT + "/ai/v1/models/@cf/a/b", ACCOUNT + "/ai/finetunes", ACCOUNT + "/ai/finetunes/x/finetune-assets",
    "/healthz", "/nothing", "/", ACCOUNT,
]  # fmt: skip


class Seen:
    """What a row's own application is given."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.last = {name: scope[name] for name in ("endpoint", "path_params", "route")}
        scope["path_params"]["spoiled"] = "by a handler"


def _scope(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "root_path": "", "headers": [], "app": None}


async def _nothing(*_: Any) -> Any:
    return {"type": "http.disconnect"}


async def _outcome(app: Any, seen: Seen, method: str, path: str) -> Any:
    seen.last = {}
    try:
        await app(_scope(method, path), _nothing, _nothing)
    except Exception as error:
        return (type(error), str(error))
    return {name: dict(value) if name == "path_params" else value for name, value in seen.last.items()} | {
        "path_params": {k: v for k, v in seen.last["path_params"].items() if k != "spoiled"}
    }


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "BREW"])
async def test_the_row_is_the_tables_each_time(method: str) -> None:
    seen, routes = Seen(), build_routes(ROWS)
    for route in routes:
        route.app = seen
    router = Router(routes=routes, redirect_slashes=False)
    known = KnownPaths(router.routes, router.app)
    for path in PATHS:
        wanted = await _outcome(router.app, seen, method, path)
        for _ in range(3):
            assert await _outcome(known, seen, method, path) == wanted
    assert set(known._known) == {
        (method, path) for path in PATHS if isinstance(await _outcome(router.app, seen, method, path), dict)
    }


async def test_what_is_remembered_is_bounded() -> None:
    seen = Seen()
    router = Router(routes=[Route("/x/{rest:path}", seen)])
    known = KnownPaths(router.routes, router.app)
    for number in range(MAX_PATHS + 10):
        await known(_scope("GET", f"/x/{number}"), _nothing, _nothing)
        assert seen.last["path_params"] == {"rest": str(number), "spoiled": "by a handler"}
    assert len(known._known) == MAX_PATHS
    assert ("GET", "/x/9") not in known._known
    assert ("GET", "/x/10") in known._known
    await known(_scope("GET", "/x/" + "y" * MAX_PATH_CHARS), _nothing, _nothing)
    assert len(known._known) == MAX_PATHS
    with pytest.raises(HTTPException):
        await known(_scope("GET", "/nowhere"), _nothing, _nothing)
    assert len(known._known) == MAX_PATHS
