"""Traces: one per request over both processes. A server span around everything, a client span around the inference.

    POST /client/v4/accounts/{account_id}/ai/run/{model}      (SERVER, HTTP conventions)
    └── chat @cf/…                                            (CLIENT, gen_ai conventions)
        └── the runtime's own span, started from the `traceparent` in `Submit`

Spans go out by OTLP over HTTP, in batches from a bounded queue of the SDK's own thread, when an endpoint is set;
without one nothing is recorded, but a caller's trace id is still kept and passed on. Every attribute name stands in
one table below, because the gen_ai names are still moving. Nothing here is global: whoever needs spans is handed a
`Telemetry`.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.errors import LorikeetError
from gateway.messages import Chunk, ResolvedRequest
from gateway.settings import Telemetry as TelemetrySettings

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

# HTTP (stable)
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
CLIENT_ADDRESS: Final = "client.address"
USER_AGENT: Final = "user_agent.original"
ERROR_TYPE: Final = "error.type"
# gen_ai (development)
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
CHOICE_COUNT: Final = "gen_ai.request.choice.count"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
_SAMPLING: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
# ours
ACCOUNT_ID: Final = "lorikeet.account.id"
FINETUNE_ID: Final = "lorikeet.finetune.id"
ADAPTER_DIGEST: Final = "lorikeet.adapter.digest"

_HEX32: Final = re.compile(r"[0-9a-fA-F]{32}")
_HEX16: Final = re.compile(r"[0-9a-fA-F]{16}")
_propagator = TraceContextTextMapPropagator()


class Telemetry:
    """Makes spans. `provider` None records nothing; otherwise it belongs to this object, which shuts it down."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self.enabled = provider is not None
        self._tracer = provider.get_tracer("lorikeet.gateway", schema_url=SCHEMA_URL) if provider else NoOpTracer()

    @classmethod
    def from_settings(cls, settings: TelemetrySettings) -> "Telemetry":
        """OTLP over HTTP to `otlp_endpoint` + "/v1/traces", or nothing."""
        if not settings.otlp_endpoint:
            return cls(None)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource.create({"service.name": "lorikeet-gateway"}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces", timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    async def aclose(self) -> None:
        """Exports what is left, for at most a few seconds."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)

    def server_span(self, scope: Mapping[str, Any]) -> "ServerSpan":
        """The span of one HTTP request, child of the caller's `traceparent` if there is one. Use as a context."""
        return ServerSpan(self._tracer, scope)

    def inference_span(self, request: ResolvedRequest) -> "InferenceSpan | NoSpan":
        """The span of one answer by one backend. Use as a context."""
        return InferenceSpan(self._tracer, request) if self.in_trace() else _NO_SPAN

    def in_trace(self) -> bool:
        """Whether there is anything to record, or a caller's trace to pass on."""
        return self.enabled or trace.get_current_span().get_span_context().is_valid


def current_trace_id() -> str | None:
    """The trace that this request belongs to, 32 hex digits."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


class ServerSpan:
    """While it is entered it is the current span; afterwards it has the route and the status."""

    def __init__(self, tracer: trace.Tracer, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = _propagator.extract(_carrier(headers), context=otel_context.Context())
        server, client = scope.get("server") or ("", None), scope.get("client")
        attributes: dict[str, Any] = {
            METHOD: scope["method"],
            URL_PATH: scope["path"],
            URL_SCHEME: scope["scheme"],
            SERVER_ADDRESS: server[0],
        }
        if server[1] is not None:
            attributes[SERVER_PORT] = server[1]
        if client:
            attributes[CLIENT_ADDRESS] = client[0]
        if "user-agent" in headers:
            attributes[USER_AGENT] = headers["user-agent"]
        self._span = tracer.start_span(scope["method"], parent, SpanKind.SERVER, attributes)
        self._token = otel_context.attach(trace.set_span_in_context(self._span, parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._span.end()
        otel_context.detach(self._token)

    def answered(self, status: int) -> None:
        """What was sent, and by which route."""
        route = self._scope.get("lorikeet.route")
        if route is not None:
            self._span.update_name(f"{self._scope['method']} {route.path}")
            self._span.set_attribute(ROUTE, route.path)
        self._span.set_attribute(STATUS, status)
        if status >= 500:
            self._span.set_attribute(ERROR_TYPE, str(status))
            self._span.set_status(Status(StatusCode.ERROR))


class NoSpan:
    """An `InferenceSpan` where nothing is recorded and no caller's trace is to be passed on. No state: one for all."""

    traceparent: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def saw(self, chunk: Chunk) -> None:
        """Nothing is kept."""


_NO_SPAN: Final = NoSpan()


class InferenceSpan:
    """Child of the current span. `traceparent` is what the runtime continues."""

    def __init__(self, tracer: trace.Tracer, request: ResolvedRequest) -> None:
        asked = request.request
        operation = "text_completion" if asked.raw else "chat"
        self._span: Span = tracer.start_span(f"{operation} {request.model}", kind=SpanKind.CLIENT)
        self._started = time.monotonic()
        self._first = True
        self._reasons: dict[int, str] = {}
        if self._span.is_recording():
            self._span.set_attributes(_request_attributes(operation, request))

    @property
    def traceparent(self) -> str | None:
        """W3C form, None when there is no trace."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        # A closed generator is a caller that went away or a stop string: not an error of ours.
        if value is not None and not isinstance(value, GeneratorExit):
            code = str(value.code) if isinstance(value, LorikeetError) else type(value).__name__
            self._span.set_attribute(ERROR_TYPE, code)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def saw(self, chunk: Chunk) -> None:
        """Called for every chunk; the first and the last leave marks."""
        if self._first:
            self._first = False
            self._span.set_attribute(TIME_TO_FIRST_CHUNK, time.monotonic() - self._started)
        if chunk.finish_reason is not None:
            self._reasons[chunk.index] = chunk.finish_reason
            self._span.set_attribute(FINISH_REASONS, [reason for _, reason in sorted(self._reasons.items())])
            if chunk.usage is not None:
                self._span.set_attribute(INPUT_TOKENS, chunk.usage.prompt_tokens)
                self._span.set_attribute(OUTPUT_TOKENS, chunk.usage.completion_tokens)
                self._span.set_attribute(CACHED_TOKENS, chunk.usage.cached_tokens)


def _request_attributes(operation: str, request: ResolvedRequest) -> dict[str, Any]:
    asked = request.request
    attributes: dict[str, Any] = {
        OPERATION: operation,
        PROVIDER: "lorikeet",
        REQUEST_MODEL: request.model,
        REQUEST_STREAM: asked.stream,
        MAX_TOKENS: asked.sampling.max_tokens,
        RESPONSE_ID: request.log_id,
        RESPONSE_MODEL: request.model,
        ACCOUNT_ID: request.identity.account_id,
    }
    for field, name in _SAMPLING.items():
        value = getattr(asked.sampling, field)
        if value is not None:
            attributes[name] = value
    if asked.sampling.n != 1:
        attributes[CHOICE_COUNT] = asked.sampling.n
    if asked.sampling.stop:
        attributes[STOP_SEQUENCES] = asked.sampling.stop
    if request.adapter is not None:
        attributes[FINETUNE_ID] = request.adapter.finetune_id
        attributes[ADAPTER_DIGEST] = request.adapter.digest
    return attributes


def _carrier(headers: Mapping[str, str]) -> dict[str, str]:
    """W3C headers, or Cloudflare's own pair when those are absent."""
    if "traceparent" in headers:
        return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    trace_id, span_id = headers.get("cf-aig-otel-trace-id", ""), headers.get("cf-aig-otel-parent-span-id", "")
    if _HEX32.fullmatch(trace_id) and _HEX16.fullmatch(span_id):
        return {"traceparent": f"00-{trace_id.lower()}-{span_id.lower()}-01"}
    return {}


def may_carry_trace(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a caller sent a trace; without one, and without an endpoint, there is nothing to do."""
    return any(name in (b"traceparent", b"cf-aig-otel-trace-id") for name, _ in headers)
