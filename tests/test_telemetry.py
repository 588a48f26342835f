"""Telemetry is exported if the environment asks for it, and never keeps the service from its work."""

import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from sqlalchemy import URL

from app.telemetry import SIGNALS, read_signals
from tests.support.app_client import running
from tests.support.log_messages import messages_of
from tests.support.processes import ROOT, render_url, run

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
SERVE = """
import asyncio, logging, sys
from app.main import app
async def main():
    async with app.router.lifespan_context(app):
        print(*sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk")), sep="\\n")
asyncio.run(main())
"""
CONFIGURE = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
theirs = TracerProvider()
trace.set_tracer_provider(theirs)
"""


@pytest.fixture
def url(sqlite_url: URL) -> URL:
    """A database of one kind: nothing here depends on it."""
    return sqlite_url


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "signals"),
    [
        ({}, set()),
        (ENDPOINT, {*SIGNALS}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, set()),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, set()),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, {"metrics", "logs"}),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, {*SIGNALS}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://example.org/v1/traces"}, {"traces"}),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization = Basic a2V5==, x-key=%22a%22,"}, {*SIGNALS}),
        (ENDPOINT | dict.fromkeys((f"OTEL_{signal.upper()}_EXPORTER" for signal in SIGNALS), "none"), set()),
    ],
)
def test_a_signal_is_exported_if_it_has_an_endpoint_and_is_not_turned_off(
    environment: dict[str, str], signals: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    assert read_signals() == signals


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL can be http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL can be http/protobuf"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER can be otlp or none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "user:password@collector:4318"}, "has to be a URL such as"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "Authorization: Bearer password="}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": '"api-key=password"'}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": 'api-key="password"'}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=password;x"}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=pass\\word, other=x"}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api/key=password"}, "has to be a list such as name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=passwordé"}, "has to be a list such as name=value"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "-5"}, "ValueError"),
    ],
)
async def test_what_is_not_supported_is_one_warning_and_the_service_starts(
    environment: dict[str, str],
    sentence: str,
    app: FastAPI,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_environment(monkeypatch, ENDPOINT | environment)
    async with running(app) as client:
        assert (await client.get("/heroes/")).status_code == 200
    (warning,) = messages_of(caplog, "app.telemetry")
    assert warning.startswith("No telemetry is exported: ")
    assert sentence in warning
    assert "password" not in caplog.text
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)  # nothing is half set up


async def test_without_the_extra_the_service_starts_with_one_warning(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_environment(monkeypatch, ENDPOINT)
    monkeypatch.delitem(sys.modules, "app.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with running(app) as client:
        assert (await client.get("/heroes/")).status_code == 200
    (warning,) = messages_of(caplog, "app.telemetry")
    assert "install the packages of the extra 'telemetry'" in warning


def test_without_an_endpoint_nothing_of_the_sdk_is_imported(sqlite_url: URL) -> None:
    served = run(sys.executable, "-c", SERVE, cwd=ROOT, changes={"DATABASE_URL": render_url(sqlite_url)})
    assert (served.returncode, served.stdout.strip()) == (0, "")


@pytest.mark.slow
def test_a_provider_that_something_else_has_set_stays(sqlite_url: URL, tmp_path: Path) -> None:
    script = CONFIGURE + SERVE + "assert trace.get_tracer_provider() is theirs\n"
    changes = {"DATABASE_URL": render_url(sqlite_url), "PYTHONPATH": str(ROOT), **ENDPOINT}
    served = run(sys.executable, "-c", script, cwd=tmp_path, changes=changes)
    assert served.returncode == 0, served.stdout
    assert "No telemetry is exported: RuntimeError: something else has configured OpenTelemetry" in served.stdout
