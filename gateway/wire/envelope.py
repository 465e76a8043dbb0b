"""The v4 envelope: `{success, errors, messages, result}`, and how every typed error looks on the wire.

Shape: a few functions from plain values to a Starlette response; the body is built by msgspec, so structs, dates and
bytes of JSON go in as they are. Lists are answered in pages (`Page`), always with an empty result past the end: the
public SDKs ask for the next page until they get an empty one. On OpenAI routes the same failure also carries an
`error` object beside `errors`, because the OpenAI SDKs print nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from gateway.errors import (
    BadQuery,
    InternalError,
    LorikeetError,
    MethodNotSupported,
    RequestTimeout,
    RequestTooLarge,
    StorageUnavailable,
)
from storage.errors import StorageError, StorageFull

MAX_PER_PAGE: Final = 1000
MAX_PAGE: Final = 1_000_000

# Answers belong to one token: no proxy in between may keep them.
_PRIVATE: Final[dict[str, str]] = {"cache-control": "private, no-store"}


class JsonResponse(Response):
    """A JSON body encoded by msgspec, never kept by a shared cache."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status_code, {**_PRIVATE, **(headers or {})})


class Page(NamedTuple):
    """A slice of a list as the caller asked for it; `page` counts from 1."""

    page: int
    per_page: int

    def cut(self, items: Sequence[Any]) -> list[Any]:
        """The items of this page; none past the end."""
        start = (self.page - 1) * self.per_page
        return list(items[start : start + self.per_page])


def read_page(query: QueryParams, per_page: int = 100) -> Page:
    """`page` and `per_page` of the query; a larger `per_page` than MAX_PER_PAGE is cut to it. Raises BadQuery."""
    return Page(
        _whole(query, "page", 1, MAX_PAGE),
        min(_whole(query, "per_page", per_page, MAX_PAGE), MAX_PER_PAGE),
    )


def _whole(query: QueryParams, name: str, default: int, largest: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 7 or not 1 <= int(text) <= largest:
        raise BadQuery(f"{name} must be a whole number from 1 to {largest}", param=name)
    return int(text)


def success(result: Any, *, messages: Sequence[Any] = (), status_code: int = 200) -> JsonResponse:
    """One object, or a list that is never paged."""
    return JsonResponse({"success": True, "errors": [], "messages": messages, "result": result}, status_code)


def success_page(items: Sequence[Any], page: Page, total: int) -> JsonResponse:
    """One page of a list of `total` items; `items` are already cut."""
    info = {
        "page": page.page,
        "per_page": page.per_page,
        "count": len(items),
        "total_count": total,
        "total_pages": math.ceil(total / page.per_page),
    }
    return JsonResponse({"success": True, "errors": [], "messages": [], "result": items, "result_info": info})


def as_lorikeet_error(error: Exception) -> LorikeetError:
    """What the caller is told about any failure. Storage that is away may come back; everything else is our fault."""
    if isinstance(error, LorikeetError):
        return error
    if isinstance(error, StorageFull):
        return StorageUnavailable("the gateway's storage is full; nothing of this request was stored", retry_after_s=60)
    if isinstance(error, StorageError):
        return StorageUnavailable("the gateway's storage does not answer just now; try again", retry_after_s=5)
    return InternalError("something went wrong inside the gateway; the request was not completed")


def error_body(error: LorikeetError, *, openai: bool = False) -> dict[str, Any]:
    """The failure as a plain dictionary, for answers that are not a whole response (an event inside a stream)."""
    entry: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.param is not None:
        entry["source"] = {"pointer": f"/{error.param}"}
    if error.reasons:
        entry["meta"] = {"reasons": error.reasons}
    body: dict[str, Any] = {"success": False, "errors": [entry], "messages": [], "result": None}
    if openai:
        body["error"] = {
            "message": error.message,
            "type": error.openai_type,
            "code": str(error.code),
            "param": error.param,
        }
    return body


def error_headers(error: LorikeetError) -> dict[str, str]:
    """Retry-After in whole seconds where trying again may help; how to ask after a 401 or 405.

    Where the rest of a body may still be on its way, the connection ends: nobody waits for what is not wanted.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestTooLarge | RequestTimeout):
        headers["connection"] = "close"
    if isinstance(error, RequestTimeout):
        headers["x-should-retry"] = "false"  # the SDKs would send it twice more, and each would take as long
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, MethodNotSupported):
        headers["allow"] = ", ".join(error.allowed)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: LorikeetError, *, openai: bool = False) -> JsonResponse:
    """The failure with its status."""
    return JsonResponse(error_body(error, openai=openai), error.status, error_headers(error))


def iso_time(seconds: float) -> str:
    """Unix seconds as ISO-8601 in UTC with microseconds, the form that every SDK reads as a date."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
