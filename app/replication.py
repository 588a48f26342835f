"""Replication: a primary that can move to another server, and a replica that can be read from instead of it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from app.pool import ConnectionPool
from app.pooled_connection import PooledConnection
from app.schema import Schema
from app.slots import PoolUnavailableError

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two heartbeats
ANSWER_TIME = 0.75  # seconds that a server has to answer one, and again on a new connection
SAMPLES = 1000  # positions of the primary that are remembered: more than the longest allowed lag has

# When a server started, which no two servers have in common, and how much of the write-ahead log it has written or
# replayed, in bytes. Any role may ask for both.
STARTED = text("SELECT pg_postmaster_start_time(), 0")
STARTED_AND_POSITION = text(
    "SELECT pg_postmaster_start_time(), pg_wal_lsn_diff("
    "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, '0/0')::bigint"
)

# Called with the time at which a server was asked and its position. If it is silent: since when, and None.
OnHeartbeat = Callable[[float, int | None], None]


class Heartbeat:
    """Asks a server whether it answers, twice a second, on a connection of its own.

    A server counts as silent only if it does not answer on a new connection either. When a new connection leads to
    another server than the last one, the connections to that are terminated: a server that hangs closes none, and
    requests would wait on them until their deadline.
    """

    def __init__(
        self,
        name: str,
        pool: ConnectionPool,
        watched: Collection[ConnectionPool],
        on_heartbeat: OnHeartbeat | None = None,
    ) -> None:
        """Take the name of the server in the log, what connects to it, the pools that do too, and what to call."""
        self._name = name
        self._pool = pool
        self._watched = watched
        self._on_heartbeat = on_heartbeat or (lambda *_: None)
        self._statement = STARTED_AND_POSITION if on_heartbeat else STARTED
        self._started_at: object = None
        self._answers: bool | None = None
        self._answered_at = float("-inf")  # when it was asked what it has answered last
        self._silent_since: float | None = None  # when it was first asked what it has not answered

    async def run(self) -> None:
        """Ask until this is cancelled."""
        while True:
            try:
                await self._ask_until_it_fails()
            except Exception as error:  # noqa: BLE001 - whatever it is, the server has to be asked again
                self._note_silence(error)
                await asyncio.sleep(INTERVAL)

    async def _ask_until_it_fails(self) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        silence = TimeoutError(f"no connection within {ANSWER_TIME:g} s")
        # A limit would cancel the connect, but what has hung may still succeed, on another host too.
        timer = asyncio.get_running_loop().call_later(ANSWER_TIME, self._note_silence, silence)
        try:
            pooled = await self._pool.acquire(unbounded=True)  # as soon as the last one is closed
        finally:
            timer.cancel()
        try:
            pooled.prepare(autocommit=True)
            await self._ask(pooled)
            with suppress(SQLAlchemyError):  # a new connection tells whether the server is silent, or just this one
                while True:
                    await asyncio.sleep(INTERVAL)
                    await self._ask(pooled)
        finally:
            pooled.expired = True
            pooled.release()

    async def _ask(self, pooled: PooledConnection) -> None:
        asked_at = time.monotonic()
        if self._silent_since is None:
            # A server that has closed its connections did so after its last answer: newer ones lead to the next server.
            self._silent_since = self._answered_at if pooled.driver.is_closed() else asked_at
        started_at, position = await fetch_row(pooled, self._statement)
        self._note_server(started_at, self._silent_since)
        self._answered_at = asked_at
        self._silent_since = None
        self._on_heartbeat(asked_at, position)

    def _note_server(self, started_at: object, silent_since: float) -> None:
        is_another = self._started_at not in {None, started_at}
        if is_another:
            for pool in self._watched:
                pool.terminate(opened_before=silent_since)
        if is_another or not self._answers:
            suffix = " It was restarted, or is another server." if is_another else ""
            log.info("The %s answers.%s", self._name, suffix)
        self._started_at = started_at
        self._answers = True

    def _note_silence(self, error: Exception) -> None:
        if self._answers is not False:
            is_expected = isinstance(error, (SQLAlchemyError, PoolUnavailableError, TimeoutError))
            cause = f"{type(error).__name__}: {getattr(error, 'orig', error)}"
            log.warning("The %s does not answer. %s", self._name, cause, exc_info=None if is_expected else error)
        self._answers = False
        if self._silent_since is not None:
            self._on_heartbeat(self._silent_since, None)


async def fetch_row(pooled: PooledConnection, statement: TextClause) -> Any:
    """Fetch a row. If there is none within `ANSWER_TIME`, or this is cancelled, the connection is closed.

    Raises:
        SQLAlchemyError: there is no answer.
    """
    asking = asyncio.create_task(pooled.connection.execute(statement))
    try:
        await asyncio.wait({asking}, timeout=ANSWER_TIME)
    finally:
        if not asking.done():
            # It is not cancelled: ending a statement on a connection that is silent takes longer than that.
            pooled.driver.terminate()
            await asyncio.gather(asking, return_exceptions=True)
    return asking.result().one()


class Replica:
    """Whether the replica can be read from: whether it has all that was committed `max_lag` seconds ago.

    Every position of the primary is remembered until the replica has reached it. No clock of another machine is asked.

    Attributes:
        pool: the connections to it.
        max_lag: in seconds.
    """

    def __init__(self, pool: ConnectionPool, writes: ConnectionPool, schema: Schema, max_lag: int) -> None:
        self.pool = pool
        self.max_lag = max_lag
        self._writes = writes
        self._schema = schema
        self._positions: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._complete_at = float("-inf")  # it has all that was committed before
        self._answers: deque[tuple[float, int]] = deque(maxlen=2)  # its own last positions, and when it had told them
        self._primary_silent_since: float | None = None
        self._noticed_at = 0.0  # when that was noticed
        self._is_behind = False

    @property
    def is_usable(self) -> bool:
        """Whether it can be read from. While the primary is silent, its last answer counts instead of the present."""
        if not self._schema.is_current:
            return False
        now = time.monotonic()
        # A primary that ends transactions is not silent, even if it accepts no connection for the heartbeat.
        if self._primary_silent_since is not None and self._writes.released_at <= self._noticed_at:
            now = self._primary_silent_since
        return now - self._complete_at <= self.max_lag

    def on_primary_heartbeat(self, asked_at: float, position: int | None) -> None:
        """Take the position of the primary, or that it is silent."""
        if position is None:
            if self._primary_silent_since is None:
                self._primary_silent_since = asked_at
                self._noticed_at = time.monotonic()
            return
        if self._primary_silent_since is not None:
            self._primary_silent_since = None
            self._positions.clear()  # another server may have another log
        if any(answered_at < asked_at and position < own for answered_at, own in self._answers):
            # It had more before than the primary has now: it has the log of another server, such as the last primary.
            self._positions.clear()
            self._complete_at = float("-inf")
        # The replica has the schema of this release as soon as it reaches a position that the primary had after it.
        elif self._schema.is_current:
            self._positions.append((asked_at, position))

    def on_replica_heartbeat(self, asked_at: float, position: int | None) -> None:
        """Take the position of the replica, or that it is silent: what waits for it is terminated then."""
        if position is None:
            self._answers.clear()
            self._complete_at = float("-inf")  # after a restart it begins further back
            self.pool.terminate(opened_before=asked_at)
            return
        self._answers.append((time.monotonic(), position))
        while self._positions and self._positions[0][1] <= position:
            self._complete_at, _ = self._positions.popleft()
        is_behind = bool(self._positions) and asked_at - self._positions[0][0] > self.max_lag
        if is_behind is not self._is_behind:
            log.warning("The replica is %s.", f"more than {self.max_lag} s behind" if is_behind else "up to date again")
        self._is_behind = is_behind
