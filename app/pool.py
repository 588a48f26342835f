"""The pool: sessions that stay open, lent to one request at a time, first come, first served."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import in_transaction, is_open
from app.errors import Unavailable

T = TypeVar("T")

CLOSE_TIMEOUT = 20  # seconds: longer than the database lets a statement take, by default


class BrokenOffError(Exception):
    """The work was cancelled from within."""


class LentSession(AsyncSession):
    """A session whose statements are committed one by one, unless they are in a `transaction`.

    Its own methods for transactions would promise what they don't do here, so they raise.
    """

    def begin(self) -> NoReturn:
        """Refuse."""
        raise RuntimeError("begin() is not for a session that is lent: use transaction(session)")

    async def commit(self) -> None:
        """Refuse."""
        raise RuntimeError(
            "commit() is not for a session that is lent: its statements are, or use transaction(session)"
        )

    async def rollback(self) -> None:
        """Refuse."""
        raise RuntimeError("rollback() is not for a session that is lent: use transaction(session), and raise")

    def forget(self) -> None:
        """Be as good as new."""
        if self.new or self.dirty or self.deleted:
            raise RuntimeError("objects are written in transaction(session), and some were left unwritten")
        self.expunge_all()


def check_over(driver: Any) -> None:
    """Refuse to answer for what nobody has committed."""
    if in_transaction(driver):
        raise RuntimeError("a transaction was left open: use transaction(session)")


@dataclass(eq=False, slots=True)
class Kept:
    """A session that is kept open, its connection, and the driver's own connection."""

    session: LentSession
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

    async def lend(self, work: Callable[[AsyncSession], Awaitable[T]], *, begun: bool = False) -> T:
        """Have work done with a session, when it is its turn. Its statements are committed one by one.

        Args:
            work: what to do. It is done to its end.
            begun: it goes on with what a client is getting already, so it is not refused: it waits.

        Raises:
            Unavailable: too many wait already, or this one has waited too long.
        """
        loop = asyncio.get_running_loop()
        order = Order(work, loop.create_future(), copy_context())
        if self.free:
            self.free -= 1
            self._begin(order)
        elif begun:
            self._queue.append(order)
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
        """Wait for the work that has begun, but break off what takes too long. Then close every connection."""
        if tasks := [order.task for order in self._begun if order.task]:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
            for task in late:
                task.cancel()
        while self._idle:
            await _discard(self._idle.pop())

    def _begin(self, order: Order) -> None:
        order.task = asyncio.create_task(self._do(order), context=order.context)
        self._begun.add(order)

    def _give_up(self, order: Order) -> None:
        self._queue.remove(order)
        if not order.outcome.cancelled():
            order.outcome.set_exception(Unavailable("The request has waited too long for the database."))

    def _next(self) -> None:
        while self._queue:
            order = self._queue.popleft()
            if order.timer:
                order.timer.cancel()
            if not order.outcome.cancelled():
                self._begin(order)
                return
        self.free += 1

    async def _do(self, order: Order) -> None:
        try:
            outcome = await self._use(order.work)
        except BaseException as error:
            if not order.outcome.cancelled():
                # What is no Exception would end whoever waits for it too.
                order.outcome.set_exception(error if isinstance(error, Exception) else BrokenOffError())
            if not isinstance(error, Exception):
                raise
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
                kept.session.forget()
            check_over(kept.driver)
        except BaseException:
            try:
                await kept.session.close()
            finally:
                await self._take_back(kept)
            raise
        self._idle.append(kept)
        return outcome

    async def _open(self) -> Kept:
        while self._idle:
            kept = self._idle.pop()
            if is_open(kept.driver):
                return kept
            await _discard(kept)
        connection = await self._engine.connect()
        driver = (await connection.get_raw_connection()).driver_connection
        return Kept(LentSession(bind=connection, expire_on_commit=False, autoflush=False), connection, driver)

    async def _take_back(self, kept: Kept) -> None:
        if is_open(kept.driver) and not in_transaction(kept.driver):
            self._idle.append(kept)
        else:
            await _discard(kept)


async def _discard(kept: Kept) -> None:
    await kept.session.close()
    await kept.connection.invalidate()
    await kept.connection.close()
