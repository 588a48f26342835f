"""The session on a connection pool: SQLModel's `AsyncSession`, with a connection for as long as it needs one.

It holds a connection from its first statement to the end of its transaction: `commit`, `rollback` or `close`.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, Select, UpdateBase, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncResult, AsyncSessionTransaction
from sqlalchemy.orm import SessionTransaction, SessionTransactionOrigin
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from app.access_log import counted_as_pool_wait
from app.database import raise_if_failed
from app.db_errors import may_succeed_elsewhere
from app.drivers import await_only
from app.pool import ConnectionPool
from app.pooled_connection import PooledConnection
from app.slots import PoolTerminatedError

ENDED = (
    "This session has ended with its request. Work that goes on after it opens a session of its own:"
    " `async with request.app.state.sessionmaker() as session`."
)
CONCURRENT = "Two tasks use one session at the same time: let each open its own by `async with sessionmaker()`."
MIXED = (
    "One request takes its session both in AUTOCOMMIT and for transactions: let all of its dependencies take SessionDep"
    " and commit(), or those that only read take ReadSessionDep."
)


class PooledSession(Session):
    """The synchronous half of a session: it acquires its connection when it needs one.

    Attributes:
        pool: where from.
        autocommit: whether each statement commits by itself. A transaction that `begin` begins is a real one even then.
        read: whether it was taken for reading alone.
        pooled: the connection, while a transaction is open.
        ended: whether no statement may run any more.
    """

    def __init__(
        self, pool: ConnectionPool, *, autocommit: bool, read: bool = False, unbounded: bool = False, **options: Any
    ) -> None:
        super().__init__(expire_on_commit=False, **options)
        self.pool = pool
        self.autocommit = autocommit
        self.read = read
        self.pooled: PooledConnection | None = None
        self.ended = False
        self._unbounded = unbounded

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        """Return the connection of the transaction. SQLAlchemy asks for it before each statement."""
        if self.pooled is not None:
            return self.pooled.sync
        pooled = self.acquire_nowait() or await_only(self.acquire())
        if self.pooled is not None:
            pooled.release()
            raise InvalidRequestError(CONCURRENT)
        self.pooled = pooled
        transaction = self.get_transaction()
        begun = transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN
        return pooled.prepare(autocommit=self.autocommit and not begun)

    @property
    def is_autocommitting(self) -> bool:
        """Whether the open transaction is none in the database: ending it is no I/O, and undoes nothing."""
        transaction = self.get_transaction()
        return (
            transaction is not None
            and self.autocommit
            and transaction.origin is SessionTransactionOrigin.AUTOBEGIN
            and not self.in_nested_transaction()
            and (self.pooled is None or not self.pooled.has_leftovers)
        )

    def acquire_nowait(self) -> PooledConnection | None:
        """Acquire a connection for this session without waiting, if possible."""
        if self.ended:
            raise InvalidRequestError(ENDED)
        return self.pool.acquire_nowait()

    async def acquire(self) -> PooledConnection:
        """Acquire a connection for this session, as `ConnectionPool.acquire` does."""
        try:
            with counted_as_pool_wait():
                pooled = await self.pool.acquire(unbounded=self._unbounded)
        except (PoolTerminatedError, SQLAlchemyError):  # not because many wait: that would double the load
            if not self.fall_back():
                raise
            return await self.acquire()
        if self.ended:  # meanwhile
            pooled.release()
            raise InvalidRequestError(ENDED)
        return pooled

    def fall_back(self) -> bool:
        """Use the fallback of the pool from now on, if it has one."""
        if self.pool.fallback is None:
            return False
        self.pool = self.pool.fallback
        return True

    def release(self) -> None:
        """Give the connection back, if there is one."""
        if self.pooled is not None:
            pooled, self.pooled = self.pooled, None
            pooled.release()


@event.listens_for(PooledSession, "before_commit")
def refuse_to_commit_a_failed_transaction(session: PooledSession) -> None:
    """Let a commit fail that Postgres would answer with a rollback."""
    if session.pooled is not None and not session.pooled.autocommit:
        raise_if_failed(session.pooled.sync)


@event.listens_for(PooledSession, "after_transaction_end")
def release_connection(session: PooledSession, transaction: SessionTransaction) -> None:
    """Give the connection back with the end of the outermost transaction."""
    if transaction.parent is None:
        session.release()


class AsyncPooledSession(AsyncSession):
    """The session that handlers use.

    Attributes:
        dependencies: how many of those of its request have taken it and not left it yet.
    """

    sync_session_class = PooledSession
    sync_session: PooledSession
    dependencies = 0

    def allow_writes(self, pool: ConnectionPool, *, autocommit: bool) -> None:
        """Let a session that was taken for reading write too, and keep the objects that it has read.

        Raises:
            RuntimeError: it writes already, but commits in another way; or a transaction is open.
        """
        session = self.sync_session
        if session.read:
            if transaction := session.get_transaction():
                if not session.is_autocommitting:
                    raise RuntimeError(MIXED)
                transaction.close()
            session.pool, session.autocommit, session.read = pool, autocommit, False
        elif session.autocommit is not autocommit:
            raise RuntimeError(MIXED)

    async def exec(self, statement: Any, *, params: Any = None, **options: Any) -> Any:
        """Execute a statement. In AUTOCOMMIT one of tables and columns takes a shortcut past the session's transaction.

        There is no transaction in the database that the session could follow, and no object for it to track: so the
        statement runs on a connection that is held for its time alone. It saves a request some 45 µs.
        """
        session = self.sync_session
        if not session.autocommit or session.in_transaction() or options or not is_core(statement):
            return await super().exec(statement, params=params, **options)
        pooled = session.acquire_nowait() or await session.acquire()
        try:
            if not pooled.autocommit:
                pooled.prepare(autocommit=True)
            result = await pooled.connection.execute(statement, params)
        except DBAPIError as error:
            if not may_succeed_elsewhere(error) or not session.fall_back():
                raise
        else:
            return result.scalars() if isinstance(statement, SelectOfScalar) else result
        finally:
            pooled.release()
        return await self.exec(statement, params=params)

    def get_bind(self, *_: Any, **__: Any) -> Engine:
        """Return the engine, whose dialect says which database it is. It is no I/O."""
        return self.sync_session.pool.engine.sync_engine

    def begin(self) -> AsyncSessionTransaction:
        """Begin a transaction: a real one, also on a session in AUTOCOMMIT that has executed statements before."""
        transaction = self.sync_session.get_transaction()
        if transaction and self.sync_session.is_autocommitting:
            transaction.close()
        return super().begin()

    async def stream(self, statement: Any, params: Any = None, **options: Any) -> AsyncResult[Any]:
        """Execute a statement, and read its rows while they are iterated. Its connection is not used again."""
        result = await super().stream(statement, params, **options)
        if self.sync_session.pooled is not None:
            self.sync_session.pooled.streamed = True
        return result

    async def __aexit__(self, *_: object) -> None:
        """Finish the session at the end of a block."""
        await self.finish()

    async def finish(self) -> None:
        """Close for good: roll back what was not committed, and give the connection back."""
        session = self.sync_session
        session.ended = True
        try:
            if session.is_autocommitting:
                session.close()  # no I/O, so no greenlet
            elif session.in_transaction():
                await self.close()
        finally:
            session.release()


@lru_cache(maxsize=1000)
def is_core(statement: Any) -> bool:
    """Tell whether a statement is about tables and columns alone, and not about mapped classes."""
    described: list[Any] = []
    if isinstance(statement, UpdateBase):
        described = [statement.entity_description, *statement.returning_column_descriptions]
    elif isinstance(statement, Select | SelectOfScalar):
        described = list(statement.column_descriptions)
    return bool(described) and all(description.get("entity") is None for description in described)
