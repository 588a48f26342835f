"""Drivers: what needs more of aiosqlite, asyncpg, SQLAlchemy and OpenTelemetry than their public API offers.

No other file uses a private name. Each one here says what it is for and what fails without it, and has a test in
tests/test_drivers.py that fails when an upgrade changes it. docs/upstream.md asks the projects for public ones.
"""

import asyncio
import socket
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from typing import Any, Self

import aiosqlite
import asyncpg

# The modules of logs, here and in `build_logger_provider`, have an underscore until OpenTelemetry calls that signal
# stable in Python. Without them no log line is exported; traces and metrics are.
from opentelemetry._logs import LoggerProvider, SeverityNumber
from sqlalchemy import Connection, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.ext.asyncio import AsyncEngine

# Undocumented: awaits from within the synchronous half of a session. Without it a session can't wait for its connection
# at its first statement, and would have to acquire it before the request is validated.
from sqlalchemy.util import await_only

__all__ = [
    "KeepAliveConnection",
    "SQLiteConnection",
    "SeverityNumber",
    "await_only",
    "before_response",
    "build_logger_provider",
    "busy_check",
    "retry_stale_statements",
]

# Options of TCP: seconds until the first question to an idle peer, between two questions, and how many; milliseconds
# that sent data may stay unacknowledged.
KEEPALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}

TRIES = 5  # of a statement: migrations can follow each other between its preparation and its execution


def before_response(scope: MutableMapping[str, Any], work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """Run a function after the handler of a request, and before its response is sent.

    The exit code of a dependency with `scope="function"` runs then, from the same stack. FastAPI keeps it in the scope,
    under an undocumented key. A dependency that is a generator costs 30 µs more, a tenth of a request. Without the key,
    `get_autocommit_session` and `get_read_session` have to be generators, like `get_session`.
    """
    stack: AsyncExitStack = scope["fastapi_function_astack"]
    stack.push_async_callback(work, *arguments)


def busy_check(connection: Connection) -> Callable[[], bool]:
    """Return what tells whether a statement runs on a connection of Postgres. On SQLite the next one waits for it.

    `_execute_mutex` is what SQLAlchemy's adapter holds meanwhile. Without it a task that outlives its request could
    leave a connection to the next one with a statement still running: an error for a request that has done nothing.
    """
    mutex = getattr(connection.connection.dbapi_connection, "_execute_mutex", None)
    return mutex.locked if mutex is not None else bool


def retry_stale_statements(engine: AsyncEngine) -> None:
    """Execute a statement again when a migration has changed the columns under its prepared form.

    Postgres refuses such a statement before it has done anything; within a transaction it is too late, since that has
    failed as a whole. `handle_dbapi_exception` lets SQLAlchemy forget what was prepared, and `pre_exec` prepares the
    statement again: both belong to its dialects. Without them the first requests after a migration get a 503.
    """

    @event.listens_for(engine.sync_engine, "do_execute")
    def execute(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool:
        for left in reversed(range(TRIES)):
            try:
                cursor.execute(statement, parameters)
            except AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError as error:
                driver = context.root_connection.connection.driver_connection
                if not left or driver is None or driver.is_in_transaction():
                    raise
                context.handle_dbapi_exception(error)
                context.pre_exec()
            else:
                break
        return True


class KeepAliveConnection(asyncpg.Connection):
    """A connection whose socket notices that the server is gone: after some 10 s, instead of 15 minutes.

    `connection_class` is asyncpg's own extension point, but the arguments that it gets are not documented. Without this
    a network that drops packets is noticed only by the statements that are not answered in time.
    """

    def __init__(self, protocol: Any, transport: asyncio.Transport, *arguments: Any) -> None:
        """Set the options of the socket, where the platform has them."""
        super().__init__(protocol, transport, *arguments)
        connected = transport.get_extra_info("socket")
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class SQLiteConnection(aiosqlite.Connection):
    """A connection that goes to its thread once for each statement, where aiosqlite goes four times.

    aiosqlite creates, executes, fetches from and closes a cursor in a trip each; `_execute` and `_conn` are its way to
    the thread and to sqlite3. `_thread` is made a daemon so that an open connection does not keep the process alive.
    """

    def __init__(self, database: str, **options: Any) -> None:
        """Take the arguments of `sqlite3.connect`. Awaiting the connection opens it."""
        super().__init__(partial(sqlite3.connect, database, **options), iter_chunk_size=64)
        self._thread.daemon = True

    def is_closed(self) -> bool:
        """Tell whether it is not open, as asyncpg's connection does."""
        return self._connection is None

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open, as asyncpg's connection does."""
        return self.in_transaction

    @property  # type: ignore[misc]  # read-only: SQLAlchemy sets no isolation level here
    def isolation_level(self) -> str | None:
        """None while no transaction is open: SQLAlchemy then has nothing to roll back, and makes no trip for it."""
        return "" if not self.is_closed() and self.in_transaction else None

    async def commit(self) -> None:
        """Commit, if a transaction is open."""
        if self.in_transaction:
            await super().commit()

    def cursor(self) -> "SQLiteCursor":  # type: ignore[override]  # SQLAlchemy takes any async context manager
        """Create a cursor. The thread hears of it when a statement is executed."""
        return SQLiteCursor(self)

    async def run(self, work: Callable[[sqlite3.Cursor], None]) -> None:
        """Run a function on a new sqlite3 cursor in the thread, and close the cursor."""

        def run_and_close() -> None:
            with closing(self._conn.cursor()) as cursor:
                work(cursor)

        await self._execute(run_and_close)  # type: ignore[no-untyped-call]  # aiosqlite has no types here


class SQLiteCursor:
    """The part of a cursor that SQLAlchemy uses: it executes a statement, and has all of its rows."""

    arraysize = 1

    def __init__(self, connection: SQLiteConnection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Sequence[Any] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        """Enter the block."""
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Self:
        """Execute a statement and fetch its rows."""
        return await self._run(lambda cursor: cursor.execute(statement, parameters))

    async def executemany(self, statement: str, parameters: Iterable[Sequence[Any] | Mapping[str, Any]]) -> Self:
        """Execute a statement with each of the parameter sets."""
        return await self._run(lambda cursor: cursor.executemany(statement, parameters))

    async def _run(self, execute: Callable[[sqlite3.Cursor], object]) -> Self:
        def execute_and_fetch(cursor: sqlite3.Cursor) -> None:
            execute(cursor)
            self._rows = deque(cursor.fetchall())
            self.description = cursor.description
            self.rowcount = cursor.rowcount
            self.lastrowid = cursor.lastrowid

        await self._connection.run(execute_and_fetch)
        return self

    async def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    async def fetchall(self) -> list[Any]:
        """Return the remaining rows."""
        return await self.fetchmany(len(self._rows))

    async def close(self) -> None:
        """Do nothing: the cursor in the thread is closed already."""


def build_logger_provider(resource: Any) -> LoggerProvider:
    """Create what exports log records to the collector that the environment names, and does not wait for it at exit.

    Raises:
        ImportError: the extra `telemetry` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415 - of the extra
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415

    provider = LoggerProvider(resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    return provider
