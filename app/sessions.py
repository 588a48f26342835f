"""Sessions: the two doors to the database that handlers take."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import Database
from app.schema import Schema


class Sessions:
    """Opens sessions. A session takes its connection at its first statement, and gives it back when its block ends."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._writes = async_sessionmaker(database.writes, class_=AsyncSession, expire_on_commit=False)
        self._reads = async_sessionmaker(database.reads, class_=AsyncSession, expire_on_commit=False)
        self._schema = schema

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session whose statements are all committed when the block ends, or none if it raises.

        Raises:
            Unavailable: the database has not the schema that this release needs.
        """
        await self._schema.require()
        async with self._writes.begin() as session:
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session in no transaction: one round trip a statement, and each sees what was committed before it.

        Raises:
            Unavailable: the database has not the schema that this release needs.
        """
        await self._schema.require()
        async with self._reads() as session:
            yield session


async def _transaction(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions.transaction() as session:
        yield session


async def _reading(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions.reading() as session:
        yield session


# scope="function": the block ends, and so commits, before the response starts. FastAPI's default is after it has left:
# then a COMMIT that fails follows a 200.
SessionDep = Annotated[AsyncSession, Depends(_transaction, scope="function")]
ReadSessionDep = Annotated[AsyncSession, Depends(_reading, scope="function")]
