"""What a collector receives, and what one that does not answer costs."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL

from app.otlp import RedactingSpanProcessor
from tests.support.alembic_commands import HEAD
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.locks import write_lock
from tests.support.otlp_receiver import Receiver, Record, Span, otlp_receiver
from tests.support.polling import wait_until
from tests.support.processes import ROOT, TIMEOUT
from tests.support.service import running_service
from tests.support.sql import execute

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MARK = "tvqzxkwj"
SDK_TIMEOUT = 10  # seconds that the SDK would wait for a collector, for each signal


@dataclass
class Traced:
    """A service that exports to a receiver, and a client for it."""

    url: URL
    client: httpx.Client
    receiver: Receiver
    log: Path

    def span_of(self, response: httpx.Response) -> Span:
        """Wait for the server span of a response, which comes after those inside it."""
        found: list[Span] = []

        def is_received() -> bool:
            attributes = {"http.response.header.x-request-id": (response.headers["x-request-id"],)}
            found.extend(span for span in self.receiver.spans if attributes.items() <= span.attributes.items())
            return bool(found)

        wait_until(is_received)
        return found[0]

    def statements_of(self, response: httpx.Response) -> list[str]:
        """Return the statements of a response, in their order."""
        spans = self.descendants_of(self.span_of(response))
        return [str(span.attributes["db.statement"]) for span in spans if "db.statement" in span.attributes]

    def descendants_of(self, parent: Span) -> list[Span]:
        """Return the spans inside a span, in their order."""
        return [span for child in self.receiver.children(parent) for span in (child, *self.descendants_of(child))]

    def wait_for(self, metric: str, value: float, /, **attributes: str) -> None:
        """Wait until a metric has a value."""
        wait_until(
            lambda: self.receiver.value(metric, **attributes) == value,
            lambda: (metric, value, self.receiver.metrics.get(metric)),
        )


@pytest.fixture(scope="module")
def traced(postgres_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A service with one connection for writes, and room for two that wait for it.

    What is exported does not depend on the kind of database, but for the errors of a driver: the slow test has those.
    """
    url = postgres_databases.migrated()
    limits: dict[str, Any] = {"POOL_SIZE": "2", "QUEUE_SIZE": "2", "QUEUE_TIMEOUT": "2", "LOCK_TIMEOUT": "30"}
    limits["OTEL_PROPAGATORS"] = ""  # as Compose sets what has no value
    log = tmp_path_factory.mktemp("traced") / "log"
    with (
        otlp_receiver() as receiver,
        running_service(url, log, **limits, **receiver.settings) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=TIMEOUT) as client,
    ):
        yield Traced(url, client, receiver, log)
    postgres_databases.drop(url)


def test_a_request_is_a_span_that_contains_its_statement(traced: Traced) -> None:
    response = traced.client.get("/heroes/123")
    span = traced.span_of(response)
    assert span.is_server
    assert span.name == "GET /heroes/{hero_id}"
    assert span.attributes["http.response.status_code"] == 404
    (statement,) = traced.statements_of(response)
    assert "FROM hero" in statement
    inside = traced.descendants_of(span)
    assert all(span.started_at <= each.started_at <= each.ended_at <= span.ended_at for each in inside)


def test_the_trace_of_the_client_is_continued(traced: Traced) -> None:
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": f"vendor={MARK}"}
    response = traced.client.get("/heroes/", headers=sent)
    span = traced.span_of(response)
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert {each.trace_id for each in traced.descendants_of(span)} == {TRACE}
    assert response.headers["traceresponse"] == f"00-{TRACE}-{span.span_id}-01"
    assert not any(MARK.encode() in each for each in traced.receiver.requests)


def test_baggage_of_the_client_is_not_read(traced: Traced) -> None:
    traced.span_of(traced.client.get("/heroes/", headers={"baggage": f"{MARK} is no member, other"}))
    assert MARK not in traced.log.read_text()


def test_a_response_has_the_ids_of_the_trace_that_it_began(traced: Traced) -> None:
    response = traced.client.get("/heroes/")
    span = traced.span_of(response)
    assert not span.parent_id
    assert response.headers["traceresponse"].split("-")[1:3] == [span.trace_id, span.span_id]


def test_a_trace_that_the_client_does_not_sample_is_not_exported(traced: Traced) -> None:
    trace = "1" * 32
    response = traced.client.get("/heroes/", headers={"traceparent": f"00-{trace}-{PARENT}-00"})
    assert "traceresponse" not in response.headers
    traced.span_of(traced.client.get("/heroes/"))
    assert trace not in {span.trace_id for span in traced.receiver.spans}


