"""The pool: sessions that stay open, lent to one request at a time, first come, first served."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import is_reusable
from app.errors import Unavailable

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Kept:
    """A session that is kept open, its connection, and the driver's own connection."""

    session: AsyncSession
    connection: AsyncConnection
    driver: Any


@dataclass(eq=False, slots=True)
class Order:
    """Work to be done with a session, for a request that waits for its outcome."""

    work: Callable[[AsyncSession], Awaitable[Any]]
    outcome: asyncio.Future[Any]
    context: Context
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class SessionPool:
    """The sessions of one engine, and the queue of those who wait for one.

    Work that has begun is done to its end, even if the client leaves: stopped in the middle, it would leave a lock in a
    SQLite file, or a statement running on Postgres. It is the database that limits how long a statement takes.

    Attributes:
        free: how many sessions may be lent now.
    """

    def __init__(self, engine: AsyncEngine, *, size: int, queue_size: int, queue_timeout: float) -> None:
        """Take the timeout in seconds."""
        self.free = size
        self._engine = engine
        self._idle: list[Kept] = []
        self._queue: deque[Order] = deque()
        self._queue_size = queue_size
        self._queue_timeout = queue_timeout
        self._begun: set[Order] = set()

    async def lend(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Have work done with a session, when it is its turn. Its statements are committed one by one.

        Raises:
            Unavailable: too many wait already, or this one has waited too long.
        """
        loop = asyncio.get_running_loop()
        order = Order(work, loop.create_future(), copy_context())
        if self.free:
            self.free -= 1
            self._begin(order)
        else:
            self.check_queue()
            order.timer = loop.call_later(self._queue_timeout, self._give_up, order)
            self._queue.append(order)
        outcome: T = await order.outcome
        return outcome

    def check_queue(self) -> None:
        """Let one more request pass, though it may have to wait.

        Raises:
            Unavailable: too many wait already.
        """
        if not self.free and len(self._queue) >= self._queue_size:
            raise Unavailable("Too many requests are waiting for the database.")

    async def close(self) -> None:
        """Wait for the work that has begun, and close every connection."""
        while self._begun:
            await asyncio.wait([order.task for order in self._begun if order.task])
        while self._idle:
            await _discard(self._idle.pop())

    def _begin(self, order: Order) -> None:
        if order.timer:
            order.timer.cancel()
        order.task = asyncio.create_task(self._do(order), context=order.context)
        self._begun.add(order)

    def _give_up(self, order: Order) -> None:
        self._queue.remove(order)
        if not order.outcome.cancelled():
            order.outcome.set_exception(Unavailable("The request has waited too long for the database."))

    def _next(self) -> None:
        while self._queue:
            order = self._queue.popleft()
            if not order.outcome.cancelled():
                self._begin(order)
                return
        self.free += 1

    async def _do(self, order: Order) -> None:
        try:
            outcome = await self._use(order.work)
        except Exception as error:  # noqa: BLE001 - it is raised where the outcome is awaited
            if not order.outcome.cancelled():
                order.outcome.set_exception(error)
        else:
            if not order.outcome.cancelled():
                order.outcome.set_result(outcome)
        finally:
            self._begun.remove(order)
            self._next()

    async def _use(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        kept = await self._open()
        try:
            outcome = await work(kept.session)
            if kept.session.new or kept.session.identity_map:  # it has worked with objects, which few do
                await kept.session.commit()
                kept.session.expunge_all()
        except BaseException:
            await kept.session.close()
            raise
        finally:
            await self._take_back(kept)
        return outcome

    async def _open(self) -> Kept:
        while self._idle:
            kept = self._idle.pop()
            if is_reusable(kept.driver):
                return kept
            await _discard(kept)
        connection = await self._engine.connect()
        driver = (await connection.get_raw_connection()).driver_connection
        return Kept(AsyncSession(bind=connection, expire_on_commit=False), connection, driver)

    async def _take_back(self, kept: Kept) -> None:
        if is_reusable(kept.driver):
            self._idle.append(kept)
        else:
            await _discard(kept)


async def _discard(kept: Kept) -> None:
    await kept.session.close()
    await kept.connection.invalidate()
    await kept.connection.close()
