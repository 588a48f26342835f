"""The database: engines set up for what stands behind a URL."""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

import asyncpg
from sqlalchemy import URL, BigInteger, Connection, Integer, String, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from app.drivers import SQLiteConnection, retry_stale_statements
from app.hosts import Hosts
from app.pooler import STATEMENT_OPTIONS, PoolerConnection, connect_to_pooler, connect_to_server
from app.sql_log import log_statements
from app.urls import is_sqlite, split_hosts

# aiosqlite logs each statement with its parameters, which nothing else here does.
logging.getLogger("aiosqlite").setLevel(logging.INFO)

# 64 bits on both: SQLite's INTEGER is that wide already, and only a column of that name numbers its rows.
BigId = BigInteger().with_variant(Integer(), "sqlite")

# Text in the order of its code points on both, whatever the locale of the Postgres database is.
CodePoints = String().with_variant(String(collation="C"), "postgresql")

CONNECT_TIMEOUT = 5  # seconds, for all of the hosts of a URL together
REPLICA_CONNECT_TIMEOUT = 1  # seconds, after which the primary is read from

ANSWER_TIMEOUT = 2  # seconds to end a statement that has reached its limit, before the connection is given up
WAL_LIMIT = 64 * 2**20  # bytes that SQLite's write-ahead log keeps: half as much again as between two checkpoints

# What separates command line options of Postgres, or escapes it, and how it is escaped.
SEPARATOR, BACKSLASH = re.compile(r"[\s\\]"), r"\\\g<0>"

AUTOCOMMIT = "autocommit"  # key of `Connection.info`: whether a statement commits by itself
FAILED = "failed"  # key of `Connection.info`: whether a statement of the transaction has failed


class Database:
    """The engines of one process. None connects before it is used, and a `ConnectionPool` keeps its connections.

    On Postgres `writes` and `reads` are one engine. On SQLite the connections of `reads` can't write, and wait for no
    writer. `replica` is the engine of a streaming replica, if there is one.
    """

    def __init__(  # noqa: PLR0913 - by keyword, one for each setting
        self,
        url: URL,
        *,
        lock_timeout: float,
        statement_timeout: float,
        sqlite_synchronous: str,
        application_name: str = "",
        pooler: str | None = None,
        replica_url: URL | None = None,
    ) -> None:
        """Create the engines. The timeouts are in seconds. Postgres shows the name beside each connection."""
        self.replica: AsyncEngine | None = None
        self.has_several_hosts = False
        if is_sqlite(url):
            pragmas = {"busy_timeout": int(lock_timeout * 1000)}
            self.reads = build_engine(url, {**pragmas, "query_only": "ON"})
            writing = {
                **pragmas,
                "journal_mode": "WAL",
                "synchronous": sqlite_synchronous,
                "foreign_keys": "ON",
                # Pages of 4 kB. A batch writes thousands of them: checkpoints in the middle of it take a fifth longer.
                "wal_autocheckpoint": 10_000,
                "journal_size_limit": WAL_LIMIT,
            }
            self.writes = build_engine(url, writing)
            return
        session: dict[str, object] = {
            "lock_timeout": int(lock_timeout * 1000),
            "statement_timeout": int(statement_timeout * 1000),
        }
        if not pooler:
            session["application_name"] = application_name
        build = partial(build_engine, deadline=statement_timeout + ANSWER_TIMEOUT, pooler=pooler)
        self.reads = self.writes = build(url, session)
        self.has_several_hosts = len(split_hosts(url)) > 1
        if replica_url is not None:
            replica_url = replica_url.set(query={"target_session_attrs": "standby", **replica_url.query})
            self.replica = build(replica_url, session, connect_timeout=REPLICA_CONNECT_TIMEOUT)


def build_engine(
    url: URL,
    session: Mapping[str, object],
    *,
    deadline: float | None = None,
    pooler: str | None = None,
    connect_timeout: float = CONNECT_TIMEOUT,
    **options: Any,
) -> AsyncEngine:
    """Build an engine whose every connection starts with the settings in `session`.

    Args:
        url: as `urls.parse_url` gives it.
        session: parameters of Postgres, or pragmas of SQLite.
        deadline: the seconds after which a statement that Postgres has not answered costs its connection.
        pooler: the mode of the pooler that the URL leads to, if it is one: "transaction".
        connect_timeout: the seconds that all hosts of a Postgres URL together have to accept a connection.
        options: of SQLAlchemy's `create_async_engine`. By default the engine keeps no connections.
    """
    options.setdefault("poolclass", NullPool)
    if is_sqlite(url):
        engine = _sqlite_engine(url, session, **options)
    else:
        engine = _postgres_engine(url, session, deadline, pooler, connect_timeout, **options)
    log_statements(engine)
    return engine


