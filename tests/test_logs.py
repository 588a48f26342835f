"""What the log says of errors: no values, and of those that repeat their number."""

import asyncio
import logging
from typing import Any
from unittest.mock import AsyncMock

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from pydantic import BaseModel, ValidationError
from sqlalchemy import URL, text
from sqlalchemy.exc import StatementError

import app.logs
from app.database import build_engine
from app.logs import Repetitions, describe_error, describe_with_traceback
from app.main import create_app
from app.schema import Schema
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.locks import async_write_lock
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until_async
from tests.support.postgres_server import unreachable_url

SECRET = "tvqzxkwj"


async def error_of(url: URL, statement: str, parameters: dict[str, Any] | None = None) -> StatementError:
    """Return the error that a statement raises."""
    engine = build_engine(url, {})
    async with engine.connect() as connection:
        for setup in (
            "CREATE TABLE rows (id INTEGER PRIMARY KEY, name VARCHAR(9) UNIQUE, age INTEGER CHECK (age > 0))",
            f"INSERT INTO rows VALUES (1, '{SECRET}', 1)",
        ):
            await connection.execute(text(setup))
        with pytest.raises(StatementError) as raised:
            await connection.execute(text(statement), parameters)
    await engine.dispose()
    return raised.value


def assert_described_as(error: BaseException, expected: str) -> None:
    assert describe_error(error) == expected
    described = describe_with_traceback(error)
    assert described.startswith(f"{expected}\n")
    assert SECRET not in described


class TestDescriptions:
    @pytest.mark.parametrize(
        ("statement", "parameters", "described"),
        [
            (
                "INSERT INTO rows VALUES (2, :value, 1)",
                {"value": SECRET},
                'IntegrityError 23505: duplicate key value violates unique constraint "rows_name_key"',
            ),
            (
                "INSERT INTO rows VALUES (NULL, :value, 1)",
                {"value": SECRET},
                'IntegrityError 23502: null value in column "id" of relation "rows" violates not-null constraint',
            ),
            (
                "INSERT INTO rows VALUES (2, :value, -1)",
                {"value": f"{SECRET}x"},
                'IntegrityError 23514: new row for relation "rows" violates check constraint "rows_age_check"',
            ),
            ("INSERT INTO rows VALUES (2, :value, 1)", {"value": SECRET * 9}, "DBAPIError 22001"),
            ("SELECT CAST(CAST(:value AS TEXT) AS INTEGER)", {"value": SECRET}, "DBAPIError 22P02"),
            ("SELECT CAST(:value AS INTEGER)", {"value": SECRET}, "DBAPIError 22000"),
            ("SELECT CAST(:value AS UUID)", {"value": SECRET}, "DBAPIError 22000"),
            (f"DO $$ BEGIN RAISE EXCEPTION '{SECRET}'; END $$", None, "DBAPIError P0001"),
            ("SELECT :value FROM rows", {"another": SECRET}, "StatementError InvalidRequestError"),
            (
                "SELECT * FROM nowhere WHERE name = :value",
                {"value": SECRET},
                'ProgrammingError 42P01: relation "nowhere" does not exist',
            ),
        ],
    )
    async def test_an_error_of_postgres_is_described_without_values(
        self, postgres_url: URL, statement: str, parameters: dict[str, Any] | None, described: str
    ) -> None:
        assert_described_as(await error_of(postgres_url, statement, parameters), described)

    @pytest.mark.parametrize(
        ("statement", "parameters", "described"),
        [
            (
                "INSERT INTO rows VALUES (2, :value, 1)",
                {"value": SECRET},
                "IntegrityError SQLITE_CONSTRAINT_UNIQUE: UNIQUE constraint failed: rows.name",
            ),
            (
                "INSERT INTO hero (name, secret_name) VALUES (NULL, :value)",
                {"value": SECRET},
                "IntegrityError SQLITE_CONSTRAINT_NOTNULL: NOT NULL constraint failed: hero.name",
            ),
            (
                "INSERT INTO rows VALUES (2, :value, -1)",
                {"value": SECRET},
                "IntegrityError SQLITE_CONSTRAINT_CHECK: CHECK constraint failed: age > 0",
            ),
            (
                "SELECT * FROM nowhere WHERE name = :value",
                {"value": SECRET},
                "OperationalError SQLITE_ERROR: no such table: nowhere",
            ),
            ("SELECT :value", {"value": [SECRET]}, "ProgrammingError ProgrammingError"),
            ("SELECT :value FROM rows", {"another": SECRET}, "StatementError InvalidRequestError"),
        ],
    )
    async def test_an_error_of_sqlite_is_described_without_values(
        self, sqlite_url: URL, statement: str, parameters: dict[str, Any], described: str
    ) -> None:
        assert_described_as(await error_of(sqlite_url, statement, parameters), described)

    def test_a_validation_error_is_described_without_its_input(self) -> None:
        class Row(BaseModel):
            name: str
            age: int

        with pytest.raises(ValidationError) as raised:
            Row.model_validate({"name": [SECRET], "age": SECRET})
        described = (
            "name: Input should be a valid string;"
            " age: Input should be a valid integer, unable to parse string as an integer"
        )
        assert_described_as(raised.value, f"ValidationError: {described}")
        for kind in (RequestValidationError, ResponseValidationError):
            assert_described_as(kind(raised.value.errors(), body={"name": SECRET}), f"{kind.__name__}: {described}")

    @pytest.mark.parametrize(
        ("error", "described"),
        [
            (RuntimeError("This session has ended."), "RuntimeError: This session has ended."),
            (RuntimeError("first\nsecond\r\nthird"), "RuntimeError: first second third"),
            (RuntimeError(), "RuntimeError"),
            (KeyError("name"), "KeyError: 'name'"),
        ],
    )
    def test_any_other_error_is_described_by_its_message_in_one_line(self, error: Exception, described: str) -> None:
        assert describe_error(error) == described

    async def test_the_causes_of_an_error_are_described_without_values(self, url: URL) -> None:
        refused = await error_of(url, "INSERT INTO rows VALUES (2, :value, 1)", {"value": SECRET})
        with pytest.raises(RuntimeError) as raised:
            raise RuntimeError("The import failed.") from refused
        first, second, *_ = describe_with_traceback(raised.value).splitlines()
        assert first == "RuntimeError: The import failed."
        assert second.startswith("  caused by IntegrityError ")
        assert SECRET not in describe_with_traceback(raised.value)

    def test_a_suppressed_context_is_not_a_cause(self) -> None:
        error = RuntimeError("No such row.")
        error.__context__ = KeyError(SECRET)
        assert "caused by KeyError" in describe_with_traceback(error)
        error.__suppress_context__ = True
        assert "caused by" not in describe_with_traceback(error)

    def test_errors_that_cause_each_other_are_described_once(self) -> None:
        first, second = RuntimeError("first"), RuntimeError("second")
        first.__cause__, second.__cause__ = second, first
        assert describe_with_traceback(first).splitlines() == [
            "RuntimeError: first",
            "  caused by RuntimeError: second",
        ]

    def test_the_errors_of_a_group_are_described_with_their_tracebacks(self) -> None:
        def fail() -> None:
            raise KeyError("name")

        with pytest.raises(KeyError) as first:
            fail()
        described = describe_with_traceback(ExceptionGroup("two tasks failed", [first.value, ValueError("second")]))
        assert described.splitlines()[:3] == [
            "ExceptionGroup: two tasks failed (2 sub-exceptions)",
            "  with KeyError: 'name'",
            "  with ValueError: second",
        ]
        assert "in fail" in described

    def test_where_a_cause_was_raised_is_described_too(self) -> None:
        def fail() -> None:
            raise KeyError("name")

        with pytest.raises(KeyError) as cause:
            fail()
        error = RuntimeError("The import failed.")
        error.__cause__ = cause.value
        assert "in fail" in describe_with_traceback(error)


