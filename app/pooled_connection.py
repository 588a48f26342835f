"""Pooled connections: kept open, and clean when a request gets them."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import set_autocommit
from app.drivers import busy_check

if TYPE_CHECKING:
    from app.pool import ConnectionPool


@dataclass(eq=False, slots=True)
class PooledConnection:
    """A connection of a pool: SQLAlchemy's two halves of it, and the driver's own."""

    pool: "ConnectionPool"
    connection: AsyncConnection
    sync: Connection
    driver: Any
    options: object  # the execution options that it was opened with
    is_busy: Callable[[], bool]  # whether a statement still runs
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
        """Whether it can be used again: it is open, and nothing of what it was used for is left."""
        return not self.expired and not self.sync.invalidated and not self.driver.is_closed() and not self.has_leftovers

    @property
    def has_leftovers(self) -> bool:
        """Whether it is open, and a transaction, a statement, or options of the connection are left of its use."""
        return not self.driver.is_closed() and (
            self.streamed
            or self.sync.get_execution_options() is not self.options
            or self.driver.is_in_transaction()
            or self.is_busy()
        )

    def release(self) -> None:
        """Give it back to its pool."""
        self.pool.release(self)

    async def close(self) -> None:
        """Close it, whatever state it is in: no error is raised. On one that is silent this takes seconds."""
        with suppress(Exception):
            await self.connection.invalidate()
            await self.connection.close()


async def connect(pool: "ConnectionPool") -> PooledConnection:
    """Open a connection for a pool."""
    connection = await pool.engine.connect()
    sync = connection.sync_connection
    assert sync is not None  # noqa: S101 - for the types: it has just been opened
    driver = (await connection.get_raw_connection()).driver_connection
    return PooledConnection(pool, connection, sync, driver, sync.get_execution_options(), busy_check(sync))
