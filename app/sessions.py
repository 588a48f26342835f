"""Sessions: the `AsyncSession` of a request, as a FastAPI dependency, and of everything outside of requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Self

from alembic.script import ScriptDirectory
from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from app.capacity import check_capacity
from app.database import CONNECT_TIMEOUT, Database
from app.drivers import before_response
from app.pool import ConnectionPool
from app.pooled_session import AsyncPooledSession
from app.recent_writes import SAFE_METHODS, may_read_replica, set_recent_write_cookie
from app.replication import Heartbeat, Replica
from app.schema import Schema, SchemaUnavailableError
from app.slots import PoolUnavailableError

REQUEST_SESSION = "request_session"  # the key in the scope of a request
NOT_OPEN = (
    "The database is not open: start this app's lifespan. `with TestClient(app)` does, and an app that it is mounted"
    " under has to: `async with sub_app.router.lifespan_context(sub_app)`."
)


class SessionMaker:
    """Creates the sessions of one process: `async with sessionmaker() as session`.

    Attributes:
        reads: the pool for reading. On SQLite its connections can't write, and wait for no writer.
        writes: the pool for everything else. On SQLite it has one connection; on Postgres half of all, so that writes
            that wait for a lock leave the other half to reads.
        database: the engines of the pools.
        schema: whether the database has the revision that this release needs.
        pools: all of them, also those for health checks, streams and heartbeats.
        replica: what requests read from instead of the primary, if there is one and it is not too far behind.
    """

    def __init__(  # noqa: PLR0913 - by keyword, one for each setting
        self,
        database: Database,
        script: ScriptDirectory,
        *,
        pool_size: int,
        queue_size: int,
        queue_timeout: float,
        max_lag: int,
    ) -> None:
        """Create the pools. The times are in seconds."""
        self.database = database
        unchecked = partial(ConnectionPool, queue_size=queue_size, queue_timeout=queue_timeout)
        # A connection beside those for requests, so that a health check never queues behind them. Their
        # bounds do not hold for it: one check may wait for another, that of the capacity at the start.
        self._probes = unchecked(database.reads, name="probes", size=1, queue_size=1, queue_timeout=CONNECT_TIMEOUT)
        self.schema = Schema(self._probes.connection, script)
        checked = partial(unchecked, schema=self.schema)
        shared = database.writes is database.reads  # one engine, as on Postgres
        writing = pool_size // 2 if shared else 1
        self.reads = checked(database.reads, name="reads", size=pool_size - writing if shared else pool_size)
        self.writes = checked(database.writes, name="writes", size=writing) if writing else self.reads
        self._streams = checked(database.reads, name="streams", size=1)
        primary = {self.reads, self.writes, self._streams, self._probes}
        self.pools = [*primary]
        self._heartbeats: list[Heartbeat] = []
        self.replica: Replica | None = None
        if database.replica is not None:
            reads = checked(database.replica, name="replica", size=pool_size, fallback=self.reads)
            watching = unchecked(database.replica, name="replica_heartbeat", size=1)
            self.replica = Replica(reads, self.writes, self.schema, max_lag)
            self._heartbeats.append(Heartbeat("replica", watching, {reads}, self.replica.on_replica_heartbeat))
            self.pools += [reads, watching]
        if database.replica is not None or database.has_several_hosts:
            watching = unchecked(database.writes, name="primary_heartbeat", size=1)
            on_heartbeat = self.replica.on_primary_heartbeat if self.replica else None
            self._heartbeats.append(Heartbeat("primary", watching, primary, on_heartbeat))
            self.pools.append(watching)

    async def __aenter__(self) -> Self:
        """Enter the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pools concurrently: each may have to wait for a server that hangs."""
        await asyncio.gather(*(pool.close() for pool in self.pools))

    def reads_of(self, scope: MutableMapping[str, Any]) -> ConnectionPool:
        """Return the pool that a request reads from, by its scope."""
        replica = self.replica
        return replica.pool if replica and replica.is_usable and may_read_replica(scope) else self.reads

    async def check(self) -> None:
        """Raise if requests can't be served, not even those that a replica answers.

        Raises:
            SchemaUnavailableError: the database does not answer, has no schema, or is behind this release.
            PoolUnavailableError: the connections for reading are silent, or none becomes free.
        """
        try:
            await asyncio.gather(self.schema.check(), self.reads.probe())
        except (SchemaUnavailableError, PoolUnavailableError):
            if self.replica is None or not self.replica.is_usable:
                raise

    @asynccontextmanager
    async def watch_servers(self) -> AsyncIterator[None]:
        """For a block, watch a primary that can move to another host, and a replica, if there are any."""
        tasks = [asyncio.create_task(heartbeat.run()) for heartbeat in self._heartbeats]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def check_capacity(self, service: str) -> None:
        """Log a warning if the connections of all processes of a service can exceed a limit of Postgres."""
        size = sum(pool.size for pool in self.pools if pool.engine is not self.database.replica)
        await check_capacity(self._probes.connection, service, size)

    def __call__(self, *, autocommit: bool = False, read: bool = False) -> AsyncSession:
        """Create a session for a block. What is not committed at its end is rolled back.

        Args:
            autocommit: whether each statement commits by itself, outside of a transaction that `begin` begins.
            read: whether it only reads. On SQLite it can't write then, and waits for no writer.
        """
        return AsyncPooledSession(pool=self.reads if read else self.writes, autocommit=autocommit, read=read)

    def streaming(self) -> Callable[[], AsyncSession]:
        """Return what creates a session for each chunk of one streamed response.

        All such responses share one connection, so that requests never wait for them. Only the first chunk can be
        refused: once a response has begun, the next ones wait for as long as it takes.
        """
        begun = False

        def create_session() -> AsyncSession:
            nonlocal begun
            session = AsyncPooledSession(pool=self._streams, autocommit=True, read=True, unbounded=begun)
            begun = True
            return session

        return create_session


async def get_sessionmaker(connection: HTTPConnection) -> SessionMaker:
    """Return what opens sessions that outlive the request: in background tasks, WebSockets and streams.

    With another method than GET and HEAD the request is expected to write.
    """
    return _take_sessionmaker(connection, writes=connection.scope.get("method") not in SAFE_METHODS)


def _take_sessionmaker(connection: HTTPConnection, *, writes: bool) -> SessionMaker:
    sessionmaker: SessionMaker | None = getattr(connection.app.state, "sessionmaker", None)
    if sessionmaker is None:
        raise RuntimeError(NOT_OPEN)
    if writes and sessionmaker.replica:
        set_recent_write_cookie(connection.scope, sessionmaker.replica.max_lag)
    return sessionmaker


async def get_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield the session of the request. Nothing is kept without `commit()`."""
    session = _take_session(connection, autocommit=False)
    try:
        yield session
    finally:
        await _leave_session(connection, session)


