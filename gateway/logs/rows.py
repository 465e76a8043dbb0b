"""A log record as a row of the `logs` table, and a row as the JSON that the contract shows (wire-contract 4.6).

Text from callers is cut to the column's width and loses NUL, which Postgres cannot store; nothing else is changed, and
the bodies never come here.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import msgspec

from gateway.logs.record import LogRecord
from gateway.wire.envelope import iso_time
from runtime.protocol import SequenceTiming

Scalar = str | int | float | bool
_MAX_INTEGER: Final = 2**31 - 1
_MAX_PATH: Final = 2048
_TIMINGS: Final = ("queue_ms", "adapter_wait_ms", "first_token_ms", "total_ms",
                   "batch_rows", "batch_adapters", "batch_accounts", "adapter_source")  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogRecord)


def encode_record(record: LogRecord) -> bytes:
    """The record as a segment's payload. Text that is not Unicode and numbers that are not 64-bit are mended."""
    try:
        return _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):
        return _encoder.encode(_mended(record))


def decode_record(payload: bytes) -> LogRecord:
    """Raises ValueError (msgspec.DecodeError is one) when the payload is not a record of this version."""
    return _decoder.decode(payload)


def columns(record: LogRecord, segment_id: str, offset: int) -> dict[str, Any]:
    """The row of a record that lies at `offset` of the segment."""
    success = record.outcome in ("stop", "length") and 200 <= record.status_code < 300
    return {
        "id": record.id,
        "account_id": record.account_id,
        "gateway": record.gateway,
        "token_id": record.token_id,
        "created_at": record.created_at,
        "path": _text(record.path, _MAX_PATH),
        "provider": _text(record.provider, 64),
        "model": _text(record.model, 128),
        "model_type": _text(record.model_type, 64),
        "lora": _optional(record.lora, 128),
        "adapter_id": record.adapter_id,
        "adapter_digest": record.adapter_digest,
        "status_code": record.status_code,
        "success": success,
        "outcome": record.outcome,
        "error_code": record.error_code,
        "cached": record.cached,
        "streamed": record.streamed,
        "duration_ms": _integer(record.duration_ms),
        "first_byte_ms": None if record.first_byte_ms is None else _integer(record.first_byte_ms),
        "tokens_in": _integer(record.tokens_in),
        "tokens_out": _integer(record.tokens_out),
        "cached_tokens": _integer(record.cached_tokens),
        "cost": record.cost if isfinite(record.cost) else 0.0,
        "step": _integer(record.step),
        "request_content_type": _text(record.request_content_type, 128),
        "response_content_type": _text(record.response_content_type, 128),
        "request_size": len(record.request),
        "response_size": len(record.response),
        "trace_id": _optional(record.trace_id, 32),
        "user_agent": _optional(record.user_agent, 256),
        # Never SQL or JSON null: the filters unfold this column, and an object always unfolds.
        "metadata": _metadata(record.metadata or {}),
        "timing": _timings(record.timing),
        "feedback": None,
        "score": None,
        "segment_id": segment_id,
        "segment_offset": offset,
    }


def to_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The log row that lists show."""
    return {
        "id": row["id"],
        "created_at": iso_time(row["created_at"]),
        "provider": row["provider"],
        "model": row["model"],
        "model_type": row["model_type"],
        "lora": row["lora"],
        "adapter_id": row["adapter_id"],
        "adapter_digest": row["adapter_digest"],
        "path": row["path"],
        "status_code": row["status_code"],
        "success": row["success"],
        "outcome": row["outcome"],
        "error_code": row["error_code"],
        "cached": row["cached"],
        "streamed": row["streamed"],
        "step": row["step"],
        "duration": row["duration_ms"],
        "first_byte_ms": row["first_byte_ms"],
        "tokens_in": row["tokens_in"],
        "tokens_out": row["tokens_out"],
        "cached_tokens": row["cached_tokens"],
        "cost": row["cost"],
        "custom_cost": False,
        "request_content_type": row["request_content_type"],
        "response_content_type": row["response_content_type"],
        "request_size": row["request_size"],
        "response_size": row["response_size"],
        "metadata": row["metadata"] or {},
        "feedback": row["feedback"],
        "score": row["score"],
        "timings": row["timing"] or _timings(None),
        "event_id": row["id"],
        "trace_id": row["trace_id"],
        "user_agent": row["user_agent"],
    }


def _timings(timing: SequenceTiming | None) -> dict[str, Any]:
    if timing is None:
        return dict.fromkeys(_TIMINGS[:4]) | dict.fromkeys(_TIMINGS[4:7], 0) | {"adapter_source": None}
    seconds = (timing.queue_s, timing.adapter_wait_s, timing.first_token_s, timing.total_s)
    return {
        **{name: round(value * 1000, 3) for name, value in zip(_TIMINGS[:4], seconds, strict=True)},
        "batch_rows": timing.batch_rows,
        "batch_adapters": timing.batch_adapters,
        "batch_accounts": timing.batch_accounts,
        "adapter_source": timing.adapter_source,
    }


def _metadata(entries: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {
        _text(key, 256): _text(value, 4096) if isinstance(value, str) else value
        for key, value in entries.items()
        if isinstance(value, str) or isfinite(value)
    }


def _text(value: str, width: int) -> str:
    return value[:width].replace("\0", "�")


def _optional(value: str | None, width: int) -> str | None:
    return None if value is None else _text(value, width)


def _integer(value: int) -> int:
    return max(-_MAX_INTEGER, min(value, _MAX_INTEGER))


def _mended(record: LogRecord) -> LogRecord:
    changes: dict[str, Any] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str):
            changes[name] = _unicode(value)
        elif isinstance(value, int):
            changes[name] = _integer(value)
    if record.metadata is not None:
        changes["metadata"] = {
            _unicode(key): _unicode(value) if isinstance(value, str) else value
            for key, value in record.metadata.items()
            if not isinstance(value, int) or abs(value) < 2**63
        }
    return msgspec.structs.replace(record, **changes)


def _unicode(value: str) -> str:
    return value.encode("utf-8", "replace").decode("utf-8")
