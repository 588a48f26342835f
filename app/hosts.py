"""Hosts: the servers of a URL, of which one accepts."""

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from sqlalchemy import URL

from app.urls import split_hosts


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
                connection = await self._connect(dsn, timeout=self._timeout, **options)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                refusals.append(f"{type(error).__name__}: {error}" if str(error) else "no answer in time")
            else:
                self._urls.remove(url)
                self._urls.insert(0, url)
                return connection
        raise asyncpg.ClientCannotConnectError("; ".join(refusals))
