"""A JSON object as request body, whatever its Content-Type says: real clients send text/plain and form types.

Bounded while it streams in, so a body over the limit is refused before it is read to its end.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gateway.errors import BadInput, EmptyBody, RequestTooLarge

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int, arrived: Callable[[int], None] | None = None) -> bytes:
    """The whole body. Raises RequestTooLarge as soon as it passes the limit, by its header if that says so; BadInput
    for a compressed one, whose real size nobody knows yet. `arrived` is told the bytes so far; what it raises ends it.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BadInput(f"the request body is compressed ({encoding[:32]!r}); send it as it is")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if arrived is not None:
            arrived(size)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is above the limit of {max_bytes} bytes")


async def read_object(request: Request, max_bytes: int, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty one if it may be. Raises EmptyBody, BadInput,
    RequestTooLarge.
    """
    data = await read_body(request, max_bytes)
    if not data and may_be_empty:
        return {}
    if not data:
        raise EmptyBody("the request has no body; send a JSON object")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the request body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput("the request body must be a JSON object")
    return value


async def read_as(request: Request, kind: type[T], max_bytes: int, *, may_be_empty: bool = False) -> T:
    """The body as a JSON object of this type. Raises as `read_object`, and BadInput that names the field."""
    data = await read_body(request, max_bytes)
    if not data and not may_be_empty:
        raise EmptyBody("the request has no body; send a JSON object")
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).replace("`", "").partition(" - at ")
        param = place.removeprefix("$").lstrip(".") or _named(reason)
        raise BadInput(f"{param or 'the request body'}: {reason[:1].lower()}{reason[1:]}", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the request body is not valid JSON: {error}") from error


def _named(reason: str) -> str | None:
    """Of a missing or unknown field msgspec tells the name at the end of its sentence."""
    return reason.rpartition(" ")[2] if "field" in reason else None
