"""A pooler between this service and Postgres, such as PgBouncer in transaction mode.

After each transaction a client may get another connection of the server. So it can rely on nothing that outlives a
transaction: no setting, and no prepared statement, because another client may have prepared its own under that name.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from app.drivers import KeepAliveConnection

AUTOCOMMIT = "autocommit"  # key of `Connection.info`: whether a statement commits by itself

POOLER = (
    "this is a connection pooler, not Postgres itself: set DATABASE_POOLER=transaction for the service, and"
    " MIGRATION_DATABASE_URL to Postgres itself for alembic"
)
NO_TRANSACTION = (
    "Behind a pooler a statement needs a transaction, which sets its time limits: take AutocommitSessionDep, not"
    " isolation_level='AUTOCOMMIT'."
)

# Of SQLAlchemy's dialect and of asyncpg: a statement has no name, and is prepared again for each execution.
STATEMENT_OPTIONS: Mapping[str, Any] = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
    "statement_cache_size": 0,
}


async def connect_to_server(dsn: str, *, timeout: float, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109 - asyncpg's own
    """Connect to Postgres itself, with the options of `asyncpg.connect`.

    A pooler tells each client a process id of its own invention, because many of them share a process of the server.
    The query that compares it is in the simple protocol, where nothing is prepared.

    Raises:
        ClientCannotConnectError: it is a pooler.
    """
    try:
        connection: asyncpg.Connection = await asyncpg.connect(
            dsn, timeout=timeout, connection_class=KeepAliveConnection, **options
        )
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" in str(error):  # PgBouncer does not take `options`, unless it is told to ignore them
            raise asyncpg.ClientCannotConnectError(POOLER) from error
        raise
    try:
        is_same = f"SELECT 1 WHERE pg_backend_pid() = {connection.get_server_pid()}"
        status = await connection.execute(is_same, timeout=timeout)
    except BaseException:
        connection.terminate()
        raise
    if status != "SELECT 1":
        connection.terminate()
        raise asyncpg.ClientCannotConnectError(POOLER)
    return connection


class PoolerConnection(KeepAliveConnection):
    """A connection to a pooler. Each transaction begins by setting its time limits."""

    set_limits = ""

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """Execute a statement. One that begins a transaction also sets the limits, in the same round trip."""
        if query.startswith("BEGIN"):
            query += self.set_limits
        status: str = await super().execute(query, *arguments, **options)
        return status

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement, for this transaction.

        Raises:
            InterfaceError: no transaction is open.
        """
        if not self.is_in_transaction():
            raise asyncpg.InterfaceError(NO_TRANSACTION)
        return await super().prepare(query, **options)


async def connect_to_pooler(
    limits: Mapping[str, object],
    dsn: str,
    *,
    timeout: float,  # noqa: ASYNC109 - asyncpg's own
    **options: Any,
) -> PoolerConnection:
    """Connect to a pooler, with the options of `asyncpg.connect` and the limits of each transaction.

    Raises:
        PostgresError: no transaction can be begun, as in PgBouncer's statement mode.
    """
    connection: PoolerConnection = await asyncpg.connect(
        dsn, timeout=timeout, connection_class=PoolerConnection, **options
    )
    connection.set_limits = "".join(f" SET LOCAL {name} = {value};" for name, value in limits.items())
    try:
        async with asyncio.timeout(timeout), connection.transaction():
            pass
    except BaseException:
        connection.terminate()
        raise
    return connection


def commit_each_statement(engine: AsyncEngine) -> None:
    """Let AUTOCOMMIT be a transaction around each statement. One that fails is rolled back."""

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def commit(connection: Connection, *_: object) -> None:
        if is_autocommitting(connection):
            connection.connection.commit()

    @event.listens_for(engine.sync_engine, "handle_error")
    def roll_back(error: ExceptionContext) -> None:
        if error.connection is None or error.is_disconnect or not is_autocommitting(error.connection):
            return
        try:
            error.connection.connection.rollback()
        except Exception:  # noqa: BLE001 - whatever the driver raises, the first error is the one to report
            error.is_disconnect = True


def is_autocommitting(connection: Connection) -> bool:
    """Tell whether a statement commits by itself: not if the connection was given an isolation level of its own."""
    return bool(connection.info.get(AUTOCOMMIT)) and "isolation_level" not in connection.get_execution_options()
