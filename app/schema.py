"""The schema: whether the database has the revision that this release needs."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import CONNECT_TIMEOUT
from app.slots import PoolUnavailableError

log = logging.getLogger(__name__)

TIME_LIMIT = 1.0  # seconds that a caller waits for a check
INTERVAL = 1.0  # seconds between two checks that requests cause
ALEMBIC_VERSION = table("alembic_version", column("version_num"))


class SchemaUnavailableError(Exception):
    """The database is not at the revision that this release needs. The message is for the client."""


class Schema:
    """The revision that this release needs, and the one that the database has.

    A database that is ahead is served: an older release meets one during a roll-out and after a roll-back, and runs on
    the newer schema.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]], script: ScriptDirectory
    ) -> None:
        """Take what holds a connection for a block, and the revisions of this release."""
        self.needs = script.get_current_head()
        self._known = frozenset(step.revision for step in script.walk_revisions())
        self._connect = connect
        self.has: frozenset[str] = frozenset()
        self.is_current = False
        self._problem: str | None = None
        self._suspended = False
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")

    async def require(self) -> None:
        """Raise `SchemaUnavailableError` if the database is behind this release, or does not answer.

        It is checked at most once a second until it is at head, and not again after that.
        """
        if self.is_current:
            return
        if time.monotonic() - self._refreshed_at >= INTERVAL:
            await self.refresh()
        if not self.is_current:
            raise SchemaUnavailableError(self._problem)

    async def check(self) -> None:
        """Raise `SchemaUnavailableError` if the database is behind this release, or does not answer now."""
        await self.refresh()
        if self._problem:
            raise SchemaUnavailableError(self._problem)

    async def suspend(self, problem: str) -> None:
        """Refuse every request, and don't connect to the database, until `resume`. The caller logs why."""
        self._suspended = True
        self.is_current = False
        self._problem = problem
        if self._refreshing is not None:
            await asyncio.wait({self._refreshing})

    def resume(self) -> None:
        """Let the next check connect again."""
        self._suspended = False

    async def refresh(self) -> None:
        """Check the database once for all concurrent callers. Cancelling one caller does not cancel the others."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read())
        # The check goes on: another host may answer after that, and closing a connection that is silent takes longer.
        done, _ = await asyncio.wait({self._refreshing}, timeout=TIME_LIMIT)
        for check in done:
            check.result()
        if not done:
            self._report("The database does not answer.")

    async def _read(self) -> None:
        if self._suspended:
            return
        problem, cause = None, ""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT), self._connect() as connection:
                have = await connection.run_sync(read_revisions)
        except PoolUnavailableError as error:
            problem = str(error)
        except (TimeoutError, SQLAlchemyError) as error:
            problem = "The database does not answer."
            cause = f" {type(error).__name__}: {getattr(error, 'orig', error)}"
        else:
            if self._suspended:  # meanwhile
                return
            self.has = have
            # Unknown revisions belong to a newer release.
            self.is_current = self.needs in have or bool(have - self._known)
            if not self.is_current:
                problem = (
                    f"The database is at revision {', '.join(sorted(have)) or 'none'}, but this release needs"
                    f" {self.needs}: run 'alembic upgrade head'."
                )
        self._report(problem, cause)

    def _report(self, problem: str | None, cause: str = "") -> None:
        if problem != self._problem:
            log.log(logging.WARNING if problem else logging.INFO, "%s%s", problem or "The database is ready.", cause)
        self._problem = problem
        self._refreshed_at = time.monotonic()


def read_revisions(connection: Connection) -> frozenset[str]:
    """Read the current revisions. A database that was never migrated has none."""
    if not inspect(connection).has_table(ALEMBIC_VERSION.name):
        return frozenset()
    return frozenset(connection.scalars(select(ALEMBIC_VERSION.c.version_num)))
