"""The envelope: every error of the tree with its status and code, the OpenAI object beside it, pages."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from gateway import errors
from gateway.errors import BadInput, LorikeetError, OverCapacity
from gateway.wire.envelope import Page, as_lorikeet_error, error_response, iso_time, read_page, success, success_page
from storage.errors import StorageFull, StorageUnavailable

CODES = {
    "AuthenticationFailed": (401, 10000), "PermissionMissing": (403, 9109), "RouteNotFound": (404, 7000),
    "ObjectNotFound": (404, 7003), "MethodNotSupported": (405, 7001), "BadQuery": (400, 7001), "BadInput": (400, 5006),
    "EmptyBody": (400, 3003), "UnknownModel": (400, 5007), "LoraNotSupported": (405, 5005),
    "InvalidModelId": (404, 3042),
    "FinetuneNotFound": (404, 3037), "FinetuneIncomplete": (400, 3039), "RequestTooLarge": (413, 3006),
    "ContextExceeded": (413, 5021), "RequestTimeout": (408, 3046), "OverCapacity": (429, 3040),
    "RuntimeUnavailable": (503, 7010), "StorageUnavailable": (503, 7011), "InternalError": (500, 7500),
}  # fmt: skip


def body_of(response: Any) -> Any:
    return json.loads(response.body)


@pytest.mark.parametrize("name", CODES)
def test_every_error_renders_in_both_shapes(name: str) -> None:
    error: LorikeetError = getattr(errors, name)("what to change")
    response = error_response(error)
    assert (response.status_code, body_of(response)["errors"]) == (
        CODES[name][0], [{"code": CODES[name][1], "message": "what to change"}],
    )  # fmt: skip
    assert {key: body_of(response)[key] for key in ("success", "messages", "result")} == {
        "success": False, "messages": [], "result": None,
    }  # fmt: skip
    assert "error" not in body_of(response)
    both = body_of(error_response(error, openai=True))
    assert both["errors"] == body_of(response)["errors"]
    assert both["error"]["message"] == "what to change"
    assert set(both["error"]) == {"message", "type", "code", "param"}


def test_retry_after_is_whole_seconds_and_reasons_are_listed() -> None:
    assert error_response(OverCapacity("busy", retry_after_s=0.2)).headers["retry-after"] == "1"
    assert error_response(OverCapacity("busy", retry_after_s=2.1)).headers["retry-after"] == "3"
    assert "retry-after" not in error_response(OverCapacity("busy")).headers
    body = body_of(error_response(BadInput("a; b", param="file", reasons=("a", "b")), openai=True))
    assert body["errors"] == [
        {"code": 5006, "message": "a; b", "source": {"pointer": "/file"}, "meta": {"reasons": ["a", "b"]}}
    ]
    assert body["error"]["param"] == "file"


def test_foreign_failures_say_nothing_about_the_inside() -> None:
    full = as_lorikeet_error(StorageFull("/secret/path is full"))
    assert "storage is full" in full.message
    away = as_lorikeet_error(StorageUnavailable("/secret/path"))
    assert "try again" in away.message
    assert "secret" not in away.message
    assert (full.status, full.retry_after_s) == (503, 60)
    assert "secret" not in full.message
    assert "secret" not in as_lorikeet_error(RuntimeError("secret")).message
    same = BadInput("x")
    assert as_lorikeet_error(same) is same


def test_success_shapes_are_private() -> None:
    response = success({"a": 1})
    assert body_of(response) == {"success": True, "errors": [], "messages": [], "result": {"a": 1}}
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["content-type"] == "application/json"
    page = body_of(success_page([1, 2], Page(2, 2), 5))
    assert page["result_info"] == {"page": 2, "per_page": 2, "count": 2, "total_count": 5, "total_pages": 3}


@given(st.integers(0, 50), st.integers(1, 20))
def test_pages_hold_everything_once_and_then_nothing(total: int, per_page: int) -> None:
    items, seen, number = list(range(total)), [], 1
    while rows := Page(number, per_page).cut(items):
        seen += rows
        number += 1
    assert seen == items


def test_per_page_is_capped() -> None:
    assert read_page(QueryParams("page=3&per_page=999999")) == Page(3, 1000)
    assert read_page(QueryParams("")) == Page(1, 100)


def test_times_are_iso_8601() -> None:
    assert iso_time(0.5) == "1970-01-01T00:00:00.500000Z"
    now = datetime(2026, 11, 20, 19, 0, 0, 1, UTC)
    assert datetime.fromisoformat(iso_time(now.timestamp())) == now
