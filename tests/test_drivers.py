"""The private names that app/drivers.py uses are what they were when it was written.

Each private name that app/drivers.py lists has a test here that fails when an upgrade changes it.
"""

import asyncio
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry.sdk.resources import Resource
from sqlalchemy import URL, Connection, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.types import Message, Receive, Scope, Send

from app.database import Database, build_engine
from app.drivers import (
    KEEPALIVE,
    SeverityNumber,
    SQLiteConnection,
    await_only,
    before_response,
    build_logger_provider,
    busy_check,
)
from tests.support.otlp_receiver import otlp_receiver
from tests.support.relay import relay

ROWS = [(1, "one"), (2, None), (3, "três")]


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[SQLiteConnection]:
    """A connection to a new file."""
    connection = SQLiteConnection(str(tmp_path / "x.db"), isolation_level=None)
    async with connection:
        yield connection


async def test_a_statement_of_the_driver_takes_parameters_by_name(connection: SQLiteConnection) -> None:
    cursor = await connection.cursor().__aenter__()
    await cursor.execute("SELECT :first, :second", {"second": 2, "first": 1})
    assert await cursor.fetchall() == [(1, 2)]
    await cursor.execute("CREATE TABLE named (x)")
    await cursor.executemany("INSERT INTO named VALUES (:x)", [{"x": 1}, {"x": 2}])
    await cursor.execute("SELECT x FROM named")
    assert await cursor.fetchall() == [(1,), (2,)]


async def test_a_statement_is_one_trip_to_the_thread(
    connection: SQLiteConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = []
    to_thread: Any = aiosqlite.Connection._execute  # noqa: SLF001 - the way to the thread

    async def count(self: SQLiteConnection, *arguments: object) -> object:
        trips.append(arguments)
        return await to_thread(self, *arguments)

    monkeypatch.setattr(SQLiteConnection, "_execute", count)
    cursor = await connection.cursor().__aenter__()
    await cursor.execute("SELECT 1 AS one UNION ALL SELECT 2")
    assert cursor.description
    assert cursor.description[0][0] == "one"
    assert await cursor.fetchall() == [(1,), (2,)]
    await cursor.close()
    assert len(trips) == 1


async def test_rows_are_fetched_one_by_one_or_several(connection: SQLiteConnection) -> None:
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    assert cursor.description is None
    assert await cursor.fetchone() is None
    await cursor.executemany("INSERT INTO t VALUES (?, ?)", ROWS)
    assert cursor.rowcount == 3
    await cursor.execute("SELECT * FROM t ORDER BY id")
    assert [await cursor.fetchone(), *await cursor.fetchmany(), *await cursor.fetchall()] == ROWS
    assert await cursor.fetchall() == []
    await cursor.execute("INSERT INTO t (name) VALUES (?) RETURNING id", ["four"])
    assert await cursor.fetchall() == [(4,)]
    assert cursor.lastrowid == 4


async def test_a_statement_that_returns_rows_holds_no_lock_afterwards(
    connection: SQLiteConnection, tmp_path: Path
) -> None:
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    await cursor.execute("INSERT INTO t VALUES (1), (2) RETURNING id")
    with sqlite3.connect(tmp_path / "x.db", timeout=0) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (2,)
        other.execute("INSERT INTO t VALUES (3)")
    other.close()


async def test_an_error_reaches_the_caller_and_the_connection_can_be_used_again(connection: SQLiteConnection) -> None:
    cursor = connection.cursor()
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="nonsense"):
            await cursor.execute("nonsense")
    await cursor.execute("SELECT 1")
    assert await cursor.fetchall() == [(1,)]


async def test_a_connection_knows_whether_it_is_open(tmp_path: Path) -> None:
    connection = SQLiteConnection(str(tmp_path / "x.db"))
    assert connection.is_closed()
    await connection
    assert not connection.is_closed()
    await connection.close()
    assert connection.is_closed()
    with pytest.raises(ValueError, match="closed"):
        await connection.cursor().execute("SELECT 1")


async def test_an_open_connection_does_not_keep_the_process_alive(connection: SQLiteConnection) -> None:
    thread = connection._thread  # noqa: SLF001 - its canary
    assert thread.is_alive()
    assert thread.daemon
    assert thread in threading.enumerate()


async def test_aiosqlite_executes_functions_on_its_own_connection_in_its_thread(connection: SQLiteConnection) -> None:
    raw: Any = connection._conn  # noqa: SLF001 - its canary
    assert isinstance(raw, sqlite3.Connection)
    execute: Any = aiosqlite.Connection._execute  # noqa: SLF001 - its canary
    assert await execute(connection, threading.current_thread) is connection._thread  # noqa: SLF001 - its canary


async def test_the_isolation_level_is_none_outside_of_a_transaction(connection: SQLiteConnection) -> None:
    assert connection.isolation_level is None
    await connection.cursor().execute("BEGIN")
    assert connection.isolation_level == ""
    await connection.commit()
    assert connection.isolation_level is None


