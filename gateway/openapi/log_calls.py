"""The logs of a gateway."""

from typing import Any, Final

import msgspec

from gateway.endpoints import logs
from gateway.logs.export import EXPORT_FORMATS
from gateway.logs.filters import FILTER_NAMES, MAX_PAGE, MAX_PER_PAGE, Direction, OrderBy
from gateway.openapi.operation import Operation, Query, choice, pages
from gateway.wire.log_bodies import PatchLog

_CHOICES: Final = {
    "order_by": choice(OrderBy), "order_by_direction": choice(Direction), "direction": choice(Direction),
}  # fmt: skip
_FILTERS: Final = tuple(
    Query(name, "See the contract of the original's logs.", _CHOICES.get(name, {"type": "string"}))
    for name in FILTER_NAMES
)
_WHOLE: Final = {"type": "integer", "minimum": 1}
_PAGES: Final = (
    *pages(MAX_PER_PAGE, MAX_PAGE),
    Query("meta_info", "Extremes of the selection in result_info.", {"type": "string", "enum": ["true", "false"]}),
)


class Log(msgspec.Struct):
    """One exchange."""

    id: str
    created_at: str
    provider: str
    model: str
    path: str
    status_code: int
    success: bool
    outcome: str
    cached: bool
    streamed: bool
    duration: int
    tokens_in: int
    tokens_out: int
    cost: float
    lora: str | None
    error_code: int | None
    metadata: dict[str, Any]
    feedback: int | None
    score: float | None
    timings: dict[str, Any]


class LogDetail(Log, kw_only=True):
    """With the beginnings of its bodies."""

    request_head: str | None
    request_head_complete: bool
    response_head: str | None
    response_head_complete: bool


OPERATIONS: Final = {
    logs.list_logs: Operation("Logs that match", Log, "page", query=(*_PAGES, *_FILTERS)),
    logs.delete_logs: Operation(
        "Delete the logs that match", envelope="none", reply=dict[str, bool],
        query=(*_FILTERS, Query("limit", "At most so many.", {**_WHOLE, "maximum": logs.MAX_DELETE})),
    ),
    logs.export_logs: Operation(
        "Finished exchanges that match, as training data", envelope="none", media=("application/x-ndjson",), ours=True,
        query=(*_FILTERS, Query("format", "Of each line.", {"type": "string", "enum": list(EXPORT_FORMATS)})),
    ),
    logs.get_log: Operation("One log", LogDetail),
    logs.patch_log: Operation(
        "Say something about an exchange", Log, body=PatchLog, example={"feedback": 1, "metadata": {"reviewed": True}}
    ),
    logs.get_request: Operation(
        "The request as it came", envelope="none",
        media=("application/json", "text/event-stream", "text/plain", "application/octet-stream"),
    ),
    logs.get_response: Operation(
        "The answer as it went", envelope="none",
        media=("application/json", "text/event-stream", "text/plain", "application/octet-stream"),
    ),
}  # fmt: skip
