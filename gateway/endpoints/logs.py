"""The logs of a gateway over HTTP (wire-contract 4.6), and their export as training data, which is ours."""

from collections.abc import AsyncIterator
from math import ceil, isfinite
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.errors import BadInput, BadQuery, ObjectNotFound
from gateway.logs.export import EXPORT_FORMATS
from gateway.logs.filters import parse_query
from gateway.logs.log_store import LogPatch
from gateway.logs.query import Row
from gateway.logs.rows import Scalar, to_json
from gateway.messages import Identity
from gateway.routes import ACCOUNT, ApiRoute
from gateway.services import Services
from gateway.wire.envelope import JsonResponse, success
from gateway.wire.json_body import read_as
from gateway.wire.log_bodies import MAX_METADATA, PatchLog

LOGS: Final = ACCOUNT + "/ai-gateway/gateways/{gateway_id}/logs"

_GATEWAYS: Final = frozenset({"default"})
_HEAD_BYTES: Final = 4096
_MAX_PATCH_BYTES: Final = 64 * 1024
MAX_DELETE: Final = 10_000_000
_SHOWN_TYPES: Final = ("application/json", "text/event-stream", "text/plain")


async def list_logs(request: Request, identity: Identity, services: Services) -> Response:
    """GET: one page of rows; filters of every encoding."""
    query = parse_query(request.query_params.multi_items())
    page = await services.logs.list(identity.account_id, _gateway(request), query)
    info = {
        "page": query.page,
        "per_page": query.per_page,
        "count": len(page.rows),
        "total_count": page.total,
        "total_pages": ceil(page.total / query.per_page),
        **(page.meta or {}),
    }
    rows = [to_json(row) for row in page.rows]
    return JsonResponse({"success": True, "errors": [], "messages": [], "result": rows, "result_info": info})


async def get_log(request: Request, identity: Identity, services: Services) -> Response:
    """GET: one row with the beginnings of its bodies."""
    row, heads = await _with_heads(request, identity, services)
    return success({**to_json(row), **heads})


async def patch_log(request: Request, identity: Identity, services: Services) -> Response:
    """PATCH {feedback, score, metadata}: the row as it is then."""
    gateway = _gateway(request)
    patch = _parse_patch(await read_as(request, PatchLog, _MAX_PATCH_BYTES))
    row = await services.logs.patch(identity.account_id, gateway, request.path_params["log_id"], patch)
    return success(to_json(row))


async def delete_logs(request: Request, identity: Identity, services: Services) -> Response:
    """DELETE: the rows that match, all of them without filters; at most `limit`."""
    pairs = request.query_params.multi_items()
    query = parse_query(pairs, also=("limit",))
    gateway = _gateway(request)
    await services.logs.delete(identity.account_id, gateway, query, _limit(request))
    return JsonResponse({"success": True})


