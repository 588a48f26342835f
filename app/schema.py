"""The schema: whether the database has the revision that this release needs."""

import asyncio
import logging
import time
from typing import Self

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import Unavailable

log = logging.getLogger(__name__)

TIME_LIMIT = 1.0  # seconds that the database has to tell its revision
INTERVAL = 1.0  # seconds between two looks for the sake of requests
ALEMBIC_VERSION = table("alembic_version", column("version_num"))


class Schema:
    """What this release needs of the database, and what the database has.

    A database that is ahead is served: during a roll-out, and after a roll-back, the older release meets it, and
    migrations only add what it needs not know.
    """

    def __init__(self, engine: AsyncEngine, script: ScriptDirectory) -> None:
        self.needs = script.get_current_head()
        self._known = frozenset(step.revision for step in script.walk_revisions())
        self._engine = engine
        self._current = False
        self._problem: str | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")

    async def __aenter__(self) -> Self:
        """Be used for the length of a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for a look that is still under way."""
        if self._looking is not None:
            await self._looking

    async def require(self) -> None:
        """Let a database operation pass.

        Until the database is seen at head, it is asked again at most once a second; from then on, never.

        Raises:
            Unavailable: it is not there yet.
        """
        if self._current:
            return
        if time.monotonic() - self._looked_at >= INTERVAL:
            await self.look()
        if not self._current:
            raise Unavailable(self._problem)

    async def check(self) -> None:
        """Ask the database now.

        Raises:
            Unavailable: it does not answer within `TIME_LIMIT`, or has no schema, or is behind this release.
        """
        await self.look()
        if self._problem:
            raise Unavailable(self._problem)

    async def look(self) -> None:
        """Ask once for all who want to know at the same moment, however soon one of them leaves."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._ask())
        await asyncio.shield(self._looking)

    async def _ask(self) -> None:
        problem, cause = None, ""
        try:
            async with asyncio.timeout(TIME_LIMIT), self._engine.connect() as connection:
                have = await connection.run_sync(read_revisions)
        except (TimeoutError, SQLAlchemyError) as error:
            problem = "The database does not answer."
            cause = f" {type(error).__name__}: {getattr(error, 'orig', error)}"
        else:
            # Unknown revisions come from a newer release.
            self._current = self.needs in have or bool(have - self._known)
            if not self._current:
                problem = (
                    f"The database is at revision {', '.join(sorted(have)) or 'none'}, this release needs {self.needs}:"
                    " run 'alembic upgrade head'."
                )
        if problem != self._problem:
            log.warning("%s%s", problem or "The database is ready.", cause)
        self._problem = problem
        self._looked_at = time.monotonic()


def read_revisions(connection: Connection) -> frozenset[str]:
    """Read which revisions the database has. None has one that no migration has touched."""
    if not inspect(connection).has_table(ALEMBIC_VERSION.name):
        return frozenset()
    return frozenset(connection.scalars(select(ALEMBIC_VERSION.c.version_num)))