def test_statements_are_exported_with_placeholders(traced: Traced) -> None:
    hero = {"name": MARK, "age": 123, "secret_name": MARK}
    key = {"Idempotency-Key": MARK}
    created = traced.client.post("/heroes/", json=hero, headers=key)
    batch = traced.client.post("/heroes/batch", json=[hero] * 3, headers={"Idempotency-Key": f"{MARK}2"})
    listed = traced.client.get(f"/heroes/?name={MARK}&min_age=122&limit=1&sort=-age&count=exact")
    following = traced.client.get(listed.links["next"]["url"])
    changed = traced.client.patch(created.headers["location"], json={"name": f"{MARK} again", "age": 122})
    exported = traced.client.get(f"/heroes/export?name={MARK}&max_age=123")
    responses = [created, batch, listed, following, changed, exported]
    assert {response.status_code for response in responses} == {200}
    statements = [statement for response in responses for statement in traced.statements_of(response)]
    assert len(statements) >= len(responses)
    assert any(statement.count("(") > 3 and "INSERT INTO hero " in statement for statement in statements)
    for statement in statements:
        assert MARK not in statement
        assert "122" not in statement
        assert "123" not in statement


def test_a_query_is_exported_without_its_values(traced: Traced) -> None:
    response = traced.client.get("/heroes/", params={"name": MARK, "min_age": 1, "unknown": MARK, "limit": 3})
    query = traced.span_of(response).attributes["url.query"]
    assert query == "name=REDACTED&min_age=REDACTED&unknown=REDACTED&limit=REDACTED"
    assert not any(MARK.encode() in sent for sent in traced.receiver.requests if b"/v1/traces" in sent)


def test_requests_that_wait_and_that_are_refused_are_counted(traced: Traced) -> None:
    def post() -> int:
        return traced.client.post("/heroes/", json=DEADPOND).status_code

    def send(number: int) -> list[Future[int]]:
        """Send one request that waits for the lock, and then some that wait for its connection."""
        first = clients.submit(post)
        traced.wait_for("db.client.connection.count", 1, name="writes", state="used")
        return [first, *(clients.submit(post) for _ in range(number))]

    assert post() == 200
    with ThreadPoolExecutor(4) as clients:
        with write_lock(traced.url):
            first, *waiting = send(2)
            traced.wait_for("db.client.connection.pending_requests", 2, name="writes")
            assert traced.receiver.value("db.client.connection.max", name="writes") == 1
            assert traced.receiver.value("db.client.connection.pending_requests", name="reads") == 0
            assert post() == 503
            assert [response.result() for response in waiting] == [503, 503]
        assert first.result() == 200
        traced.wait_for("requests.refused", 1, reason="queue_full")
        traced.wait_for("requests.refused", 2, reason="queue_timeout")
        traced.wait_for("db.client.connection.timeouts", 2, name="writes")
        with write_lock(traced.url):
            responses = send(1)
            traced.wait_for("db.client.connection.pending_requests", 1, name="writes")
        assert [response.result() for response in responses] == [200, 200]
    traced.wait_for("db.client.connection.wait_time", 1, name="writes")
    traced.wait_for("db.client.connection.count", 1, name="writes", state="idle")
    traced.wait_for("db.client.connection.count", 0, name="writes", state="used")


def test_requests_are_counted_by_route_and_status(traced: Traced) -> None:
    traced.client.get("/heroes/321")
    wait_until(lambda: traced.receiver.value("http.server.request.duration", route="/heroes/{hero_id}"))


def test_the_schema_is_a_metric(traced: Traced) -> None:
    traced.wait_for("schema.current", 1, revision=HEAD, needs=HEAD)


def test_the_documentation_lists_every_metric_of_a_service(traced: Traced) -> None:
    documented = (ROOT / "docs/telemetry.md").read_text()
    traced.wait_for("schema.current", 1)
    assert all(f"| `{name}`" in documented for name in traced.receiver.metrics)


def test_a_process_is_known_by_its_service_and_its_own_name(traced: Traced) -> None:
    wait_until(lambda: traced.receiver.resources)
    (resource,) = {json.dumps(resource) for resource in traced.receiver.resources}
    assert json.loads(resource)["service.name"] == "heroes-api"
    assert json.loads(resource)["service.instance.id"].startswith("heroes-api/")