async def get_request(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the request body, byte for byte."""
    row, bodies = await services.logs.bodies(identity.account_id, _gateway(request), request.path_params["log_id"])
    return _raw(bodies.request, row["request_content_type"])


async def get_response(request: Request, identity: Identity, services: Services) -> Response:
    """GET: the answer, byte for byte."""
    row, bodies = await services.logs.bodies(identity.account_id, _gateway(request), request.path_params["log_id"])
    return _raw(bodies.response, row["response_content_type"])


async def export_logs(request: Request, identity: Identity, services: Services) -> Response:
    """GET: finished exchanges that match, as JSONL, streamed."""
    query = parse_query(request.query_params.multi_items(), also=("format",))
    chosen = request.query_params.get("format", "openai_chat")
    if chosen not in EXPORT_FORMATS:
        raise BadQuery(f"format must be one of {', '.join(EXPORT_FORMATS)}", param="format")
    lines = services.logs.export(identity.account_id, _gateway(request), query)
    headers = {"cache-control": "private, no-store", "content-disposition": 'attachment; filename="logs.jsonl"'}
    return StreamingResponse(await _started(lines), media_type="application/x-ndjson", headers=headers)


async def _started(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream with its first line already read, so that a store that is away gets a status and not a broken body."""
    first = await anext(lines, None)

    async def stream() -> AsyncIterator[bytes]:
        if first is not None:
            yield first
        async for line in lines:
            yield line

    return stream()


async def _with_heads(request: Request, identity: Identity, services: Services) -> tuple[Row, dict[str, Any]]:
    gateway, log_id = _gateway(request), request.path_params["log_id"]
    try:
        row, bodies = await services.logs.bodies(identity.account_id, gateway, log_id)
    except ObjectNotFound:
        # Either there is no such log, which this says, or only its bodies are gone: then the row is still shown.
        row = await services.logs.get(identity.account_id, gateway, log_id)
        return row, {"request_head": None, "request_head_complete": False,
                     "response_head": None, "response_head_complete": False}  # fmt: skip
    heads: dict[str, Any] = {}
    for name, body in (("request", bodies.request), ("response", bodies.response)):
        heads[f"{name}_head"] = body[:_HEAD_BYTES].decode("utf-8", "replace")
        heads[f"{name}_head_complete"] = len(body) <= _HEAD_BYTES
    return row, heads


def _gateway(request: Request) -> str:
    """The gateway of the path. Only `default` exists until gateways are records of their own."""
    gateway: str = request.path_params["gateway_id"]
    if gateway not in _GATEWAYS:
        raise ObjectNotFound(f"There is no gateway {gateway[:64]!r} in this account")
    return gateway


def _parse_patch(fields: PatchLog) -> LogPatch:
    patch, feedback, score = LogPatch(), fields.feedback, fields.score
    if feedback is not msgspec.UNSET:
        if feedback is not None and not (_is_number(feedback) and feedback in (-1, 1)):
            raise BadInput("feedback must be -1, 1 or null", param="feedback")
        patch = msgspec.structs.replace(patch, feedback=None if feedback is None else int(feedback))
    if score is not msgspec.UNSET:
        if score is not None and not (_is_number(score) and _is_plain(score)):
            raise BadInput("score must be a number or null", param="score")
        patch = msgspec.structs.replace(patch, score=score)
    if fields.metadata is not msgspec.UNSET:
        patch = msgspec.structs.replace(patch, metadata=_parse_metadata(fields.metadata))
    return patch


def _parse_metadata(entries: Any) -> dict[str, Scalar] | None:
    if entries is None:
        return None
    if not isinstance(entries, dict) or len(entries) > MAX_METADATA:
        raise BadInput(f"metadata must be an object of at most {MAX_METADATA} entries, or null", param="metadata")
    for key, value in entries.items():
        if not 0 < len(key) <= 256 or "\0" in key:
            raise BadInput("a metadata key must be 1 to 256 characters long, without NUL", param="metadata")
        if not isinstance(value, str | int | float) or not _is_plain(value):
            raise BadInput(f"metadata.{key[:64]} must be a string, number or boolean", param="metadata")
        if isinstance(value, str) and (len(value) > 4096 or "\0" in value):
            raise BadInput(f"metadata.{key[:64]} is longer than 4096 characters, or has a NUL", param="metadata")
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: str | int | float) -> bool:
    """Text, or a number that every store keeps exactly as it is."""
    return isinstance(value, str) or (isfinite(value) and abs(value) < 2**63)


def _limit(request: Request) -> int | None:
    text = request.query_params.get("limit", "")
    if text == "":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 8 or not 1 <= int(text) <= MAX_DELETE:
        raise BadQuery(f"limit must be a whole number from 1 to {MAX_DELETE}", param="limit")
    return int(text)


def _raw(body: bytes, content_type: str) -> Response:
    """A stored body. Its type is shown as recorded only where a browser does nothing with it; callers of the original
    send JSON under any type and expect it back as JSON."""
    media = content_type.partition(";")[0].strip().lower()
    if media not in _SHOWN_TYPES:
        media = "application/json" if body.lstrip()[:1] in (b"{", b"[") else "application/octet-stream"
    headers = {"cache-control": "private, no-store", "x-content-type-options": "nosniff", "content-type": media}
    return Response(body, headers=headers)


ROUTES: Final = (
    ApiRoute("GET", LOGS, list_logs, "ai_gateway.read"),
    ApiRoute("DELETE", LOGS, delete_logs, "ai_gateway.edit"),
    # Before the route of one log: "export" is no log id.
    ApiRoute("GET", LOGS + "/export", export_logs, "ai_gateway.read"),
    ApiRoute("GET", LOGS + "/{log_id}", get_log, "ai_gateway.read"),
    ApiRoute("PATCH", LOGS + "/{log_id}", patch_log, "ai_gateway.edit"),
    ApiRoute("GET", LOGS + "/{log_id}/request", get_request, "ai_gateway.read"),
    ApiRoute("GET", LOGS + "/{log_id}/response", get_response, "ai_gateway.read"),
)
