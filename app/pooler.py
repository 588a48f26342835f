"""A pooler between this service and Postgres, such as PgBouncer in transaction mode.

After each transaction a client may get another connection of the server. So it can rely on nothing that outlives a
transaction: no setting, and no prepared statement, because another client may have prepared its own under that name.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import asyncpg

from app.drivers import KeepAliveConnection

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

# What holds for a server in each role that `target_session_attrs` names. With one host a preference changes nothing.
ROLES: Mapping[object, str] = {
    "any": "true",
    "prefer-standby": "true",
    "primary": "NOT pg_is_in_recovery()",
    "read-only": "current_setting('transaction_read_only') = 'on'",
    "read-write": "current_setting('transaction_read_only') = 'off'",
    "standby": "pg_is_in_recovery()",
}


async def connect_to_server(dsn: str, **options: Any) -> asyncpg.Connection:
    """Connect to Postgres itself, with the options of `asyncpg.connect`. Raise an error if it is a pooler.

    A pooler tells each client a process id of its own invention, because many of them share a process of the server.
    The query that compares it is in the simple protocol, where nothing is prepared.
    """
    try:
        connection: asyncpg.Connection = await asyncpg.connect(dsn, connection_class=KeepAliveConnection, **options)
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" in str(error):  # PgBouncer does not take `options`, unless it is told to ignore them
            raise asyncpg.ClientCannotConnectError(POOLER) from error
        raise
    with ExitStack() as on_error:
        on_error.callback(connection.terminate)
        if await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {connection.get_server_pid()}") != "SELECT 1":
            raise asyncpg.ClientCannotConnectError(POOLER)
        on_error.pop_all()
    return connection


class PoolerConnection(KeepAliveConnection):
    """A connection to a pooler. A transaction begins by setting its limits, and no statement runs outside of one."""

    set_limits = ""

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """Execute a statement. One that begins a transaction also sets the limits, in the same round trip."""
        if query.startswith("BEGIN"):
            query += self.set_limits
        status: str = await super().execute(query, *arguments, **options)
        return status

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement, for this transaction."""
        self._ensure_transaction()
        return await super().prepare(query, **options)

    async def executemany(self, command: str, args: Any, **options: Any) -> None:
        """Execute a statement for each of the arguments, in this transaction."""
        self._ensure_transaction()
        await super().executemany(command, args, **options)

    def _ensure_transaction(self) -> None:
        if not self.is_in_transaction():
            raise asyncpg.InterfaceError(NO_TRANSACTION)


async def connect_to_pooler(limits: Mapping[str, object], role: object, dsn: str, **options: Any) -> PoolerConnection:
    """Connect to a pooler in front of a server in a role, with the options of `asyncpg.connect`.

    asyncpg would ask for the role outside of a transaction, with a statement that it has prepared.

    Args:
        limits: the settings of each transaction.
        role: a value of `target_session_attrs`.
        dsn: the URL, without that parameter.
        options: of `asyncpg.connect`.

    Raises:
        PostgresError: no transaction can be begun, as in PgBouncer's statement mode.
        TargetServerAttributeNotMatched: the server has another role.
    """
    connection: PoolerConnection = await asyncpg.connect(dsn, connection_class=PoolerConnection, **options)
    connection.set_limits = "".join(f" SET LOCAL {name} = {value};" for name, value in limits.items())
    with ExitStack() as on_error:
        on_error.callback(connection.terminate)
        await connection.execute("BEGIN;")
        status = await connection.execute(f"SELECT 1 WHERE {ROLES[role]}")
        await connection.execute("COMMIT")
        if status != "SELECT 1":
            raise asyncpg.TargetServerAttributeNotMatched(f"the server behind the pooler is not {role}")
        on_error.pop_all()
    return connection
