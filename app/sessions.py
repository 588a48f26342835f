"""Sessions: the two doors to the database, and how handlers get through them."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import Enum
from functools import wraps
from typing import Annotated, Any, Self

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import BEGIN, COMMIT, Database, in_transaction
from app.pool import SessionPool
from app.schema import Schema


class Door(Enum):
    """Marks the parameter of a handler that is a session, with the door that it comes from."""

    READS = "reads"
    WRITES = "writes"


# Each statement is committed when it is done, so that it costs one round trip; `transaction` makes several one.
SessionDep = Annotated[AsyncSession, Door.WRITES]
ReadSessionDep = Annotated[AsyncSession, Door.READS]


class Sessions:
    """The two doors to the database, and one for what streams.

    - `writes`: for statements that change something.
    - `reads`: for those that don't. On Postgres both are one pool; on SQLite its sessions can't write, and wait for no
      writer.
    - `streams`: for what reads many times for one response. All of these take turns with one session, so that however
      many there are, no request waits for them.
    """

    def __init__(
        self, database: Database, schema: Schema, *, pool_size: int, queue_size: int, queue_timeout: float
    ) -> None:
        """Take what `SessionPool` takes."""
        self.reads = SessionPool(database.reads, size=pool_size, queue_size=queue_size, queue_timeout=queue_timeout)
        self.writes = self.reads
        if database.writes is not database.reads:
            self.writes = SessionPool(database.writes, size=1, queue_size=queue_size, queue_timeout=queue_timeout)
        self.streams = SessionPool(database.reads, size=1, queue_size=queue_size, queue_timeout=queue_timeout)
        self.schema = schema

    def pool(self, door: Door) -> SessionPool:
        """Find the sessions behind a door."""
        return self.reads if door is Door.READS else self.writes

    async def __aenter__(self) -> Self:
        """Be used for the length of a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the doors behind the work that has begun."""
        async with AsyncExitStack() as stack:
            for pool in (self.reads, self.writes, self.streams):
                stack.push_async_callback(pool.close)


@asynccontextmanager
async def transaction(session: AsyncSession) -> AsyncIterator[None]:
    """Make the statements of a block one transaction: all are committed when it ends, or none if it raises.

    Objects that were added or changed are written too.
    """
    connection = await session.connection()
    if in_transaction((await connection.get_raw_connection()).driver_connection):
        raise RuntimeError("a transaction in a transaction would end with the first of the two")
    await connection.exec_driver_sql(BEGIN[connection.dialect.name])
    session.autoflush = True
    try:
        yield
        await session.flush()
        for statement in COMMIT[connection.dialect.name]:
            await connection.exec_driver_sql(statement)
    except BaseException:
        session.expunge_all()
        with suppress(SQLAlchemyError):  # what has not rolled back is not lent again
            await connection.exec_driver_sql("ROLLBACK")
        raise
    finally:
        session.autoflush = False


async def streams(request: Request) -> SessionPool:
    """Find the session for what reads many times for one response. It is lent for one read at a time."""
    sessions: Sessions = request.app.state.sessions
    await sessions.schema.require()
    return sessions.streams


Streams = Annotated[SessionPool, Depends(streams)]

REQUEST = "lending_request"


def lending(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a handler that takes a session into an endpoint that FastAPI calls without one.

    The session is lent after FastAPI's validation, so that an invalid request never waits for one, and is back before
    the response starts. A dependency could do neither, and costs more.
    """
    signature = inspect.signature(handler, eval_str=True)
    doors = {
        parameter.name: mark
        for parameter in signature.parameters.values()
        for mark in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(mark, Door)
    }
    if not doors:
        return handler
    if len(doors) > 1:
        raise TypeError(f"{handler.__name__} takes more than one session: with two, it would wait for itself")
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(f"{handler.__name__} takes a session, so it must be async, and return what it answers")
    ((name, door),) = doors.items()
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != name]
    own = next((parameter.name for parameter in parameters if parameter.annotation is Request), None)

    @wraps(handler)
    async def endpoint(**values: Any) -> Any:
        request: Request = values[own] if own else values.pop(REQUEST)
        sessions: Sessions = request.app.state.sessions
        await sessions.schema.require()
        return await sessions.pool(door).lend(lambda session: handler(**values, **{name: session}))

    if not own:  # FastAPI gives a function its request once, under the last of the names that it asks for it by
        parameters.append(inspect.Parameter(REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request))
    endpoint.door = door  # type: ignore[attr-defined]  # read by `http`, when a request arrives
    endpoint.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by FastAPI
    return endpoint
