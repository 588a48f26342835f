"""Replication: a primary that can move to another server, and a replica that can be read from instead of it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Self

from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.pool import ConnectionPool
from app.pooled_connection import PooledConnection, connect
from app.schema import Schema

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two heartbeats
ANSWER_TIME = 1.0  # seconds that a server has to answer one
SAMPLES = 1000  # positions of the primary that are remembered: more than the longest allowed lag has

# When a server started, which no two servers have in common, and how much of the write-ahead log it has written or
# replayed, in bytes. Any role may ask for both.
STARTED = text("SELECT pg_postmaster_start_time(), 0")
STARTED_AND_POSITION = text(
    "SELECT pg_postmaster_start_time(), pg_wal_lsn_diff("
    "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, '0/0')::bigint"
)

# Called with the time at which a server was asked, and its position, or None if it has not answered.
NoteAnswer = Callable[[float, int | None], None]


class Heartbeat:
    """Asks a server whether it answers, twice a second for the length of a block, on a connection of its own.

    When a new connection leads to another server than the last one, the connections to that are given up: a server
    that hangs closes none, and requests would wait on them until their deadline.
    """

    def __init__(
        self, name: str, engine: AsyncEngine, pools: Collection[ConnectionPool], note: NoteAnswer | None = None
    ) -> None:
        """Take the name of the server in the log, what connects to it, the pools that do, and what to call."""
        self._name = name
        self._engine = engine
        self._pools = pools
        self._note = note or (lambda *_: None)
        self._statement = STARTED_AND_POSITION if note else STARTED
        self._started_at: object = None
        self._answers: bool | None = None

    async def __aenter__(self) -> Self:
        """Begin to ask."""
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop asking."""
        self._stopping.set()
        await self._task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._ask_until_it_fails()
            except SQLAlchemyError as error:
                if self._answers is not False:
                    cause = f"{type(error).__name__}: {getattr(error, 'orig', error)}"
                    log.warning("The %s does not answer. %s", self._name, cause)
                self._answers = False
                self._note(self._asked_at, None)
                await self._pause()

    async def _ask_until_it_fails(self) -> None:
        self._asked_at = time.monotonic()
        pooled = await connect(self._engine)
        try:
            pooled.prepare(autocommit=True)
            while not self._stopping.is_set():
                self._asked_at = time.monotonic()
                started_at, position = await ask(pooled, self._statement)
                self._note_server(started_at)
                self._note(self._asked_at, position)
                await self._pause()
        finally:
            await pooled.close()

    def _note_server(self, started_at: object) -> None:
        is_another = self._started_at not in {None, started_at}
        if is_another:
            for pool in self._pools:
                pool.give_up()
        if is_another or not self._answers:
            suffix = " It was restarted, or is another server." if is_another else ""
            log.info("The %s answers.%s", self._name, suffix)
        self._started_at = started_at
        self._answers = True

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL):
                await self._stopping.wait()


async def ask(pooled: PooledConnection, statement: TextClause) -> Any:
    """Fetch a row. If there is none within `ANSWER_TIME`, the connection is closed.

    Raises:
        SQLAlchemyError: there is no answer.
    """
    asking = asyncio.create_task(pooled.connection.execute(statement))
    # It is not cancelled: ending a statement on a connection that is silent takes longer than that.
    done, _ = await asyncio.wait({asking}, timeout=ANSWER_TIME)
    if not done:
        pooled.driver.terminate()
    return (await asking).one()


class Replica:
    """Whether the replica can be read from: whether it has all that was committed `max_lag` seconds ago.

    Every position of the primary is remembered until the replica has reached it. No clock of another machine is asked.

    Attributes:
        pool: the connections to it.
        max_lag: in seconds.
    """

    def __init__(self, pool: ConnectionPool, schema: Schema, max_lag: int) -> None:
        """Take the pool, the schema of the primary, and the seconds that it may be behind."""
        self.pool = pool
        self.max_lag = max_lag
        self._schema = schema
        self._positions: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._complete_at = float("-inf")  # it has all that was committed before
        self._primary_silent_since: float | None = None
        self._is_behind = False

    @property
    def is_usable(self) -> bool:
        """Whether it can be read from. While the primary is silent, its last answer counts instead of the present."""
        if not self._schema.is_current:
            return False
        now = time.monotonic() if self._primary_silent_since is None else self._primary_silent_since
        return now - self._complete_at <= self.max_lag

    def note_primary(self, asked_at: float, position: int | None) -> None:
        """Note a heartbeat of the primary."""
        if position is None:
            self._primary_silent_since = self._primary_silent_since or asked_at
            return
        if self._primary_silent_since is not None:
            self._primary_silent_since = None
            self._positions.clear()  # another server may have another log
        # The replica has the schema of this release as soon as it reaches a position that the primary had after it.
        if self._schema.is_current:
            self._positions.append((asked_at, position))

    def note_replica(self, asked_at: float, position: int | None) -> None:
        """Note a heartbeat of the replica. If it has not answered, what waits for it is given up."""
        if position is None:
            self._complete_at = float("-inf")  # after a restart it begins further back
            self.pool.give_up()
            return
        while self._positions and self._positions[0][1] <= position:
            self._complete_at, _ = self._positions.popleft()
        is_behind = bool(self._positions) and asked_at - self._positions[0][0] > self.max_lag
        if is_behind is not self._is_behind:
            log.warning("The replica is %s.", f"more than {self.max_lag} s behind" if is_behind else "up to date again")
        self._is_behind = is_behind
