"""The pool: connections that stay open, handed out first come, first served, within bounds.

SQLAlchemy's own pool is not fair: a waiter that loses a race goes to the back of the queue, and starves under load.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import is_open
from app.db_errors import is_too_many_connections
from app.pooled_connection import PooledConnection, close_all, connect
from app.schema import Schema

CLOSE_TIMEOUT = 20  # seconds: longer than the database lets a statement take, by default
PROBE_TIMEOUT = 1  # seconds that an idle connection has to answer
RETRY_INTERVAL = 1  # seconds until another connection is tried, after the server has granted no more
STALL_TIMEOUT = 3  # seconds without a connection for those who wait, after which the pool counts as stalled


class PoolUnavailableError(Exception):
    """No connection can be acquired now. The message is for the client."""


class ConnectionPool:
    """The connections of one engine, and the queue of those who wait for one."""

    def __init__(
        self, engine: AsyncEngine, *, size: int, queue_size: int, queue_timeout: float, schema: Schema | None = None
    ) -> None:
        """Create an empty pool.

        Args:
            engine: what connects.
            size: how many connections there are at most.
            queue_size: how many may wait for one.
            queue_timeout: how long, in seconds.
            schema: until it is current, no connection is handed out.
        """
        self.free = size  # how many connections can be acquired without waiting
        self.fallback: ConnectionPool | None = None  # for sessions that read, and get no connection here
        self._size = size
        self.engine = engine
        self._idle: list[PooledConnection] = []
        self._queue: deque[asyncio.Future[None]] = deque()  # done when a slot is theirs
        self._queue_size = queue_size
        self._queue_timeout = queue_timeout
        self._in_use: set[PooledConnection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._moved_at = time.monotonic()  # when the queue last moved
        self._closed = False
        self._schema = schema
        event.listen(engine.sync_engine, "handle_error", self._close_idle_after)

    def acquire_nowait(self) -> PooledConnection | None:
        """Acquire a connection that is open and idle, if there is one."""
        if not self.free or not self._idle or not is_open(self._idle[-1].driver):
            return None
        if self._schema and not self._schema.is_current:
            return None
        self.free -= 1
        self._in_use.add(pooled := self._idle.pop())
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
        while (pooled := await self._connect()) is None:
            await self._take_slot(unbounded=unbounded, first=True)
        self._in_use.add(pooled)
        return pooled

    def release(self, pooled: PooledConnection) -> None:
        """Give a connection back. One that is broken, or not clean, is closed, and replaced when it is needed."""
        self._in_use.remove(pooled)
        if pooled.is_clean:
            self._moved_at = time.monotonic()
            self._idle.append(pooled)
            self._wake_next()
        else:
            self._start(close_all([pooled])).add_done_callback(lambda _: self._wake_next())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Hold a connection in AUTOCOMMIT for a block. It raises what `acquire` does."""
        pooled = self.acquire_nowait() or await self.acquire()
        pooled.prepare(autocommit=True)
        try:
            yield pooled.connection
        finally:
            self.release(pooled)

    async def disconnect(self) -> None:
        """Close every idle connection now, and those in use when they are given back."""
        for pooled in self._in_use:
            pooled.expired = True
        while self._idle or self._tasks:
            self._close_idle()
            await asyncio.wait(self._tasks)

    def give_up(self) -> None:
        """Close every connection now. What runs on one fails, as if the server had closed it, and what waits too."""
        for waiter in [*self._queue]:
            self._expire(waiter)
        for pooled in self._in_use:
            pooled.driver.terminate()
        self._close_idle()

    def check_queue(self) -> None:
        """Raise `PoolUnavailableError` if so many requests wait that one more is refused."""
        if not self.free and len(self._queue) >= self._queue_size:
            raise PoolUnavailableError("Too many requests are waiting for a database connection.")

    async def probe(self) -> None:
        """Raise `PoolUnavailableError` if an idle connection is silent, or requests wait and none becomes free."""
        if not self.free or not self._idle:
            if self._queue and time.monotonic() - self._moved_at > STALL_TIMEOUT:
                raise PoolUnavailableError("No database connection becomes free.")
            return
        # The answer is not cancelled: ending a statement on a connection that is silent takes longer than the limit.
        done, _ = await asyncio.wait({self._start(self._is_answering())}, timeout=PROBE_TIMEOUT)
        if not any(answer.result() for answer in done):
            raise PoolUnavailableError("The database does not answer.")

    async def _is_answering(self) -> bool:
        with suppress(TimeoutError, SQLAlchemyError):
            async with asyncio.timeout(PROBE_TIMEOUT), self.connection() as connection:
                await connection.exec_driver_sql("SELECT 1")
                return True
        self._close_idle()
        return False

    async def close(self) -> None:
        """Close every connection. Those in use are waited for, up to `CLOSE_TIMEOUT`, and then closed too.

        Requests that wait for a connection are served first. Those that come later are refused.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for _ in range(self._size):
                    await self._take_slot(unbounded=True)
        for waiter in [*self._queue]:
            self._expire(waiter)
        self._start(close_all([*self._in_use]))
        await self.disconnect()

    async def _take_slot(self, *, unbounded: bool, first: bool = False) -> None:
        if self.free:
            self.free -= 1
            return
        if not self._queue:
            self._moved_at = time.monotonic()
        waiter = (loop := asyncio.get_running_loop()).create_future()
        timer = None if unbounded else loop.call_later(self._queue_timeout, self._expire, waiter)
        self._queue.insert(0 if first else len(self._queue), waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._wake_next()  # it had its turn in the same moment
            raise
        finally:
            if timer:
                timer.cancel()

    def _expire(self, waiter: asyncio.Future[None]) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter)
            waiter.set_exception(PoolUnavailableError("Timed out waiting for a database connection."))

    def _wake_next(self) -> None:
        while self._queue:
            if not (waiter := self._queue.popleft()).done():
                waiter.set_result(None)
                return
        self.free += 1

    async def _connect(self) -> PooledConnection | None:
        """Return an idle connection or a new one; None if the server grants no more now."""
        opening = None
        try:
            if self._schema:
                await self._schema.require()  # it may have changed during the wait
            while self._idle:
                if is_open((pooled := self._idle.pop()).driver):
                    return pooled
                self._start(close_all([pooled]))
            # It is not cancelled with the request: SQLAlchemy would leave the socket of half a connect open.
            return await asyncio.shield(opening := self._start(connect(self.engine)))
        except BaseException as error:
            if opening and isinstance(error, asyncio.CancelledError):
                opening.add_done_callback(self._keep)
            elif is_too_many_connections(error):
                asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._wake_next)
                return None
            else:
                self._wake_next()
            raise

    def _keep(self, opening: asyncio.Task[PooledConnection]) -> None:
        """Release a connection whose request was cancelled while it was being opened."""
        if opening.cancelled() or opening.exception():
            self._wake_next()
        else:
            self._in_use.add(pooled := opening.result())
            self.release(pooled)

    def _close_idle_after(self, error: ExceptionContext) -> None:
        # When one is lost, others may be; when the server grants no more, they are left to the engine's other pool.
        is_lost = error.is_disconnect and isinstance(error.original_exception, Exception)  # a cancellation is no loss
        if is_lost or (is_too_many_connections(error.sqlalchemy_exception) and self._size > 1):
            self._close_idle()

    def _close_idle(self) -> None:
        self._start(close_all(self._idle))
        self._idle = []

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
