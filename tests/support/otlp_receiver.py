"""A collector of telemetry: it receives OTLP over HTTP, and decodes it."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True)
class Span:
    """A span: times are in nanoseconds, ids are hexadecimal, and a root has no parent."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    is_server: bool
    attributes: Mapping[str, Any]
    message: str
    is_error: bool
    started_at: int
    ended_at: int


@dataclass(frozen=True)
class Record:
    """A log record, with the ids of its trace and span. The severity is the number of its level in the conventions."""

    logger: str
    severity: int
    level: str
    message: str
    trace_id: str
    span_id: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """The last value of a metric with one set of attributes: a number, or how many values a histogram has."""

    name: str
    attributes: Mapping[str, Any]
    value: float


@dataclass
class Receiver:
    """What was received.

    Attributes:
        port: on the loopback interface.
        requests: each request as it came, path and body.
        resources: the attributes of what has sent them.
    """

    port: int
    requests: list[bytes] = field(default_factory=list)
    resources: list[Mapping[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    metrics: dict[str, list[Metric]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The environment of a service that exports to it, without delay."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BLRP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "50",
        }

    def span(self, name: str, /, **attributes: Any) -> Span | None:
        """Return the first span of a name, with attributes whose dots are written as underscores."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        return next(
            (span for span in self.spans if span.name == name and wanted.items() <= span.attributes.items()), None
        )

    def children(self, parent: Span) -> list[Span]:
        """Return the spans that have a parent, in the order of their start."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: span.started_at)

    def value(self, metric: str, /, **attributes: str) -> float | None:
        """Return the last value of a metric, by the last parts of the names of some of its attributes."""
        for found in self.metrics.get(metric, []):
            short = {key.rpartition(".")[2]: value for key, value in found.attributes.items()}
            if attributes.items() <= short.items():
                return found.value
        return None

    def receive(self, path: str, body: bytes) -> None:
        """Decode a request."""
        self.requests.append(path.encode() + b"\n" + body)
        if path == "/v1/traces":
            self._receive_spans(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/logs":
            self._receive_records(ExportLogsServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            self._receive_metrics(ExportMetricsServiceRequest.FromString(body))

    def _receive_spans(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append(decode(resource.resource.attributes))
            self.spans += [
                Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    is_server=span.kind == span.SPAN_KIND_SERVER,
                    attributes=decode(span.attributes),
                    message=span.status.message,
                    is_error=span.status.code == span.status.STATUS_CODE_ERROR,
                    started_at=span.start_time_unix_nano,
                    ended_at=span.end_time_unix_nano,
                )
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def _receive_records(self, request: ExportLogsServiceRequest) -> None:
        for resource in request.resource_logs:
            self.resources.append(decode(resource.resource.attributes))
            self.records += [
                Record(
                    scope.scope.name,
                    record.severity_number,
                    record.severity_text,
                    record.body.string_value,
                    record.trace_id.hex(),
                    record.span_id.hex(),
                    decode(record.attributes),
                )
                for scope in resource.scope_logs
                for record in scope.log_records
            ]

    def _receive_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            self.resources.append(decode(resource.resource.attributes))
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                numbers = [*metric.sum.data_points, *metric.gauge.data_points]
                found = [
                    *((point, point.as_double or point.as_int) for point in numbers),
                    *((point, point.count) for point in metric.histogram.data_points),
                ]
                self.metrics[metric.name] = [
                    Metric(metric.name, decode(point.attributes), value) for point, value in found
                ]


def decode(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Return attributes as a dictionary."""
    return {attribute.key: decode_value(attribute.value) for attribute in attributes}


def decode_value(value: AnyValue) -> Any:
    """Return the value of an attribute; a list as a tuple."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(decode_value, value.array_value.values))
    return getattr(value, kind) if kind else None


@contextmanager
def otlp_receiver(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver for a block, on any port or on a given one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.receive(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        receiver = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
