"""Slots: how many connections a pool may have in use, and the queue of those who wait for one."""

import asyncio
import time
from collections import deque
from typing import NamedTuple

from opentelemetry import metrics

STALL_TIMEOUT = 3  # seconds without a free slot for those who wait, after which the queue counts as stalled

POOL_NAME = "db.client.connection.pool.name"
meter = metrics.get_meter("app")
WAIT_TIME = meter.create_histogram(
    "db.client.connection.wait_time",
    unit="s",
    description="How long requests waited for a connection, of those that had to, and got one.",
    explicit_bucket_boundaries_advisory=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
)
TIMEOUTS = meter.create_counter(
    "db.client.connection.timeouts",
    unit="{timeout}",
    description="Requests for which no connection became free in time.",
)


class PoolUnavailableError(Exception):
    """No connection can be acquired now. The message is for the client."""


class PoolClosedError(PoolUnavailableError):
    """The pool is closed."""


class PoolTerminatedError(PoolUnavailableError):
    """The connections of the pool were terminated while this one waited."""


class QueueFullError(PoolUnavailableError):
    """Too many wait for a connection already."""


class QueueTimeoutError(PoolUnavailableError):
    """No connection has become free in time."""


class PoolUsage(NamedTuple):
    """How a pool is used at the moment: its connections, and how many wait for one."""

    name: str
    size: int
    idle: int
    used: int
    waiting: int


class Slots:
    """A semaphore that is first come, first served, with a bounded queue."""

    def __init__(self, size: int, *, queue_size: int, name: str = "") -> None:
        self.free = size
        self._attributes = {POOL_NAME: name}
        self._queue: deque[asyncio.Future[None]] = deque()  # done when a slot is theirs
        self._queue_size = queue_size
        self._moved_at = time.monotonic()  # when the queue last moved

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether so many wait that one more is to be refused."""
        return not self.free and len(self._queue) >= self._queue_size

    @property
    def is_stalled(self) -> bool:
        """Whether some wait, and no slot has become free for a while."""
        return bool(self._queue) and time.monotonic() - self._moved_at > STALL_TIMEOUT

    async def take(self, *, until: float | None, first: bool = False) -> None:
        """Take a slot, in the order of arrival.

        Args:
            until: when to give up, in the time of the event loop.
            first: whether to wait in front of all others.

        Raises:
            PoolUnavailableError: no slot has become free in time.
        """
        if self.free:
            self.free -= 1
            return
        if not self._queue:
            self._moved_at = time.monotonic()
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(until, self._expire, waiter) if until is not None else None
        self._queue.insert(0 if first else len(self._queue), waiter)
        try:
            await waiter
            WAIT_TIME.record(loop.time() - asked_at, self._attributes)
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self.give_back()  # it had its turn in the same moment
            raise
        finally:
            if timer:
                timer.cancel()

    def give_back(self, *, moved: bool = False) -> None:
        """Give a slot to the next in the queue, or let it be free.

        Args:
            moved: whether there is a connection for it, so that the queue has moved.
        """
        if moved:
            self._moved_at = time.monotonic()
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1

    def refuse_all(self, reason: PoolUnavailableError) -> None:
        """Raise an error in all who wait."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(reason)

    def _expire(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            self._queue.remove(waiter)
            TIMEOUTS.add(1, self._attributes)
            waiter.set_exception(QueueTimeoutError("Timed out waiting for a database connection."))
