"""A small OTLP/HTTP collector: takes spans on a local port and remembers which services sent which trace."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Serves while the context is open."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        with self._news:
            for resource in request.resource_spans:
                names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self._seen.setdefault(span.trace_id.hex(), set()).update(names)
            self._news.notify_all()

    def wait_for(self, trace_id: str, num_services: int, timeout_s: float = 30.0) -> set[str]:
        """The services that sent spans of this trace, once there are `num_services` of them (or time is up)."""
        with self._news:
            self._news.wait_for(lambda: len(self._seen.get(trace_id, ())) >= num_services, timeout_s)
            return set(self._seen.get(trace_id, ()))
