"""The log record: everything about one exchange, built once, after its last byte.

`id` is the UUIDv7 sent as `cf-aig-log-id`. Bodies are the bytes as they came and went, not re-encoded. The record is
one msgpack map in a write-ahead segment; columns of the `logs` table are cut from it by the shipper.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from runtime.protocol import SequenceTiming

Outcome = Literal["stop", "length", "error", "client_abort"]


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One exchange. Times: `created_at` is Unix seconds at arrival, durations are milliseconds."""

    id: str
    account_id: str
    gateway: str
    token_id: str
    created_at: float
    path: str
    model: str
    status_code: int
    outcome: Outcome
    duration_ms: int
    request: bytes
    response: bytes
    request_content_type: str = "application/json"
    response_content_type: str = "application/json"
    provider: str = "workers-ai"
    model_type: str = "Text Generation"
    streamed: bool = False
    lora: str | None = None
    adapter_id: str | None = None
    adapter_digest: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    usage_source: Literal["runtime", "none"] = "none"
    cached: bool = False
    cost: float = 0.0
    step: int = 0
    first_byte_ms: int | None = None
    error_code: int | None = None
    trace_id: str | None = None
    user_agent: str | None = None
    metadata: Mapping[str, str | int | float | bool] | None = None
    timing: SequenceTiming | None = None
