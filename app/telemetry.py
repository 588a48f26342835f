"""Telemetry: traces, metrics and logs, exported by OTLP where the standard variables of OpenTelemetry name a collector.

FastAPI creates the spans and metrics of requests by itself, and this module the metrics of the pools and of the schema.
All of that costs nothing until `otlp.py` sets a provider, which needs the extra `telemetry`.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from app.logs import describe_error
from app.pool import ConnectionPool
from app.schema import Schema
from app.slots import POOL_NAME, PoolUsage

log = logging.getLogger(__name__)

# Its own setup waits at the end for a collector that does not answer, and its log records contain exception messages.
FASTAPI_TELEMETRY: TelemetryConfig = {"auto_configure": False, "logs": False}

# What the SDK takes for a header. It logs any other, with its value.
HEADER = re.compile(r"[!#-'*+.0-9A-Z^-z|~-]+[ \t]*=[ \t]*[ !#-+\-.-:<-\[\]-~]*")
SIGNALS = ("traces", "metrics", "logs")

_observed: list[tuple[Collection[ConnectionPool], Schema]] = []  # of each lifespan that runs in this process


@contextmanager
def export_telemetry(service: str, pools: Collection[ConnectionPool], schema: Schema) -> Iterator[None]:
    """For a block, export telemetry if the environment asks for it. What prevents that is logged, and nothing else.

    Args:
        service: its name, unless the environment has one.
        pools: their statements are traced, and their connections counted.
        schema: its revision is exported.
    """
    exporter = None
    try:
        if signals := read_signals():
            from app.otlp import start_exporter  # noqa: PLC0415 - not installed without the extra

            exporter = start_exporter(service, signals)
            exporter.trace_statements({pool.engine for pool in pools})
    except ImportError as error:
        log.warning("No telemetry is exported: install the packages of the extra 'telemetry' (%s).", error)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with telemetry, the service is needed
        log.warning("No telemetry is exported: %s", describe_error(error))
    observed = (pools, schema)
    _observed.append(observed)
    try:
        yield
    finally:
        if exporter:
            exporter.flush()
        _observed.remove(observed)


def read_signals() -> frozenset[str]:
    """Return which signals the environment asks for: those that have an endpoint, and are not turned off.

    Raises:
        ValueError: it asks for what is not supported.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(signal for signal in SIGNALS if _is_requested(signal.upper()))


def _is_requested(signal: str) -> bool:
    endpoint = _read(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = _read(f"OTEL_{signal}_EXPORTER") or "otlp"
    if not endpoint or exporter == "none":
        return False
    if exporter != "otlp":
        raise ValueError(f"OTEL_{signal}_EXPORTER can be otlp or none.")
    protocol = _read(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {"", "http/protobuf"}:
        raise ValueError("OTEL_EXPORTER_OTLP_PROTOCOL can be http/protobuf, which collectors accept on port 4318.")
    headers = _read(f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    if not all(HEADER.fullmatch(header.strip()) for header in headers.split(",") if header.strip()):
        raise ValueError(
            "OTEL_EXPORTER_OTLP_HEADERS has to be a list such as name=value,other=value, without quotes."
            " In a value write , as %2C, ; as %3B and \\ as %5C."
        )
    if urlsplit(endpoint).scheme not in {"http", "https"}:
        raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT has to be a URL such as http://localhost:4318.")
    return True


def _read(*names: str) -> str:
    """Read the first of several environment variables that is not empty."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def trace_request(request_id: str) -> list[tuple[bytes, bytes]]:
    """Put the id of the current request on its span, and return the header that tells the client its trace.

    If it is not traced, there is no such header.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return []
    span.set_attribute("http.response.header.x-request-id", [request_id])
    context = span.get_span_context()
    ids = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return [(b"traceresponse", ids.encode())]


def _observe_pools(*values: tuple[Callable[[PoolUsage], int], dict[str, str]]) -> metrics.CallbackT:
    """Return what observes values of each pool, each with attributes of its own."""

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for pools, _schema in tuple(_observed):
            for usage in [pool.usage for pool in pools]:
                for read, attributes in values:
                    yield Observation(read(usage), {POOL_NAME: usage.name, **attributes})

    return observe


def _observe_schema(_: CallbackOptions) -> Iterator[Observation]:
    for _pools, schema in tuple(_observed):
        revision = ", ".join(sorted(schema.has)) or "none"
        yield Observation(int(schema.is_current), {"revision": revision, "needs": schema.needs or "none"})


# The names are those of the semantic conventions, where these have one.
meter = metrics.get_meter("app")
meter.create_observable_up_down_counter(
    "db.client.connection.count",
    [
        _observe_pools(
            (lambda pool: pool.idle, {"db.client.connection.state": "idle"}),
            (lambda pool: pool.used, {"db.client.connection.state": "used"}),
        )
    ],
    unit="{connection}",
    description="The open connections, by state.",
)
meter.create_observable_up_down_counter(
    "db.client.connection.max",
    [_observe_pools((lambda pool: pool.size, {}))],
    unit="{connection}",
    description="How many connections the pool may open.",
)
meter.create_observable_up_down_counter(
    "db.client.connection.pending_requests",
    [_observe_pools((lambda pool: pool.waiting, {}))],
    unit="{request}",
    description="The requests that wait for a connection.",
)
meter.create_observable_gauge(
    "schema.current",
    [_observe_schema],
    description="1 if the database was at the revision that this release needs, or at a later one, when last asked.",
)
