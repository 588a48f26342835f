"""Logging: one format and one set of levels for the service, its migrations and uvicorn, unless it is configured."""

import json
import logging
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from app import log_config
from app.settings import Settings
from tests.support.alembic_commands import alembic, migrate
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until
from tests.support.processes import ROOT, TIMEOUT, free_port, render_url, run, server
from tests.support.service import Service, running_service

SECRET = "tvqzxkwj"
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
LINE = re.compile(rf"^{TIME} (DEBUG|INFO|WARNING|ERROR) [a-z_.]+( \[\S+\])?: \S")

LEVEL_SENTENCE = (
    "write one of DEBUG, INFO, WARNING, ERROR, CRITICAL, and after it those of single loggers, whose names begin with"
    " alembic, app, migrations, uvicorn: INFO,app.sql=DEBUG."
)


def read_json(text: str) -> list[dict[str, Any]]:
    """Parse each line."""
    return [json.loads(line) for line in text.splitlines()]


def get(service: Service, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{service.port}{path}", headers=headers)


@pytest.fixture
def empty_file(sqlite_databases: Databases) -> URL:
    """A SQLite file without tables."""
    return sqlite_databases.empty()


@pytest.fixture(scope="module")
def logged(sqlite_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of a service in Tokyo, in JSON and at DEBUG, from its start over two requests with an id to its stop."""
    log = tmp_path_factory.mktemp("service") / "log"
    url = sqlite_databases.migrated()
    with running_service(url, log, LOG_FORMAT="json", LOG_LEVEL="DEBUG", TZ="Asia/Tokyo") as service:
        for name in ("one", "two"):
            assert get(service, "/heroes/", **{"X-Request-ID": name}).status_code == 200
    return read_json(log.read_text())


class TestFormat:
    @pytest.mark.slow
    def test_every_line_of_a_service_is_text_of_one_format(self, empty_file: URL, tmp_path: Path) -> None:
        with running_service(empty_file, tmp_path / "log") as service:
            assert get(service, "/heroes/", **{"X-Request-ID": "one"}).status_code == 503
        lines = (tmp_path / "log").read_text().splitlines()
        assert not [line for line in lines if not LINE.match(line)]
        assert " INFO uvicorn.error: Started server process [" in lines[0]
        assert " INFO uvicorn.error: Finished server process [" in lines[-1]
        assert [line for line in lines if " WARNING app.schema: " in line and "alembic upgrade head" in line]
        assert [line for line in lines if " INFO app.access [one]: " in line]

    def test_every_line_of_a_service_is_a_json_object(self, logged: list[dict[str, Any]]) -> None:
        assert all(re.fullmatch(TIME, record["time"]) for record in logged)
        assert logged[0]["message"].startswith("Started server process [")
        assert logged[-1]["message"].startswith("Finished server process [")
        assert {(record["level"], record["logger"]) for record in logged} == {
            ("DEBUG", "app.access"),  # of the probe
            ("INFO", "app.access"),
            ("DEBUG", "app.sql"),
            ("INFO", "uvicorn.error"),
        }
        assert not any("color_message" in record for record in logged)

    def test_the_times_are_in_utc(self, logged: list[dict[str, Any]]) -> None:
        for record in logged:
            assert abs(datetime.now(UTC) - datetime.fromisoformat(record["time"])) < timedelta(hours=1)

    def test_the_lines_of_a_request_have_its_id_and_others_have_none(self, logged: list[dict[str, Any]]) -> None:
        for name in ("one", "two"):
            loggers = [record["logger"] for record in logged if record.get("request_id") == name]
            assert loggers == ["app.sql", "app.access"]
        assert not any("request_id" in record for record in logged if record["logger"].startswith("uvicorn"))

    @pytest.mark.slow
    def test_migrations_log_in_the_format_of_the_service(self, empty_url: URL) -> None:
        lines = alembic(empty_url, "upgrade", "head").splitlines()
        assert any(" INFO alembic.runtime.migration: Running upgrade  -> " in line for line in lines)
        assert all(LINE.match(line) for line in lines)

    def test_every_line_of_an_upgrade_is_a_json_object(self, empty_file: URL) -> None:
        records = read_json(alembic(empty_file, "upgrade", "head", LOG_FORMAT="json"))
        assert {"alembic.runtime.migration", "migrations.env"} & {record["logger"] for record in records}
        assert any(record["message"].startswith("Running upgrade  -> ") for record in records)

    @pytest.mark.slow
    def test_the_lines_of_a_traced_request_have_its_trace(self, sqlite_url: URL, tmp_path: Path) -> None:
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        with running_service(
            sqlite_url,
            tmp_path / "log",
            LOG_FORMAT="json",
            FASTAPI_OTEL_AUTO_CONFIGURE="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        ) as service:
            get(service, "/heroes/", traceparent=f"00-{trace}-00f067aa0ba902b7-01")
            service.wait_for_log(trace)
        (record,) = [record for record in read_json((tmp_path / "log").read_text()) if record.get("trace_id") == trace]
        assert record["logger"] == "app.access"
        assert re.fullmatch("[0-9a-f]{16}", record["span_id"])

    def test_a_line_with_an_exception_where_there_is_none_is_a_line(self) -> None:
        record = logging.LogRecord("app", logging.ERROR, "x.py", 1, "said", None, (None, None, None))
        assert log_config.TextFormatter().format(record).endswith("ERROR app: said")

    def test_warnings_and_errors_that_nothing_handles_are_lines_without_values(self) -> None:
        code = f"""
import asyncio, warnings
from sqlalchemy.exc import IntegrityError
from app.log_config import install
install("json", {{"": "INFO"}})
warnings.warn("An old name.")
class Failing:
    def __del__(self):
        fail()
def fail():
    raise IntegrityError("INSERT", {{}}, Exception("{SECRET}"))
async def main():
    Failing()
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
asyncio.run(main())
"""
        result = run(sys.executable, "-c", code, changes={})
        records = read_json(result.stdout)
        assert [record["logger"] for record in records] == ["py.warnings", "app.log_config", "asyncio"]
        assert "An old name." in records[0]["message"]
        for record in records[1:]:
            assert record["exc_info"].startswith("IntegrityError Exception\n")
        assert SECRET not in result.stdout


class TestLevels:
    @pytest.mark.parametrize(
        ("level", "loggers"),
        [
            ("WARNING,app.access=INFO", {"app.access"}),
            ("info, app.sql=debug", {"uvicorn.error", "app.access", "app.sql"}),
        ],
    )
    @pytest.mark.slow
    def test_they_hold_for_the_service_and_for_uvicorn(
        self, sqlite_url: URL, tmp_path: Path, level: str, loggers: set[str]
    ) -> None:
        with running_service(sqlite_url, tmp_path / "log", LOG_FORMAT="json", LOG_LEVEL=level) as service:
            assert get(service, "/heroes/").status_code == 200
        assert {record["logger"] for record in read_json((tmp_path / "log").read_text())} == loggers

    @pytest.mark.slow
    def test_they_hold_for_migrations(self, empty_url: URL) -> None:
        assert alembic(empty_url, "upgrade", "head", LOG_LEVEL="WARNING") == ""

    @pytest.mark.slow
    def test_the_option_of_uvicorn_keeps_its_meaning(self, sqlite_url: URL, tmp_path: Path) -> None:
        with running_service(sqlite_url, tmp_path / "log", "--log-level", "warning") as service:
            assert get(service, "/heroes/").status_code == 200
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert " INFO app.access [" in line

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("LOG_FORMAT", "xml", "Input should be 'text' or 'json'."),
            *(
                ("LOG_LEVEL", value, LEVEL_SENTENCE)
                for value in ("loud", "", "10", "INFO,DEBUG", "app.sql=LOUD", "app.sql", "aiosqlite=DEBUG", "=DEBUG")
            ),
        ],
    )
    def test_others_are_refused_in_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as refused:
            Settings.from_environment()
        assert str(refused.value) == f"{name}: {sentence}"


class TestConfiguredLogging:
    def test_a_migration_leaves_the_loggers_of_its_process_unchanged(self, empty_file: URL) -> None:
        other = logging.getLogger("another_library")
        other.setLevel(logging.DEBUG)
        handlers, level = list(logging.root.handlers), logging.root.level
        migrate(empty_file)
        assert logging.root.handlers == handlers
        assert logging.root.level == level
        assert other.level == logging.DEBUG
        assert not any(
            logger.disabled for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)
        )

    @pytest.mark.parametrize(
        "command",
        [("uvicorn", "app.main:app"), ("uvicorn", "app.main:app", "--log-config", "{folder}/uvicorn.json")],
        ids=["by-default", "with-a-configuration"],
    )
    @pytest.mark.slow
    def test_a_request_has_one_line_however_uvicorn_is_started(
        self, sqlite_url: URL, tmp_path: Path, command: tuple[str, ...]
    ) -> None:
        formatter = {"()": "uvicorn.logging.DefaultFormatter", "fmt": "mine %(asctime)s %(message)s"}
        (tmp_path / "uvicorn.json").write_text(
            json.dumps(
                {
                    "version": 1,
                    "disable_existing_loggers": False,
                    "formatters": {"mine": formatter},
                    "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
                    "loggers": {
                        "uvicorn": {"handlers": ["mine"], "level": "INFO", "propagate": False},
                        "uvicorn.access": {"handlers": ["mine"], "level": "INFO", "propagate": False},
                    },
                }
            )
        )
        port, log = free_port(), tmp_path / "log"
        words = [word.format(folder=tmp_path) for word in command]
        changes = {"DATABASE_URL": render_url(sqlite_url)}
        with (
            log.open("wb") as output,
            server(*words, "--port", str(port), port=port, changes=changes, output=output) as client,
        ):
            assert client.post(f"/heroes/?q={SECRET}", json=DEADPOND).status_code == 200
            wait_until(lambda: "POST" in log.read_text())
        lines = log.read_text().splitlines()
        assert [line for line in lines if "POST" in line] == [line for line in lines if " INFO app.access [" in line]
        assert SECRET not in log.read_text()
        own = [line for line in lines if line.startswith("mine ")]
        assert bool(own) is ("--log-config" in command)

    @pytest.mark.slow
    def test_the_documented_configuration_is_json_in_the_parent_of_several_processes_too(
        self, sqlite_url: URL, tmp_path: Path
    ) -> None:
        options = ("--workers", "2", "--log-config", str(ROOT / "docs/logging.json"))
        with running_service(sqlite_url, tmp_path / "log", *options) as service:
            service.wait_for_log("Application startup complete")
            assert get(service, "/heroes/", **{"X-Request-ID": "one"}).status_code == 200
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(TIMEOUT)
        records = read_json((tmp_path / "log").read_text())
        assert any(record["message"].startswith("Started parent process") for record in records)
        assert [record["logger"] for record in records if record.get("request_id") == "one"] == ["app.access"]
