"""Sessions: the two doors to the database, and how handlers get through them."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from functools import wraps
from typing import Annotated, Any, Self

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import BEGIN, Database
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
    """The two doors to the database.

    - `writes`: for statements that change something.
    - `reads`: for those that don't. On Postgres both are one pool; on SQLite its sessions can't write, and wait for no
      writer.
    """

    def __init__(
        self, database: Database, schema: Schema, *, pool_size: int, queue_size: int, queue_timeout: float
    ) -> None:
        """Take what `SessionPool` takes."""
        self.reads = SessionPool(database.reads, size=pool_size, queue_size=queue_size, queue_timeout=queue_timeout)
        self.writes = self.reads
        if database.writes is not database.reads:
            self.writes = SessionPool(database.writes, size=1, queue_size=queue_size, queue_timeout=queue_timeout)
        self.schema = schema

    def pool(self, door: Door) -> SessionPool:
        """Find the sessions behind a door."""
        return self.reads if door is Door.READS else self.writes

    async def __aenter__(self) -> Self:
        """Be used for the length of a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the doors behind the work that has begun."""
        await self.writes.close()
        await self.reads.close()


@asynccontextmanager
async def transaction(session: AsyncSession) -> AsyncIterator[None]:
    """Make the statements of a block one transaction: all are committed when it ends, or none if it raises."""
    connection = await session.connection()
    await connection.exec_driver_sql(BEGIN[connection.dialect.name])
    try:
        yield
        await session.flush()
        await connection.exec_driver_sql("COMMIT")
    except BaseException:
        session.expunge_all()
        with suppress(SQLAlchemyError):  # what has not rolled back is not lent again
            await connection.exec_driver_sql("ROLLBACK")
        raise


REQUEST = "lending_request"  # a name that no handler has for a parameter of its own


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
    ((name, door),) = doors.items()

    @wraps(handler)
    async def endpoint(**values: Any) -> Any:
        sessions: Sessions = values.pop(REQUEST).app.state.sessions
        await sessions.schema.require()
        return await sessions.pool(door).lend(lambda session: handler(**values, **{name: session}))

    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != name]
    request = inspect.Parameter(REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.door = door  # type: ignore[attr-defined]
    endpoint.__signature__ = signature.replace(parameters=[*parameters, request])  # type: ignore[attr-defined]
    return endpoint
