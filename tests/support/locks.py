"""Hold the lock that every write needs, from another connection, or wait for it and read."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from sqlalchemy import URL, Connection, text

from app.database import build_engine
from tests.support.sql import POOLER, run_in_transaction


def lock_writes(connection: Connection, table: str = "hero") -> None:
    """Take the lock, and hold it until the transaction ends."""
    if connection.dialect.name == "postgresql":  # on SQLite the transaction has it: it began as IMMEDIATE
        connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))


@contextmanager
def write_lock(url: URL) -> Iterator[None]:
    """Hold the lock, so that every write blocks until the end of the with statement."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runner.run(stack.enter_async_context(async_write_lock(url)))
        try:
            yield
        finally:
            runner.run(stack.aclose())


@asynccontextmanager
async def async_write_lock(url: URL, table: str = "hero") -> AsyncIterator[None]:
    """Hold the lock, from within an event loop."""
    engine = build_engine(url, {}, pooler=POOLER)
    async with engine.begin() as connection:
        await connection.run_sync(lock_writes, table)
        yield
    await engine.dispose()


@asynccontextmanager
async def async_row_lock(url: URL) -> AsyncIterator[None]:
    """Hold the lock of each row of heroes: on SQLite that is the lock that every write needs."""
    engine = build_engine(url, {})
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE hero SET age = age"))
        yield
    await engine.dispose()


def stored_names(url: URL) -> list[str]:
    """List the names of the stored heroes in their order, after the last write has ended."""

    def lock_and_read(connection: Connection) -> list[str]:
        lock_writes(connection)
        return sorted(connection.scalars(text("SELECT name FROM hero")))

    names: list[str] = run_in_transaction(url, lock_and_read)
    return names
