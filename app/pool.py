"""The pool: connections that stay open, handed out first come, first served, within bounds.

SQLAlchemy's own pool is not fair: a waiter that loses a race goes to the back of the queue, and starves under load.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import in_transaction, is_open, set_autocommit
from app.drivers import busy_check
from app.schema import Schema

CLOSE_TIMEOUT = 20  # seconds: longer than the database lets a statement take, by default


class PoolUnavailableError(Exception):
    """No connection can be acquired now. The message is for the client."""


@dataclass(eq=False, slots=True)
class PooledConnection:
    """A connection that is kept open: SQLAlchemy's two halves of it, and the driver's own."""

    connection: AsyncConnection
    sync: Connection
    driver: Any
    options: object  # the execution options that it was opened with
    is_busy: Callable[[], bool]  # whether a statement still runs
    autocommit: bool | None = None
    streamed: bool = False  # whether a result that is read while it is iterated may still read from it

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
            not self.streamed
            and not self.sync.invalidated
            and self.sync.get_execution_options() is self.options
            and is_open(self.driver)
            and not in_transaction(self.driver)
            and not self.is_busy()
        )


@dataclass(eq=False, slots=True)
class Waiter:
    """A place in the queue. Its future is done when a connection may be taken, or fails when that takes too long."""

    future: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    timer: asyncio.TimerHandle | None = None


class ConnectionPool:
    """The connections of one engine, and the queue of those who wait for one.

    Attributes:
        engine: whose connections they are.
        free: how many connections can be acquired without waiting.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        size: int,
        queue_size: int,
        queue_timeout: float,
        schema: Schema | None = None,
    ) -> None:
        """Create an empty pool.

        Args:
            engine: what connects.
            size: how many connections there are at most.
            queue_size: how many may wait for one.
            queue_timeout: how long, in seconds.
            schema: until it is current, no connection is handed out.
        """
        self.free = size
        self._size = size
        self.engine = engine
        self._idle: list[PooledConnection] = []
        self._queue: deque[Waiter] = deque()
        self._queue_size = queue_size
        self._queue_timeout = queue_timeout
        self._in_use: set[PooledConnection] = set()
        self._discarding: set[asyncio.Task[None]] = set()
        self._closed = False
        self._schema = schema

    def acquire_nowait(self) -> PooledConnection | None:
        """Acquire a connection that is open and idle, if there is one."""
        if not self.free or not self._idle or not is_open(self._idle[-1].driver):
            return None
        if self._schema and not self._schema.is_current:
            return None
        self.free -= 1
        pooled = self._idle.pop()
        self._in_use.add(pooled)
        return pooled

    async def acquire(self, *, unbounded: bool = False) -> PooledConnection:
        """Acquire a connection, in the order of arrival. It is to be given back by `release`.

        Args:
            unbounded: wait for as long as it takes, whatever the length of the queue is.

        Raises:
            PoolUnavailableError: too many wait already, or this one has waited for too long, or the pool is closed.
            SchemaUnavailableError: the database is not at the revision that this release needs.
            SQLAlchemyError: the database can't be connected to.
        """
        if self._schema:
            await self._schema.require()
        if self._closed:
            raise PoolUnavailableError("The service is shutting down.")
        if not unbounded:
            self.check_queue()
        await self._take_slot(unbounded=unbounded)
        try:
            pooled = await self._connect()
        except BaseException:
            self._wake_next()
            raise
        self._in_use.add(pooled)
        return pooled

    def release(self, pooled: PooledConnection) -> None:
        """Give a connection back. One that is broken, or not clean, is closed, and replaced when it is needed."""
        self._in_use.remove(pooled)
        if pooled.is_clean:
            self._idle.append(pooled)
            self._wake_next()
            return
        task = asyncio.get_running_loop().create_task(self._discard(pooled))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    def check_queue(self) -> None:
        """Let one more request in, though it may have to wait.

        Raises:
            PoolUnavailableError: too many wait already.
        """
        if not self.free and len(self._queue) >= self._queue_size:
            raise PoolUnavailableError("Too many requests are waiting for a database connection.")

    async def close(self) -> None:
        """Close every connection. Those in use are waited for, up to `CLOSE_TIMEOUT`, and then closed too.

        Requests that wait for a connection are served first. Those that come later are refused.
        """
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for _ in range(self._size):
                    await self._take_slot(unbounded=True)
        for waiter in [*self._queue]:
            self._expire(waiter)
        for pooled in [*self._in_use, *self._idle]:
            await _close(pooled)
        self._idle.clear()

    async def _take_slot(self, *, unbounded: bool) -> None:
        if self.free:
            self.free -= 1
            return
        waiter = Waiter()
        if not unbounded:
            waiter.timer = asyncio.get_running_loop().call_later(self._queue_timeout, self._expire, waiter)
        self._queue.append(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif not waiter.future.cancelled() and waiter.future.exception() is None:
                self._wake_next()  # it had its turn in the same moment
            raise
        finally:
            if waiter.timer:
                waiter.timer.cancel()

    def _expire(self, waiter: Waiter) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter)
            waiter.future.set_exception(PoolUnavailableError("Timed out waiting for a database connection."))

    def _wake_next(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.future.done():
                waiter.future.set_result(None)
                return
        self.free += 1

    async def _connect(self) -> PooledConnection:
        while self._idle:
            pooled = self._idle.pop()
            if is_open(pooled.driver):
                return pooled
            await _close(pooled)
        connection = await self.engine.connect()
        sync = connection.sync_connection
        assert sync is not None  # noqa: S101 - for the types: it has just been opened
        driver = (await connection.get_raw_connection()).driver_connection
        return PooledConnection(connection, sync, driver, sync.get_execution_options(), busy_check(sync))

    async def _discard(self, pooled: PooledConnection) -> None:
        try:
            await _close(pooled)
        finally:
            self._wake_next()


async def _close(pooled: PooledConnection) -> None:
    await pooled.connection.invalidate()
    await pooled.connection.close()