async def test_a_cancelled_statement_ends_before_its_connection_is_closed(tmp_path: Path) -> None:
    connection = SQLiteConnection(str(tmp_path / "x.db"), isolation_level=None)
    await connection
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (id INTEGER)")
    await cursor.execute("BEGIN IMMEDIATE")
    rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT i FROM n"
    inserting = asyncio.create_task(cursor.execute(f"INSERT INTO t {rows}"))
    await asyncio.sleep(0)
    inserting.cancel()
    await asyncio.wait({inserting})
    assert inserting.cancelled()
    await connection.close()
    other = sqlite3.connect(tmp_path / "x.db", timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
    other.close()


async def test_await_only_awaits_from_within_the_synchronous_half_of_a_connection(url: URL) -> None:
    async def sleep() -> int:
        await asyncio.sleep(0)
        return 7

    engine = build_engine(url, {})
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda _: await_only(sleep())) == 7
    await engine.dispose()


class TestBusy:
    async def test_a_connection_to_postgres_is_busy_while_a_statement_runs(self, postgres_url: URL) -> None:
        engine = build_engine(postgres_url, {})
        async with engine.connect() as connection:
            is_busy = busy_check(sync_half(connection))
            assert not is_busy()
            statement = asyncio.create_task(connection.execute(text("SELECT pg_sleep(0.1)")))
            await asyncio.sleep(0)
            assert is_busy()
            await statement
            assert not is_busy()
        await engine.dispose()

    async def test_a_connection_to_sqlite_is_never_busy(self, sqlite_url: URL) -> None:
        engine = build_engine(sqlite_url, {})
        async with engine.connect() as connection:
            assert busy_check(sync_half(connection))() is False
        await engine.dispose()


class TestStaleStatements:
    """A statement is executed again if a migration has changed the columns under its prepared form."""

    READ = text("SELECT * FROM hero")

    @pytest.fixture
    def database(self, postgres_url: URL) -> Database:
        """The engines of a migrated database."""
        return Database(postgres_url, lock_timeout=3, statement_timeout=7, sqlite_synchronous="FULL")

    async def migrate(self, database: Database, kind: str = "bigint") -> None:
        """Change a column from another connection."""
        async with database.writes.begin() as connection:
            await connection.execute(text(f"ALTER TABLE hero ALTER COLUMN age TYPE {kind}"))

    async def test_it_is_executed_again_in_autocommit(self, database: Database) -> None:
        async with database.reads.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            for kind in ("bigint", "integer", "bigint"):
                assert (await connection.execute(self.READ)).all() == []
                await self.migrate(database, kind)
            assert (await connection.execute(self.READ)).all() == []

    async def test_within_a_transaction_its_error_is_raised(self, database: Database) -> None:
        async with database.reads.connect() as connection:
            await connection.execute(self.READ)
            await connection.rollback()
            await connection.execute(text("SELECT 1"))  # the transaction has begun, and locked nothing
            await self.migrate(database)
            with pytest.raises(DBAPIError) as failure:
                await connection.execute(self.READ)
            assert isinstance(failure.value.orig, AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError)


def sync_half(connection: AsyncConnection) -> Connection:
    """Return the synchronous half of a connection."""
    sync = connection.sync_connection
    assert sync is not None
    return sync


async def test_work_before_the_response_runs_between_the_handler_and_the_response() -> None:
    steps = []
    app = FastAPI()

    async def note(step: str) -> None:
        steps.append(step)

    @app.get("/")
    async def handle(request: Request) -> None:
        before_response(request.scope, note, "work")
        steps.append("handler")

    async def note_messages(scope: Scope, receive: Receive, send: Send) -> None:
        async def note_and_send(message: Message) -> None:
            steps.append(message["type"])
            await send(message)

        await app(scope, receive, note_and_send)

    transport = httpx.ASGITransport(note_messages)
    async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
        await client.get("/")
    assert steps == ["handler", "work", "http.response.start", "http.response.body"]


async def test_a_connection_over_tcp_notices_that_the_server_is_gone(postgres_url: URL) -> None:
    with relay(postgres_url) as opened:
        engine = build_engine(opened.url, {})
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            connected = driver._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg offers no other way to look
            assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for name, value in KEEPALIVE.items():
                assert connected.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
        await engine.dispose()


def test_log_records_are_exported_by_a_provider_that_is_not_waited_for_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    with otlp_receiver() as receiver:
        monkeypatch.setattr("atexit.register", lambda work, *_: registered.append(work))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.settings["OTEL_EXPORTER_OTLP_ENDPOINT"])
        provider: Any = build_logger_provider(Resource({}))
        provider.get_logger("app").emit(severity_number=SeverityNumber.WARN, severity_text="WARNING", body="a message")
        provider.shutdown()
    assert [(record.logger, record.level, record.message) for record in receiver.records] == [
        ("app", "WARNING", "a message")
    ]
    assert not any(getattr(work, "__self__", None) is provider for work in registered)