@pytest.mark.slow
def test_a_log_line_has_the_ids_of_its_request_and_an_error_no_values(url: URL, tmp_path: Path) -> None:
    if url.drivername.startswith("postgresql"):
        execute(url, f"ALTER TABLE hero ADD CHECK (secret_name <> '{MARK}')")  # its message repeats the row
        code = 422
    else:
        execute(url, "CREATE UNIQUE INDEX one_secret ON hero (secret_name)")
        code = 409
    with (
        otlp_receiver() as receiver,
        running_service(url, tmp_path / "log", **receiver.settings) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client,
    ):
        traced = Traced(url, client, receiver, tmp_path / "log")
        responses = [client.post("/heroes/", json=DEADPOND | {"secret_name": MARK}) for _ in range(2)]
        assert responses[-1].status_code == code
        span = traced.span_of(responses[-1])
        (statement,) = (
            each for each in traced.descendants_of(span) if each.is_error and "db.statement" in each.attributes
        )
        assert not statement.message

        def records() -> dict[str, Record]:
            return {record.logger: record for record in receiver.records if record.trace_id == span.trace_id}

        wait_until(lambda: len(records()) == 2)
        record, access = records()["app.errors"], records()["app.access"]
        assert (record.level, record.severity) == ("WARNING", 13)
        assert "IntegrityError" in record.message
        assert (access.logger, access.attributes["route"], access.attributes["status"]) == (
            "app.access",
            "/heroes/",
            code,
        )
        for each in (record, access):
            assert each.attributes["request_id"] == responses[-1].headers["X-Request-ID"]
        assert {record.logger.partition(".")[0] for record in receiver.records} <= {"app", "uvicorn"}
        assert not any(MARK.encode() in sent for sent in receiver.requests)


def test_an_exported_exception_has_neither_message_nor_traceback() -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RedactingSpanProcessor(exported))
    with pytest.raises(ValueError, match=MARK), provider.get_tracer("test").start_as_current_span("connect"):
        raise ValueError(MARK)
    provider.shutdown()
    (span,) = exported.get_finished_spans()
    assert span.events[0].attributes
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert MARK not in span.to_json()


@pytest.mark.slow
def test_the_environment_names_the_service_and_turns_signals_off(sqlite_url: URL, tmp_path: Path) -> None:
    with otlp_receiver() as receiver:
        chosen = {"OTEL_SERVICE_NAME": "villains", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
        settings = receiver.settings | chosen | {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
        with running_service(sqlite_url, tmp_path / "log", **settings) as service:
            response = httpx.get(f"http://127.0.0.1:{service.port}/heroes/")
            wait_until(lambda: receiver.value("http.server.request.duration", route="/heroes/"))
        assert "traceresponse" not in response.headers
        assert {sent.partition(b"\n")[0] for sent in receiver.requests} == {b"/v1/metrics"}
        assert receiver.resources[0]["service.name"] == "villains"
        assert receiver.resources[0]["deployment.environment.name"] == "test"


@pytest.mark.slow
def test_what_is_left_at_the_end_is_exported(sqlite_url: URL, tmp_path: Path) -> None:
    never = {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
    with otlp_receiver() as receiver:
        with running_service(sqlite_url, tmp_path / "log", **receiver.settings | never) as service:
            httpx.get(f"http://127.0.0.1:{service.port}/heroes/")
            assert not receiver.spans
        assert receiver.span("GET /heroes/")
        assert receiver.value("http.server.request.duration", route="/heroes/")


@pytest.mark.parametrize(
    ("collector", "number"),
    [
        ("refuses", signal.SIGTERM),
        ("hangs", signal.SIGTERM),
        ("hangs", signal.SIGINT),  # Ctrl-C: Python runs what is registered for its exit, where the SDK would wait again
    ],
)
@pytest.mark.slow
def test_a_collector_that_does_not_answer_delays_no_request_and_no_shutdown(
    collector: str, number: signal.Signals, sqlite_url: URL, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # accepts, and never answers
        settings = Receiver(listener.getsockname()[1]).settings
        if collector == "refuses":
            listener.close()
        execute(sqlite_url, "CREATE UNIQUE INDEX one_secret ON hero (secret_name)")  # each request after it logs a line
        service = stack.enter_context(running_service(sqlite_url, tmp_path / "log", **settings))
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=SDK_TIMEOUT) as client:
            began_at = time.monotonic()
            statuses = [client.post("/heroes/", json=DEADPOND).status_code for _ in range(30)]
            assert time.monotonic() - began_at < SDK_TIMEOUT
        assert statuses == [200, *[409] * 29]
        began_at = time.monotonic()
        service.process.send_signal(number)
        service.process.wait(TIMEOUT)
        assert time.monotonic() - began_at < SDK_TIMEOUT