class TestRepetitions:
    @pytest.fixture(autouse=True)
    def short_interval(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(app.logs, "REPORT_INTERVAL", 0.5)
        caplog.set_level(logging.INFO, "app")

    async def test_an_outage_is_a_line_with_its_cause_then_counts_and_a_line_at_its_end(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(app.logs, "REPORT_INTERVAL", 1.5)  # on a busy machine rounds are some time apart
        monkeypatch.setattr(Schema, "require", AsyncMock())  # as if the schema had been current a moment ago
        url = unreachable_url()
        async with running(create_app(Settings(database_url=url))) as client:

            async def has_ended() -> bool:
                return any(message.startswith("None in") for message in messages_of(caplog, "app.errors"))

            for _ in range(5):
                responses = await asyncio.gather(*(client.get("/heroes/") for _ in range(20)))
                assert {response.status_code for response in responses} == {503}
                await asyncio.sleep(0.1)
            await wait_until_async(has_ended)
        first, *counts, end = messages_of(caplog, "app.errors")
        cause = "refused by the database: DBAPIError 08001: ConnectionRefusedError: "
        assert first.startswith("GET /heroes/: ")
        assert cause in first
        assert sum(int(count.partition(" more in 1.5 s: ")[0]) for count in counts) == 99
        assert len(counts) <= 5
        assert end.startswith(f"None in 1.5 s, after 99 more: {cause}")

    async def test_refused_requests_with_different_causes_have_a_line_each(
        self, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(Settings(database_url=url, lock_timeout=0.1, pool_size=1, queue_timeout=0.05))
        async with running(app) as client, async_write_lock(url):
            await asyncio.gather(*(client.post("/heroes/", json=DEADPOND) for _ in range(2)))
        lock, queue = sorted(messages_of(caplog, "app.errors"), key=lambda message: "Timed out" in message)
        assert "refused by the database: " in lock
        assert "Timed out waiting for a database connection." in queue

    async def test_a_schema_that_is_behind_is_one_line_and_counts(
        self, empty_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(create_app(Settings(database_url=empty_url))) as client:
            caplog.clear()

            async def has_counted() -> bool:
                return bool(messages_of(caplog, "app.errors"))

            for _ in range(10):
                await client.get("/heroes/")
            await wait_until_async(has_counted)
        assert messages_of(caplog, "app.errors")[0].startswith("9 more in 0.5 s: The database is at revision none")
        assert not messages_of(caplog, "app.schema")

    async def test_twenty_equal_unexpected_errors_have_three_tracebacks(
        self, app: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.get("/failing")
        async def fail() -> None:
            raise RuntimeError("No such row.")

        async def has_counted() -> bool:
            return "17 more in 0.5 s: GET /failing: unhandled RuntimeError at " in caplog.text

        async with running(app) as client:
            for _ in range(20):
                assert (await client.get("/failing")).status_code == 500
            await wait_until_async(has_counted)
        assert caplog.text.count("RuntimeError: No such row.") == 3

    async def test_an_event_that_does_not_repeat_is_not_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        repetitions = Repetitions(logging.getLogger("app.events"), limit=1)
        assert repetitions.should_log("once")
        await asyncio.sleep(1)  # two intervals
        assert not messages_of(caplog, "app.events")
        assert repetitions.should_log("once")

    def test_an_event_of_an_earlier_event_loop_is_not_counted_in_the_next_one(self) -> None:
        repetitions = Repetitions(logging.getLogger("app.events"), limit=1)

        async def happen() -> bool:
            return repetitions.should_log("twice")

        assert asyncio.run(happen())
        assert asyncio.run(happen())
