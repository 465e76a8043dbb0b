"""Traces: what the spans say, and that one trace id reaches a collector from the gateway and from the runtime."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.app import build_app
from gateway.backends.fake import FakeBackend, Script
from gateway.errors import RuntimeUnavailable
from gateway.messages import ResolvedRequest
from gateway.permissions import PERMISSIONS
from gateway.settings import DEMO_MODEL, Settings
from gateway.settings import Telemetry as TelemetrySettings
from gateway.telemetry import Telemetry
from tests.gateway.backends.runtime_process import TOKEN, runtime_process
from tests.gateway.stack import CHAT, RUN, Stack, open_stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def script(request: ResolvedRequest) -> Script:
    if request.request.prompt == "fail":
        return [RuntimeUnavailable("gone")]
    return ["one", " two"]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, FakeBackend(script)) as opened:
        yield opened


@pytest.fixture
def spans(stack: Stack) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry(provider)
    object.__setattr__(stack.services, "telemetry", telemetry)
    stack.services.pipeline._telemetry = telemetry
    yield exporter
    provider.shutdown()


def by_kind(spans: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """(server, client)"""
    finished = {span.kind: span for span in spans.get_finished_spans()}
    assert len(spans.get_finished_spans()) == 2
    return finished[SpanKind.SERVER], finished[SpanKind.CLIENT]


async def test_a_server_span_with_an_inference_in_it(stack: Stack, spans: InMemorySpanExporter) -> None:
    body = {"prompt": "x", "seed": 5, "stop": ["zz"], "stream": True, "temperature": 0}
    answer = await stack.post(RUN, body, headers={"user-agent": "test/1"})
    server, client = by_kind(spans)
    route = "/client/v4/accounts/{account_id}/ai/run/{model:path}"
    assert server.name == f"POST {route}"
    assert server.parent is None
    said = dict(server.attributes or {})
    assert (said["http.route"], said["http.request.method"]) == (route, "POST")
    assert (said["http.response.status_code"], said["url.path"]) == (200, stack.url(RUN))
    assert said["user_agent.original"] == "test/1"
    assert client.name == f"chat {DEMO_MODEL}"
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    said = dict(client.attributes or {})
    assert said.pop("gen_ai.response.time_to_first_chunk") >= 0  # type: ignore[operator]
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lorikeet",
        "gen_ai.request.model": DEMO_MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 256,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.seed": 5,
        "gen_ai.request.stop_sequences": ("zz",),
        "gen_ai.response.id": answer.headers["cf-aig-log-id"],
        "gen_ai.response.model": DEMO_MODEL,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "lorikeet.account.id": stack.account,
    }
    assert stack.records.seen[0].trace_id == f"{server.context.trace_id:032x}"
    traceparent = stack.fake.requests[0].traceparent or ""
    assert traceparent.startswith(f"00-{client.context.trace_id:032x}-{client.context.span_id:016x}-0")
    assert not any(
        stack.secret in str(value) for span in (server, client) for value in (span.attributes or {}).values()
    )


async def test_every_choice_has_a_finish_reason(stack: Stack, spans: InMemorySpanExporter) -> None:
    body = {"model": DEMO_MODEL, "messages": [{"role": "user", "content": "a b c"}], "n": 3, "max_tokens": 2}
    assert (await stack.post(CHAT, body)).status_code == 200
    said = dict(by_kind(spans)[1].attributes or {})
    assert said["gen_ai.request.choice.count"] == 3
    assert said["gen_ai.response.finish_reasons"] == ("length",) * 3
    assert said["gen_ai.usage.output_tokens"] == 6


async def test_the_callers_trace_goes_on(stack: Stack, spans: InMemorySpanExporter) -> None:
    await stack.post(RUN, {"prompt": "x"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    server, client = by_kind(spans)
    assert server.parent is not None
    assert f"{server.context.trace_id:032x}" == f"{client.context.trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == PARENT
    spans.clear()
    await stack.post(
        RUN, {"prompt": "x"}, headers={"cf-aig-otel-trace-id": TRACE, "cf-aig-otel-parent-span-id": PARENT}
    )
    assert f"{by_kind(spans)[0].context.trace_id:032x}" == TRACE


@pytest.mark.parametrize("bad", ["", "00-xyz", f"00-{'0' * 32}-{PARENT}-01", "ff" * 500])
async def test_a_bad_traceparent_begins_a_new_trace(stack: Stack, spans: InMemorySpanExporter, bad: str) -> None:
    answer = await stack.post(RUN, {"prompt": "x"}, headers={"traceparent": bad})
    assert answer.status_code == 200
    assert by_kind(spans)[0].parent is None


async def test_errors_mark_the_spans(stack: Stack, spans: InMemorySpanExporter) -> None:
    await stack.post(RUN, {"prompt": "fail"})
    server, client = by_kind(spans)
    assert (server.attributes or {})["error.type"] == "503"
    assert server.status.status_code is client.status.status_code is StatusCode.ERROR
    assert (client.attributes or {})["error.type"] == "7010"
    spans.clear()
    await stack.post(RUN, {"prompt": ""})
    (refused,) = spans.get_finished_spans()
    assert refused.status.status_code is StatusCode.UNSET
    spans.clear()
    await stack.client.get("/healthz")
    assert spans.get_finished_spans() == ()


async def test_without_an_endpoint_a_trace_is_still_passed_on(stack: Stack) -> None:
    assert not stack.services.telemetry.enabled
    await stack.post(RUN, {"prompt": "x"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert stack.records.seen[0].trace_id == TRACE
    assert stack.fake.requests[0].traceparent == f"00-{TRACE}-{PARENT}-01"
    await stack.post(RUN, {"prompt": "x"})
    assert stack.records.seen[1].trace_id is None
    assert stack.fake.requests[1].traceparent is None


class Collector:
    """OTLP over HTTP: remembers (service, span name, trace id)."""

    def __init__(self) -> None:
        self.spans: set[tuple[str, str, str]] = set()
        self.arrived = threading.Condition()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.arrived:
            for resource in request.resource_spans:
                (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                for scope in resource.scope_spans:
                    self.spans.update((service, span.name, span.trace_id.hex()) for span in scope.spans)
            self.arrived.notify_all()

    def services_of(self, trace_id: str) -> set[str]:
        return {service for service, _, trace in self.spans if trace == trace_id}

    def wait_for(self, trace_id: str, services: int) -> set[str]:
        with self.arrived:
            self.arrived.wait_for(lambda: len(self.services_of(trace_id)) >= services, 20)
            return self.services_of(trace_id)


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_one_trace_over_both_processes(tmp_path: Path) -> None:
    """The whole path, nothing faked: HTTP, pipeline, socket, the demo model in its own process, a collector."""
    with collecting() as (url, collector):
        with runtime_process(url) as socket_path:
            await _ask(tmp_path, url, socket_path)
        # both processes have ended, and export what they have before that
        services = await asyncio.to_thread(collector.wait_for, TRACE, 2)
        assert services == {"lorikeet-gateway", "lorikeet-runtime"}
        names = {name for service, name, trace in collector.spans if service == "lorikeet-gateway" and trace == TRACE}
        assert f"chat {DEMO_MODEL}" in names


async def _ask(folder: Path, otlp_endpoint: str, socket_path: Path) -> None:
    settings = Settings(data_dir=str(folder / "data"), telemetry=TelemetrySettings(otlp_endpoint=otlp_endpoint))
    app = build_app(settings, runtime_sockets={DEMO_MODEL: socket_path}, runtime_token=TOKEN)
    async with app.router.lifespan_context(app):
        accounts = app.state.services.accounts
        account = await accounts.create_account("a")
        _, secret = await accounts.create_token(account.id, "t", PERMISSIONS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            answer = await client.post(
                f"/client/v4/accounts/{account.id}{RUN}",
                json={"prompt": "Which hall opens at noon?", "temperature": 0, "max_tokens": 8},
                headers={"authorization": f"Bearer {secret}", "traceparent": f"00-{TRACE}-{PARENT}-01"},
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["result"]["response"]
            assert (await client.get("/readyz")).status_code == 200
