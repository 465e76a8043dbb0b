"""One exchange: the log record in the making, from the moment the caller is known to the last byte of the answer.

Opened with the authenticated request, told what becomes known on the way (the body, the resolved model, the first
byte), and closed exactly once with how it ended. `close` hands the record to the log and, in mode `ack`, returns when
it is on disk, so whoever sends the last byte calls it first. The caller's `cf-aig-*` wishes are read here.
"""

import re
import time
from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec
from starlette.requests import Request

from gateway.errors import GatewayNotConfigured, LorikeetError
from gateway.ids import uuid7
from gateway.lasting import to_the_end
from gateway.logs.record import LogRecord, Outcome
from gateway.messages import ChatRequest, Chunk, Identity, ResolvedRequest
from gateway.names import printable
from gateway.telemetry import current_trace_id

DEFAULT_GATEWAY: Final = "default"
MAX_METADATA_ENTRIES: Final = 5
MAX_METADATA_BYTES: Final = 8192
MAX_SESSION_CHARS: Final = 256
CLIENT_ABORT_STATUS: Final = 499  # never sent: what the record says when the caller did not wait for the answer
_EVENT_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


class RecordSink(Protocol):
    """What an exchange needs of the log store."""

    def check_writable(self) -> None:
        """Raises StorageUnavailable while nothing can be recorded."""
        ...

    def append(self, record: LogRecord) -> Awaitable[None]:
        """Done when the record is as durable as the settings promise. Raises LorikeetError, StorageError."""
        ...


class Exchange:
    """State: open, then closed. Not shared between requests."""

    def __init__(self, request: Request, identity: Identity, model: str = "") -> None:
        """`model` is what the path says, for requests whose body is never understood."""
        headers = request.headers
        self.log_id = uuid7()
        self.identity = identity
        self._created_at = time.time()
        self._started = time.monotonic()
        self._path = printable(request.scope["path"].partition(f"/{identity.account_id}/")[2], 512)
        self._gateway_wanted = headers.get("cf-aig-gateway-id", DEFAULT_GATEWAY)
        self._event_id = _matching(_EVENT_ID, headers.get("cf-aig-event-id")) or self.log_id
        self._collect = _wish(headers.get("cf-aig-collect-log"))
        self._collect_payload = _wish(headers.get("cf-aig-collect-log-payload"))
        self._metadata = read_metadata(headers.get("cf-aig-metadata"))
        self._user_agent = headers.get("user-agent")
        self.session = headers.get("x-session-affinity", "")[:MAX_SESSION_CHARS] or None
        self._request_type = headers.get("content-type", "application/json")
        self._model = model
        self._first_byte_ms: int | None = None
        self._asked: ChatRequest | None = None
        self._resolved: ResolvedRequest | None = None
        self._last: Chunk | None = None
        self.body = b""
        self.is_closed = False

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer of this exchange carries, errors too. The adapter's version is ours: which side of a split
        answered."""
        log_id = self.log_id.encode()
        carried = [
            (b"cf-aig-log-id", log_id),
            (b"cf-aig-request-id", log_id),
            (b"cf-aig-event-id", self._event_id.encode()),
            (b"cf-aig-step", b"0"),
        ]
        if self._resolved is not None and self._resolved.adapter is not None:
            carried.append((b"lorikeet-adapter-version", str(self._resolved.adapter.version).encode()))
        return carried

    def check_gateway(self) -> None:
        """An account has the gateway "default" and, so far, no other. Raises GatewayNotConfigured."""
        if self._gateway_wanted != DEFAULT_GATEWAY:
            raise GatewayNotConfigured(
                f"there is no gateway {printable(self._gateway_wanted, 64)}; leave cf-aig-gateway-id out or send "
                f"{DEFAULT_GATEWAY!r}"
            )

    def check_log(self, sink: RecordSink) -> None:
        """Before the work begins: an answer whose record is refused is not sent. Raises StorageUnavailable."""
        if self._collect:
            sink.check_writable()

    def named(self, model: str) -> None:
        """The body names this model; whether there is one is not known yet."""
        self._model = model

    def asked(self, request: ChatRequest) -> None:
        """The body was understood."""
        self._asked = request

    def resolved(self, request: ResolvedRequest) -> None:
        """Model and adapter are known."""
        self._resolved = request

    def first_byte(self) -> None:
        """The first piece of the answer is there."""
        self._first_byte_ms = self._elapsed_ms()

    def finished(self, last: Chunk) -> None:
        """The backend's last chunk: finish reason, usage and timing."""
        self._last = last

    async def close(
        self,
        sink: RecordSink,
        status: int,
        response: bytes,
        *,
        outcome: Outcome | None = None,
        error: LorikeetError | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Hands the record to the log, once; a second call does nothing. `outcome` None takes the backend's.

        Cancelling the caller does not cancel the append. Raises what the log raises.
        """
        if self.is_closed:
            return
        self.is_closed = True
        if not self._collect:
            return
        record = self._record(status, response, outcome, error, content_type)
        await to_the_end(sink.append(record))

    def _record(
        self, status: int, response: bytes, outcome: Outcome | None, error: LorikeetError | None, content_type: str
    ) -> LogRecord:
        asked, resolved, last = self._asked, self._resolved, self._last
        usage = last.usage if last else None
        finish = last.finish_reason if last else None
        adapter = resolved.adapter if resolved else None
        return LogRecord(
            id=self.log_id,
            account_id=self.identity.account_id,
            gateway=DEFAULT_GATEWAY,
            token_id=self.identity.token_id,
            created_at=self._created_at,
            path=self._path,
            model=resolved.model if resolved else printable(asked.model if asked else self._model),
            status_code=status,
            outcome=outcome or ("stop" if finish == "tool_calls" else finish) or "error",  # a call is a good end
            duration_ms=self._elapsed_ms(),
            request=self.body if self._collect_payload else b"",
            response=response if self._collect_payload else b"",
            request_content_type=printable(self._request_type),
            response_content_type=content_type,
            streamed=asked.stream if asked else False,
            lora=printable(asked.lora) if asked and asked.lora else None,
            adapter_id=adapter.finetune_id if adapter else None,
            adapter_digest=adapter.digest if adapter else None,
            tokens_in=usage.prompt_tokens if usage else 0,
            tokens_out=usage.completion_tokens if usage else 0,
            cached_tokens=usage.cached_tokens if usage else 0,
            usage_source="runtime" if usage else "none",
            first_byte_ms=self._first_byte_ms,
            error_code=error.code if error else None,
            trace_id=current_trace_id(),
            user_agent=printable(self._user_agent, 256) if self._user_agent else None,
            metadata=self._metadata,
            timing=last.timing if last else None,
        )

    def _elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)


def read_metadata(text: str | None) -> dict[str, str | float | bool] | None:
    """`cf-aig-metadata`: the first five plain entries of a JSON object; anything else in it and there is none.

    Never an error: metadata must not cost a caller the answer. Keys that begin with "cf." are reserved and left out.
    """
    if not text or len(text) > MAX_METADATA_BYTES:
        return None
    try:
        entries = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if not isinstance(entries, dict) or not all(isinstance(value, str | int | float) for value in entries.values()):
        return None
    kept = {key: value for key, value in entries.items() if not key.startswith("cf.")}
    return dict(list(kept.items())[:MAX_METADATA_ENTRIES]) or None


def _matching(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and pattern.fullmatch(text) else None


def _wish(text: str | None) -> bool:
    return text is None or text.strip().lower() != "false"
