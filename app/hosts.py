"""Hosts: the servers of a URL, of which one accepts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from sqlalchemy import URL

from app.urls import split_hosts

# After which the next host is asked. PgBouncer reports a server that it can't reach as a violation of the protocol, or
# asyncpg reports that it was disconnected, depending on when that happens.
CONNECT_ERRORS = (
    OSError,
    UnicodeError,  # a name that DNS does not allow
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.ProtocolViolationError,
    asyncpg.TargetServerAttributeNotMatched,
)


class Hosts:
    """The hosts of a URL. Each has its time to accept a connection, and the last that did is asked first."""

    def __init__(self, url: URL, connect: Callable[..., Awaitable[asyncpg.Connection]], timeout: float) -> None:
        """Take a URL, what connects to one host as `asyncpg.connect` does, and the seconds that all have together."""
        self._urls = split_hosts(url)
        self._connect = connect
        self._timeout = timeout / len(self._urls)

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect to the first host that accepts.

        Raises:
            ClientCannotConnectError: none does, or one is a pooler that was not expected. It is an error of Postgres,
                so that it becomes a SQLAlchemyError.
        """
        refusals: list[str] = []
        for url in [*self._urls]:
            dsn = url.render_as_string(hide_password=False)
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await self._connect(dsn, **options)
            except CONNECT_ERRORS as error:
                refusals.append(f"{type(error).__name__}: {error}" if str(error) else "no answer in time")
            else:
                self._urls.remove(url)
                self._urls.insert(0, url)
                return connection
        raise asyncpg.ClientCannotConnectError("; ".join(refusals))