async def get_autocommit_session(connection: HTTPConnection) -> AsyncSession:
    """Return the session of the request in AUTOCOMMIT: a statement is one round trip, and is kept.

    Several statements, or objects, belong in a transaction: `async with session.begin()`.
    """
    session = _take_session(connection, autocommit=True)
    before_response(connection.scope, _leave_session, connection, session)
    return session


async def get_read_session(connection: HTTPConnection) -> AsyncSession:
    """Return the session of the request for reading, in AUTOCOMMIT unless another dependency writes with it."""
    session = _take_session(connection, autocommit=True, read=True)
    before_response(connection.scope, _leave_session, connection, session)
    return session


def _take_session(connection: HTTPConnection, *, autocommit: bool, read: bool = False) -> AsyncPooledSession:
    sessionmaker = _take_sessionmaker(connection, writes=not read)
    session: AsyncPooledSession | None = connection.scope.get(REQUEST_SESSION)
    if session is None:
        pool = sessionmaker.reads_of(connection.scope) if read else sessionmaker.writes
        session = AsyncPooledSession(pool=pool, autocommit=autocommit, read=read)
        connection.scope[REQUEST_SESSION] = session
    elif not read:
        session.allow_writes(sessionmaker.writes, autocommit=autocommit)
    session.dependencies += 1
    return session


async def _leave_session(connection: HTTPConnection, session: AsyncPooledSession) -> None:
    session.dependencies -= 1
    if not session.dependencies:
        del connection.scope[REQUEST_SESSION]
        await session.finish()


# scope="function": the exit code runs before the response is sent, so that a client that has an answer finds its write,
# and the connection is back.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
AutocommitSessionDep = Annotated[AsyncSession, Depends(get_autocommit_session)]
ReadSessionDep = Annotated[AsyncSession, Depends(get_read_session)]
SessionMakerDep = Annotated[SessionMaker, Depends(get_sessionmaker)]
