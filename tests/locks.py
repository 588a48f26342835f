"""The lock that every write needs, held by somebody else."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from sqlalchemy import URL, text

from app.database import create_engine
from app.urls import is_sqlite


@contextmanager
def writes_waiting(url: URL) -> Iterator[None]:
    """Hold the lock, so that whoever writes waits for the end of the block."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runner.run(stack.enter_async_context(locked(url)))
        try:
            yield
        finally:
            runner.run(stack.aclose())


@asynccontextmanager
async def locked(url: URL, table: str = "hero") -> AsyncIterator[None]:
    """Hold the lock, within an event loop."""
    engine = create_engine(url, {})
    async with engine.begin() as connection:  # on SQLite, that is the lock
        if not is_sqlite(url):
            await connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
        yield
    await engine.dispose()
