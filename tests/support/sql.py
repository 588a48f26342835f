"""Run SQL on a database past the service, from code that has no event loop of its own."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import asyncpg
from sqlalchemy import URL, Connection, inspect, text

from app.database import build_engine

# What the service expects behind a Postgres URL, unless a test passes the setting: `make test-pooler` sets it.
POOLER = os.environ.get("DATABASE_POOLER")


def run_in_transaction(url: URL, work: Callable[[Connection], Any]) -> Any:
    """Call a function with a connection in a transaction, commit, and return what the function returned."""

    async def connect_and_work() -> Any:
        engine = build_engine(url, {}, pooler=POOLER)
        async with engine.begin() as connection:
            return await connection.run_sync(work)

    return asyncio.run(connect_and_work())


def execute(url: URL, *statements: str) -> None:
    """Execute statements in one transaction."""
    run_in_transaction(url, lambda connection: [connection.execute(text(statement)) for statement in statements])


def fetch_value(url: URL, statement: str) -> Any:
    """Execute one statement in a transaction, and return the first value of its first row."""
    return run_in_transaction(url, lambda connection: connection.scalar(text(statement)))


def execute_autocommit(url: URL, statement: str) -> object:
    """Execute one statement on Postgres outside a transaction, and return the first value of its first row."""

    async def connect_and_execute() -> object:
        connection = await asyncpg.connect(render_dsn(url))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(connect_and_execute())


def render_dsn(url: URL) -> str:
    """Return the URL of a database on Postgres as asyncpg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def describe_schema(url: URL) -> dict[str, Any]:
    """Return what the catalogue says about the tables, regardless of the order of their columns."""

    def reflect(connection: Connection) -> dict[str, Any]:
        inspector = inspect(connection)
        return {
            table: {
                "columns": sorted(str(sorted(column.items(), key=str)) for column in inspector.get_columns(table)),
                "key": inspector.get_pk_constraint(table),
                "indexes": sorted(str(index) for index in inspector.get_indexes(table)),
            }
            for table in inspector.get_table_names()
        }

    schema: dict[str, Any] = run_in_transaction(url, reflect)
    return schema