def _postgres_engine(
    url: URL, session: Mapping[str, object], deadline: float | None, pooler: str | None, timeout: float, **options: Any
) -> AsyncEngine:
    parameters = {name: ",".join(values) for name, values in url.normalized_query.items()}
    # asyncpg has no channel binding: what a hosting company's URL asks of it can only be left out.
    parameters.pop("channel_binding", None)
    arguments: dict[str, Any] = {"command_timeout": deadline}
    connect: Callable[..., Awaitable[asyncpg.Connection]] = connect_to_server
    if len(split_hosts(url)) > 1:
        parameters.setdefault("target_session_attrs", "primary")
    if pooler:
        arguments |= STATEMENT_OPTIONS
        connect = partial(connect_to_pooler, session, parameters.pop("target_session_attrs", "any"))
    else:
        # As command line options, because there the last one counts: what the URL says overrides what we say.
        ours = [f"-c {name}={re.sub(SEPARATOR, BACKSLASH, str(value))}" for name, value in session.items()]
        parameters["options"] = " ".join([*ours, parameters.get("options", "")]).strip()
    # asyncpg reads the URL itself: it knows more of libpq's parameters than SQLAlchemy passes on.
    hosts = Hosts(url.set(drivername="postgresql", query=parameters), connect, timeout)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"async_creator_fn": hosts.connect, **arguments},
        hide_parameters=True,
        **options,
    )
    retry_stale_statements(engine)

    @event.listens_for(engine.sync_engine, "handle_error")
    def note_failure(error: ExceptionContext) -> Exception | None:
        if isinstance(error.original_exception, TimeoutError):
            error.is_disconnect = True  # whatever the server does now, nobody listens any more
            silence = TimeoutError("the database did not answer")
            return OperationalError(error.statement, None, silence, connection_invalidated=True)
        if isinstance(error.original_exception.__cause__, asyncpg.InternalClientError):
            error.is_disconnect = True  # what came is not the protocol: so it can be when PgBouncer loses a server
        # A dialect is initialized outside of a transaction, by a connection that has no `info`.
        if error.connection is not None and not error.connection.invalidated and error.connection.in_transaction():
            error.connection.info[FAILED] = True
        return None

    if pooler:
        _commit_each_statement(engine)  # after that, so that it doesn't wait for a connection that is silent
    return engine


def _commit_each_statement(engine: AsyncEngine) -> None:
    """Let AUTOCOMMIT be a transaction around each statement. One that fails is rolled back."""

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def commit(connection: Connection, *_: object) -> None:
        if _is_autocommitting(connection):
            connection.connection.commit()

    @event.listens_for(engine.sync_engine, "handle_error")
    def roll_back(error: ExceptionContext) -> None:
        if error.connection is None or error.is_disconnect or not _is_autocommitting(error.connection):
            return
        try:
            error.connection.connection.rollback()
        except Exception:  # noqa: BLE001 - whatever the driver raises, the first error is the one to report
            error.is_disconnect = True


def _is_autocommitting(connection: Connection) -> bool:
    """Tell whether a statement commits by itself: not if the connection was given an isolation level of its own."""
    has_own_level = "isolation_level" in connection.get_execution_options()
    return connection.in_transaction() and bool(connection.info.get(AUTOCOMMIT)) and not has_own_level


def _sqlite_engine(url: URL, session: Mapping[str, object], **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        url,
        # The driver begins no transactions: it would leave SELECT and DDL outside of them.
        connect_args={"isolation_level": None, "async_creator_fn": SQLiteConnection},
        hide_parameters=True,
        skip_autocommit_rollback=True,
        **options,
    )
    # A transaction that reads first and writes later does not wait for the write lock: it fails.
    begin = "BEGIN" if "query_only" in session else "BEGIN IMMEDIATE"

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for name, value in session.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        level = connection.get_execution_options().get("isolation_level", options.get("isolation_level"))
        if level != "AUTOCOMMIT" and not connection.info.get(AUTOCOMMIT):
            connection.exec_driver_sql(begin)

    return engine


def set_autocommit(connection: Connection, *, autocommit: bool) -> None:
    """Let each statement of a connection commit by itself, or its next transactions be real ones. It is no I/O.

    It has to be called outside of a transaction.
    """
    connection.info[AUTOCOMMIT] = autocommit
    # Not by isinstance, which is true of every connection of asyncpg.
    is_pooler = type(connection.connection.driver_connection) is PoolerConnection
    if connection.dialect.name == "postgresql" and not is_pooler:
        dbapi_connection = cast(DBAPIConnection, connection.connection.dbapi_connection)
        if autocommit:
            connection.dialect.set_isolation_level(dbapi_connection, "AUTOCOMMIT")
        else:
            connection.dialect.reset_isolation_level(dbapi_connection)


def raise_if_failed(connection: Connection) -> None:
    """Raise if the open transaction has failed: Postgres would answer its COMMIT with a rollback, and no error."""
    if connection.info.pop(FAILED, False):
        connection.exec_driver_sql("SELECT 1")
