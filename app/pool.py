"""The pool: connections that stay open, handed out first come, first served, within bounds.

SQLAlchemy's own pool is not fair: a waiter that loses a race goes to the back of the queue, and starves under load.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db_errors import is_too_many_connections
from app.pooled_connection import PooledConnection, connect
from app.schema import Schema
from app.slots import PoolClosedError, PoolTerminatedError, PoolUnavailableError, PoolUsage, QueueFullError, Slots

CLOSE_TIMEOUT = 20  # seconds: longer than the database lets a statement take, by default
PROBE_TIMEOUT = 1  # seconds that an idle connection has to answer
RETRY_INTERVAL = 1  # seconds until another connection is tried, after the server has granted no more


class ConnectionPool:
    """The connections of one engine, and the queue of those who wait for one."""

    def __init__(  # noqa: PLR0913 - one more than five, by keyword
        self,
        engine: AsyncEngine,
        *,
        size: int,
        queue_size: int,
        queue_timeout: float,
        name: str = "",
        schema: Schema | None = None,
        fallback: "ConnectionPool | None" = None,
    ) -> None:
        """Create an empty pool.

        Args:
            engine: what connects.
            size: how many connections there are at most.
            queue_size: how many may wait for one.
            queue_timeout: how long, in seconds.
            name: in metrics.
            schema: until it is current, no connection is handed out.
            fallback: for sessions that read, and can't connect here.
        """
        self.engine = engine
        self.size = size
        self.fallback = fallback
        self.released_at = time.monotonic()  # when the last connection was given back clean
        self._name = name
        self._slots = Slots(size, queue_size=queue_size, name=name)
        self._queue_timeout = queue_timeout
        self._idle: list[PooledConnection] = []
        self._in_use: set[PooledConnection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._schema = schema
        event.listen(engine.sync_engine, "handle_error", self._close_idle_after)

    @property
    def free(self) -> int:
        """How many connections can be acquired without waiting."""
        return self._slots.free

    @property
    def usage(self) -> PoolUsage:
        """How it is used at the moment."""
        return PoolUsage(self._name, self.size, len(self._idle), len(self._in_use), self._slots.waiting)

    def acquire_nowait(self) -> PooledConnection | None:
        """Acquire a connection that is open and idle, if there is one."""
        if not self._slots.free or not self._idle or self._idle[-1].driver.is_closed():
            return None
        if self._schema and not self._schema.is_current:
            return None
        self._slots.free -= 1
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
            raise PoolClosedError("The service is shutting down.")
        until = None
        if not unbounded:
            self.check_queue()
            until = asyncio.get_running_loop().time() + self._queue_timeout
        await self._slots.take(until=until)
        while (pooled := await self._connect()) is None:
            await self._slots.take(until=until, first=True)
        self._in_use.add(pooled)
        return pooled

    def release(self, pooled: PooledConnection) -> None:
        """Give a connection back. One that is broken, or not clean, is closed, and replaced when it is needed."""
        self._in_use.remove(pooled)
        if pooled.is_clean:
            self.released_at = time.monotonic()
            self._idle.append(pooled)
            self._slots.give_back(moved=True)
        else:
            self._start(pooled.close()).add_done_callback(lambda _: self._slots.give_back())

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

    def terminate(self, *, opened_before: float) -> None:
        """Close older connections now, also those in use. Those who wait use the fallback, if there is one."""
        if self.fallback:
            self._slots.refuse_all(PoolTerminatedError("The database does not answer."))
        for pooled in self._in_use | {*self._idle}:
            if pooled.opened_at < opened_before:
                pooled.driver.terminate()

    def check_queue(self) -> None:
        """Raise `QueueFullError` if so many requests wait that one more is refused."""
        if self._slots.is_full:
            raise QueueFullError("Too many requests are waiting for a database connection.")

    async def probe(self) -> None:
        """Raise `PoolUnavailableError` if an idle connection is silent, or requests wait and none becomes free."""
        self._drop_lost()
        pooled = self.acquire_nowait()
        if pooled is None:
            if self._slots.is_stalled:
                raise PoolUnavailableError("No database connection becomes free.")
            return
        # The answer is not cancelled: ending a statement on a connection that is silent takes longer than the limit.
        done, _ = await asyncio.wait({self._start(self._is_answering(pooled))}, timeout=PROBE_TIMEOUT)
        if not any(answer.result() for answer in done):
            raise PoolUnavailableError("The database does not answer.")

    async def _is_answering(self, pooled: PooledConnection) -> bool:
        try:
            pooled.prepare(autocommit=True)
            async with asyncio.timeout(PROBE_TIMEOUT):
                await pooled.connection.exec_driver_sql("SELECT 1")
        except (TimeoutError, SQLAlchemyError):
            pooled.expired = True
            self._close_idle()
            return False
        finally:
            self.release(pooled)
        return True

    async def close(self) -> None:
        """Close every connection. Those in use are waited for, up to `CLOSE_TIMEOUT`, and then closed too.

        Requests that wait for a connection are served first. Those that come later are refused.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for _ in range(self.size):
                    await self._slots.take(until=None)
        self._slots.refuse_all(PoolClosedError("The service is shutting down."))
        for pooled in self._in_use:
            self._start(pooled.close())
        await self.disconnect()

    async def _connect(self) -> PooledConnection | None:
        """Return an idle connection or a new one; None if the server grants no more now."""
        opening = None
        try:
            if self._schema:
                await self._schema.require()  # it may have changed during the wait
            self._drop_lost()
            if self._idle:
                return self._idle.pop()
            # It is not cancelled with the request: SQLAlchemy would leave the socket of half a connect open.
            opening = self._start(connect(self))
            return await asyncio.shield(opening)
        except BaseException as error:
            if opening and isinstance(error, asyncio.CancelledError):
                opening.add_done_callback(self._release_opened)
            elif is_too_many_connections(error) and self.fallback is None:
                asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._slots.give_back)
                return None
            else:
                self._slots.give_back()
            raise

    def _release_opened(self, opening: asyncio.Task[PooledConnection]) -> None:
        """Release a connection whose request was cancelled while it was being opened."""
        if opening.cancelled() or opening.exception():
            self._slots.give_back()
            return
        pooled = opening.result()
        self._in_use.add(pooled)
        self.release(pooled)

    def _close_idle_after(self, error: ExceptionContext) -> None:
        # When one is lost, others may be; when the server grants no more, they are left to the engine's other pool.
        is_lost = error.is_disconnect and isinstance(error.original_exception, Exception)  # a cancellation is no loss
        if is_lost or (is_too_many_connections(error.sqlalchemy_exception) and self.size > 1):
            self._close_idle()

    def _drop_lost(self) -> None:
        """Let the idle connection that is handed out next be one that is open."""
        while self._idle and self._idle[-1].driver.is_closed():
            self._start(self._idle.pop().close())

    def _close_idle(self) -> None:
        while self._idle:
            self._start(self._idle.pop().close())

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
