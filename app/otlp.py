"""OTLP: the SDK of OpenTelemetry, set up to export without the values of requests and statements.

Only `telemetry.py` imports this, when a collector is configured: the packages are those of the extra `telemetry`.
"""

import logging
import os
import time
from collections.abc import Iterable
from functools import cache
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode

from opentelemetry import metrics, propagate, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import ProxyTracerProvider, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status
from pythonjsonlogger.core import RESERVED_ATTRS
from sqlalchemy.ext.asyncio import AsyncEngine

from app.capacity import name_process
from app.drivers import SeverityNumber, build_logger_provider
from app.log_config import OURS, RequestFilter

FLUSH_TIMEOUT = 0.5  # seconds at the end for what is not exported yet
QUERY = "url.query"
RESERVED = {*RESERVED_ATTRS, "color_message", "trace_id", "span_id"}  # of logging and uvicorn, and those of the record


@cache
def start_exporter(service: str, signals: frozenset[str]) -> "Exporter":
    """Start to export signals. A process has one exporter, since its global providers can be set only once."""
    return Exporter(service, signals)


class Exporter:
    """Exports the spans and metrics of the global providers, and the lines of our loggers."""

    def __init__(self, service: str, signals: frozenset[str]) -> None:
        """Set the global providers.

        The SDK reads the rest of the variables by itself: samplers, limits, intervals, headers, certificates.

        Raises:
            RuntimeError: something else has set a provider, such as `opentelemetry-instrument`.
        """
        if not isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
            raise RuntimeError("something else has configured OpenTelemetry")  # noqa: TRY004 - no argument is wrong
        own = {"service.name": service, "service.instance.id": name_process(service)}
        resource = Resource.create(own | dict(OTELResourceDetector().detect().attributes))
        # They are not shut down at exit, where the SDK waits for a collector that does not answer: up to a minute.
        self._providers: list[Any] = []
        self._traces = "traces" in signals
        if self._traces:
            tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracer_provider.add_span_processor(RedactingSpanProcessor(OTLPSpanExporter()))
            self._providers.append(tracer_provider)
        if "metrics" in signals:
            reader = PeriodicExportingMetricReader(OTLPMetricExporter())
            meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
            self._providers.append(meter_provider)
        if "logs" in signals:
            logger_provider = build_logger_provider(resource)
            self._providers.append(logger_provider)
            handler = LogRecordHandler(logger_provider)
        # Now that nothing can fail any more: a global provider stays.
        if not os.environ.get("OTEL_PROPAGATORS"):  # the default reads baggage too, and logs what it can't read
            propagate.set_global_textmap(TraceContextTextMapPropagator())
        if self._traces:
            trace.set_tracer_provider(tracer_provider)
        if "metrics" in signals:
            metrics.set_meter_provider(meter_provider)
        if "logs" in signals:
            for name in OURS:
                logging.getLogger(name).addHandler(handler)

    def trace_statements(self, engines: Iterable[AsyncEngine]) -> None:
        """Create a span for each statement and each new connection of engines."""
        if self._traces:
            instrumentor = SQLAlchemyInstrumentor()
            if instrumentor.is_instrumented_by_opentelemetry:  # the engines of a lifespan before this one
                instrumentor.uninstrument()
            # It declares SQLAlchemy < 2.1. Its metrics are those of SQLAlchemy's own pool, which is not in use.
            instrumentor.instrument(
                skip_dep_check=True,
                engines=[engine.sync_engine for engine in engines],
                meter_provider=metrics.NoOpMeterProvider(),
            )

    def flush(self) -> None:
        """Export what is left, for at most `FLUSH_TIMEOUT`. The threads of a collector that hangs end with the process.

        `force_flush` has a timeout too, which the SDK ignores.
        """
        deadline = time.monotonic() + FLUSH_TIMEOUT
        threads = [Thread(target=provider.force_flush, daemon=True) for provider in self._providers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))


class RedactingSpanProcessor(BatchSpanProcessor):
    """Exports spans in batches, without values that a client has sent or that a database repeats."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended."""
        super().on_end(without_values(span))


def without_values(span: ReadableSpan) -> ReadableSpan:
    """Return a span without the values of its query, and without the messages and tracebacks of exceptions."""
    found = span.attributes or {}
    state = span.context.trace_state or (span.parent and span.parent.trace_state)
    if QUERY not in found and not span.status.description and not span.events and not state:
        return span
    attributes = dict(found)
    query = attributes.get(QUERY)
    if query is not None:
        attributes[QUERY] = urlencode([(name, "REDACTED") for name, _ in parse_qsl(str(query), keep_blank_values=True)])
    return ReadableSpan(
        name=span.name,
        context=without_state(span.context),
        parent=without_state(span.parent) if span.parent else None,
        resource=span.resource,
        attributes=attributes,
        events=[without_message(event) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def without_state(context: SpanContext) -> SpanContext:
    """Return the ids of a span without its trace state, which is a header of the client."""
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


def without_message(event: Event) -> Event:
    """Return an event without the message and the traceback of its exception, if it is one."""
    attributes = {
        name: value
        for name, value in (event.attributes or {}).items()
        if name not in {"exception.message", "exception.stacktrace"}
    }
    return Event(event.name, attributes, event.timestamp)


class LogRecordHandler(logging.Handler):
    """Exports log lines as log records, with the id of their request, and the trace and span that they belong to.

    The SDK has a deprecated handler, and a package another: both export the whole text of exceptions.
    """

    def __init__(self, provider: Any) -> None:
        """Take the provider that exports the records."""
        super().__init__()
        self.addFilter(RequestFilter())
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record: its time, its level, its message, and the fields that were logged beside it."""
        fields = {name: value for name, value in vars(record).items() if name not in RESERVED and value is not None}
        try:
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                severity_number=SeverityNumber(min(record.levelno // 10, 5) * 4 + 1),
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes=fields,
            )
        except Exception:  # noqa: BLE001 - as each handler of logging
            self.handleError(record)
