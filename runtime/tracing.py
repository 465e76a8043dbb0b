"""One span for each sequence, a child of the gateway's request span through the `traceparent` in `Submit`.

Without an endpoint there is no tracer and a sequence costs two None checks. The provider exports on its own thread,
with its own bounded queue; what does not fit is dropped there.
"""

from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.protocol import SequenceOutput, Submit

SPAN_NAME = "lorikeet.runtime.sequence"


def make_tracer(endpoint: str, sample_ratio: float) -> tuple[Tracer | None, Callable[[], None]]:
    """(tracer, shutdown) for an OTLP/HTTP endpoint such as "http://127.0.0.1:4318"; (None, no-op) without one."""
    if not endpoint:
        return None, lambda: None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({"service.name": "lorikeet-runtime"}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("lorikeet.runtime"), provider.shutdown


class SequenceSpans:
    """Begins and ends the spans; whoever holds the sequence holds its span."""

    def __init__(self, tracer: Tracer | None, model: str) -> None:
        self._tracer, self._model = tracer, model
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, request: Submit) -> Span | None:
        """None when nothing is traced."""
        if self._tracer is None:
            return None
        carrier = {} if request.traceparent is None else {"traceparent": request.traceparent}
        span = self._tracer.start_span(SPAN_NAME, self._propagator.extract(carrier), SpanKind.SERVER)
        span.set_attribute("gen_ai.request.model", self._model)
        span.set_attribute("gen_ai.request.max_tokens", request.sampling.max_tokens)
        if request.adapter is not None:
            span.set_attribute("lorikeet.adapter.digest", request.adapter.digest)
            span.set_attribute("lorikeet.finetune.id", request.adapter.finetune_id)
        return span

    def end(self, span: Span | None, output: SequenceOutput | None) -> None:
        """`output` is the sequence's last one, None when it was aborted."""
        if span is None:
            return
        if output is None:
            span.set_attribute("gen_ai.response.finish_reasons", ("abort",))
        else:
            span.set_attribute("gen_ai.response.finish_reasons", (output.finish_reason or "error",))
            span.set_attribute("gen_ai.usage.input_tokens", output.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", output.completion_tokens)
            if output.timing is not None:
                span.set_attribute("lorikeet.queue_s", output.timing.queue_s)
                span.set_attribute("lorikeet.adapter_wait_s", output.timing.adapter_wait_s)
                span.set_attribute("lorikeet.first_token_s", output.timing.first_token_s)
                span.set_attribute("lorikeet.batch_adapters", output.timing.batch_adapters)
            if output.failure is not None:
                span.set_attribute("error.type", output.failure.kind)
                span.set_status(Status(StatusCode.ERROR, output.failure.message))
        span.end()
