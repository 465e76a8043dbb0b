"""A Starlette application that reads a body and answers, on the gateway's server: what a machine takes for HTTP alone.

    python -m infra.bench.bare_app FD

The unit for the gateway's own figures: a request of it costs so many times this.
"""

import asyncio
import socket
import sys

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def _answer(request: Request) -> Response:
    await request.body()
    return JSONResponse({"response": "x" * 100})


async def main(fd: int) -> None:
    """Serves on an inherited socket until it is killed."""
    config = uvicorn.Config(
        Starlette(routes=[Route("/", _answer, methods=["POST"])]), loop="none", http="httptools", ws="none",
        log_config=None, access_log=False, lifespan="off",
    )  # fmt: skip
    serving = asyncio.ensure_future(uvicorn.Server(config).serve(sockets=[socket.socket(fileno=fd)]))
    await asyncio.sleep(0)
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
