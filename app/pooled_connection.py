"""Pooled connections: kept open, and clean when a request gets them."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import in_transaction, is_open, set_autocommit
from app.drivers import busy_check

if TYPE_CHECKING:
    from app.pool import ConnectionPool


@dataclass(eq=False, slots=True)
class PooledConnection:
    """A connection that is kept open: SQLAlchemy's two halves of it, and the driver's own."""

    connection: AsyncConnection
    sync: Connection
    driver: Any
    options: object  # the execution options that it was opened with
    is_busy: Callable[[], bool]  # whether a statement still runs
    pool: "ConnectionPool | None" = None  # which it belongs to, if any
    autocommit: bool | None = None
    expired: bool = False  # whether it is to be closed when it is given back
    streamed: bool = False  # whether a result that is read while it is iterated may still read from it
    opened_at: float = field(default_factory=time.monotonic)

    def prepare(self, *, autocommit: bool) -> Connection:
        """Set the isolation level for a transaction of a session, and return the synchronous half."""
        if self.sync.get_transaction() is not None:
            self.sync.rollback()  # of AUTOCOMMIT, or of a failed COMMIT: none in the database, so it is no I/O
        if self.autocommit is not autocommit:
            set_autocommit(self.sync, autocommit=autocommit)
            self.autocommit = autocommit
        return self.sync

    @property
    def is_clean(self) -> bool:
        """Whether nothing of what it was used for is left: a transaction, a statement, or options of the connection."""
        return (
            not self.expired
            and not self.streamed
            and not self.sync.invalidated
            and self.sync.get_execution_options() is self.options
            and is_open(self.driver)
            and not in_transaction(self.driver)
            and not self.is_busy()
        )

    def release(self) -> None:
        """Give it back to its pool."""
        if self.pool:
            self.pool.release(self)

    async def close(self) -> None:
        """Close it, whatever state it is in. On one that is silent this takes seconds."""
        await self.connection.invalidate()
        await self.connection.close()


async def connect(engine: AsyncEngine) -> PooledConnection:
    """Open a connection.

    Raises:
        SQLAlchemyError: the database can't be connected to.
    """
    connection = await engine.connect()
    sync = connection.sync_connection
    assert sync is not None  # noqa: S101 - for the types: it has just been opened
    driver = (await connection.get_raw_connection()).driver_connection
    return PooledConnection(connection, sync, driver, sync.get_execution_options(), busy_check(sync))


async def close_all(connections: Iterable[PooledConnection]) -> None:
    """Close connections concurrently. One that can't be closed in order is closed none the less."""
    await asyncio.gather(*(pooled.close() for pooled in connections), return_exceptions=True)
