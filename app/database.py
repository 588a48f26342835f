"""The database: engines set up for what stands behind a URL."""

import logging
from collections.abc import Mapping
from typing import Any, Self

import asyncpg
from sqlalchemy import URL, BigInteger, Connection, Integer, String, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, ExecutionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlmodel import SQLModel

from app import sqlite
from app.urls import is_sqlite

# Postgres's own default names, so that a table made by create_all and one made by a migration are alike.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_label)s",
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}

# aiosqlite logs each statement with its parameters, which nothing else here does.
logging.getLogger("aiosqlite").setLevel(logging.INFO)

# 64 bits on both: SQLite's INTEGER is that wide already, and only a column of that name numbers its rows.
BigId = BigInteger().with_variant(Integer(), "sqlite")

# Text in the order of its code points on both, whatever the locale of the Postgres database is.
CodePoints = String().with_variant(String(collation="C"), "postgresql")

# On SQLite, a transaction that reads first and takes the lock later does not wait for it: it fails.
BEGIN = {"postgresql": "BEGIN", "sqlite": "BEGIN IMMEDIATE"}
# Postgres answers to the COMMIT of a transaction that has failed with a rollback, and no error. The other one errs.
COMMIT = {"postgresql": ("SET CONSTRAINTS ALL IMMEDIATE", "COMMIT"), "sqlite": ("COMMIT",)}

CONNECT_TIMEOUT = 5  # seconds
TRIES = 5  # of a statement: one migration after the other can come between its plan and its execution


class Database:
    """The ways of one process to the database. Nothing connects before it is used.

    - `writes` and `reads`: for sessions. Each statement is committed when it is done. On Postgres they are one engine;
      on SQLite the connections of `reads` can't write, and wait for no writer.
    - `probes`: one connection beside them, so that a health check never queues behind requests.
    """

    def __init__(self, url: URL, *, lock_timeout: float, statement_timeout: float, sqlite_synchronous: str) -> None:
        """Take the timeouts in seconds."""
        if is_sqlite(url):
            session: dict[str, object] = {"busy_timeout": int(lock_timeout * 1000)}
            writing = session | {"journal_mode": "WAL", "synchronous": sqlite_synchronous, "foreign_keys": "ON"}
            # Pages of 4 kB. A batch writes thousands of them: to copy each into the file at once takes a fifth longer.
            writing["wal_autocheckpoint"] = 10_000
            session |= {"query_only": "ON"}
        else:
            writing = session = {
                "lock_timeout": int(lock_timeout * 1000),
                "statement_timeout": int(statement_timeout * 1000),
            }
        # Sessions stay on their connections: the pool of sessions is the only one.
        self.writes = create_engine(url, writing, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.reads = self.writes
        if is_sqlite(url):
            self.reads = create_engine(url, session, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.probes = create_engine(url, session, pool_size=1, max_overflow=0, isolation_level="AUTOCOMMIT")

    async def __aenter__(self) -> Self:
        """Be used for the length of a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection for probes. Who has connected through the others closes what is his."""
        await self.probes.dispose()


def is_open(driver: Any) -> bool:
    """Tell whether a driver's connection is open, as far as the driver knows."""
    return driver.is_open if isinstance(driver, sqlite.Connection) else not driver.is_closed()


def in_transaction(driver: Any) -> bool:
    """Tell whether a driver's connection is in a transaction. The database is not asked."""
    if not is_open(driver):
        return False
    return bool(driver.in_transaction if isinstance(driver, sqlite.Connection) else driver.is_in_transaction())


def create_engine(url: URL, session: Mapping[str, object], **options: Any) -> AsyncEngine:
    """Build an engine whose every connection starts with the settings in `session`.

    Args:
        url: as `urls.parse_url` gives it.
        session: parameters of Postgres, or pragmas of SQLite.
        options: of SQLAlchemy's `create_async_engine`.
    """
    if is_sqlite(url):
        return _sqlite_engine(url, session, **options)
    return _postgres_engine(url, session, **options)


def _postgres_engine(url: URL, session: Mapping[str, object], **options: Any) -> AsyncEngine:
    parameters = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    # asyncpg has no channel binding: what a hosting company's URL asks of it can only be left out.
    parameters.pop("channel_binding", None)
    # As command line options, because there the last one counts: what the URL says overrides what we say.
    ours = [f"-c {name}={value}" for name, value in session.items()]
    parameters["options"] = " ".join([*ours, parameters.get("options", "")]).strip()
    # asyncpg reads the URL itself: it knows more of libpq's parameters than SQLAlchemy passes on.
    dsn = url.set(drivername="postgresql", query=parameters).render_as_string(hide_password=False)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"dsn": dsn, "timeout": CONNECT_TIMEOUT, "async_creator_fn": _connect},
        hide_parameters=True,
        **options,
    )
    event.listen(engine.sync_engine, "do_execute", _execute)
    return engine


def _execute(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool:
    """Execute a statement, and again if a migration has changed the columns under a prepared one.

    Postgres says so before it has done anything. In a transaction it is too late: that has failed as a whole.
    """
    for left in reversed(range(TRIES)):
        try:
            cursor.execute(statement, parameters)
        except AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError as error:
            if not left or in_transaction(context.root_connection.connection.driver_connection):
                raise
            context.handle_dbapi_exception(error)  # it forgets what was prepared, on each of the engine's connections
            context.pre_exec()
        else:
            break
    return True


async def _connect(**options: Any) -> asyncpg.Connection:
    """Connect, and let a server that isn't there, or isn't the one, fail as one that refuses: as a SQLAlchemyError."""
    try:
        return await asyncpg.connect(**options)
    except (OSError, asyncpg.TargetServerAttributeNotMatched) as error:
        raise asyncpg.CannotConnectNowError(str(error)) from error


def _sqlite_engine(url: URL, session: Mapping[str, object], **options: Any) -> AsyncEngine:
    autocommit = options.get("isolation_level") == "AUTOCOMMIT"
    engine = create_async_engine(
        url,
        # The driver shall begin no transactions: it leaves SELECT and DDL outside of them.
        connect_args={"isolation_level": None, "async_creator_fn": sqlite.Connection},
        hide_parameters=True,
        skip_autocommit_rollback=autocommit,
        **options,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for name, value in session.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    if not autocommit:

        @event.listens_for(engine.sync_engine, "begin")
        def begin_immediate(connection: Connection) -> None:
            connection.exec_driver_sql(BEGIN["sqlite"])

    return engine
