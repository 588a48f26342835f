"""SQLite's file: it can be deleted or replaced under open connections, and its write-ahead log can outgrow it.

A file that was deleted stays open: SQLite goes on writing to it, and all of that is gone when the file is closed.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from sqlalchemy import URL, NullPool, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import WAL_LIMIT, Database, build_engine
from app.schema import Schema, SchemaUnavailableError

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two looks at the file
# Seconds that a new file has to stay as it is before it is opened: it may still be being copied, and other processes
# have to leave the old one first, because the write-ahead logs of both have the same name.
SETTLING_TIME = 2.0

REPLACED = "The database file was deleted or replaced."


class SQLiteFile:
    """Watches the file, for the length of a block.

    - When it is deleted or replaced, requests are refused. The new file is served when it has settled.
    - When its write-ahead log is larger than `WAL_LIMIT`, it is truncated as soon as no reader needs it.
    """

    def __init__(
        self, url: URL, database: Database, schema: Schema, *, disconnect: Callable[[], Awaitable[None]]
    ) -> None:
        """Take what is to be watched.

        Args:
            url: of the file.
            database: connects to it.
            schema: refuses the requests.
            disconnect: closes all other connections to it.
        """
        self._path = path = Path(str(url.database))
        self._wal_path = path.with_name(f"{path.name}-wal")
        # Of its own, so that a checkpoint waits for nobody: while it waits, writers wait for it.
        session = {"busy_timeout": 0, "query_only": "ON"}
        self._engine = build_engine(url, session, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._database = database
        self._schema = schema
        self._disconnect = disconnect
        self._opened: os.stat_result | None = None

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        self._opened = stat(self._path)
        self._stopping = asyncio.Event()
        for engine in (self._engine, self._database.reads, self._database.writes):
            event.listen(engine.sync_engine, "do_connect", self._ensure_same)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop watching."""
        self._stopping.set()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                async with self._engine.connect() as connection:
                    await self._watch(connection)
                    await self._refuse()
                    while not await truncate_wal(connection):
                        await self._pause()
            except SchemaUnavailableError:
                await self._refuse()
            except SQLAlchemyError as error:
                log.warning("The database file can't be opened: %s", getattr(error, "orig", error))
                await self._pause()
                continue
            await self._settle()
            self._schema.resume()
            await self._schema.refresh()

    async def _pause(self) -> None:
        """Wait between two looks, and end the task there when the block ends: a cancelled statement outlives the loop.

        Raises:
            CancelledError: the block has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL):
                await self._stopping.wait()
                raise asyncio.CancelledError

    def _ensure_same(self, *_: object) -> None:
        """Refuse to open another file beside the one that is open: SQLite would create it, or mix the two up."""
        if self._opened is not None and not is_same(stat(self._path), self._opened):
            raise SchemaUnavailableError(REPLACED)

    async def _watch(self, connection: AsyncConnection) -> None:
        """Return when the file is no longer the one that was opened."""
        is_large = False
        while is_same(found := stat(self._path), self._opened) or self._opened is None:
            self._opened = found
            with suppress(SQLAlchemyError):  # an upgrade may lock the whole file
                await open_wal(connection)
            wal = stat(self._wal_path)
            was_large, is_large = is_large, wal is not None and wal.st_size > WAL_LIMIT
            if wal and is_large and not await truncate_wal(connection) and not was_large:
                log.warning("The write-ahead log has %d MB, because a long read needs it.", wal.st_size >> 20)
            elif was_large and not is_large:
                log.info("The write-ahead log was truncated.")
            await self._pause()

    async def _refuse(self) -> None:
        """Refuse requests, and close all connections but the one that watches.

        That one empties the write-ahead log, which SQLite would apply to a new file of the same name.
        """
        log.error(
            "The database file was deleted or replaced; the latest writes may be lost. Requests are refused until there"
            " is a file at %s again: move a backup there, or run 'alembic upgrade head'.",
            self._path,
        )
        await self._schema.suspend(REPLACED)
        await self._disconnect()

    async def _settle(self) -> None:
        """Wait until there is a file, and has been the same for a while."""
        loop = asyncio.get_running_loop()
        seen, since = None, loop.time()
        while seen is None or loop.time() - since < SETTLING_TIME:
            if not is_unchanged(found := stat(self._path), seen):
                seen, since = found, loop.time()
            await self._pause()
        self._opened = seen


async def open_wal(connection: AsyncConnection) -> None:
    """Read the file's header: SQLite opens the file and its write-ahead log when it first reads."""
    await connection.execute(text("PRAGMA user_version"))


async def truncate_wal(connection: AsyncConnection) -> bool:
    """Copy the write-ahead log into the file and truncate it. False if that has to be tried again."""
    try:
        await open_wal(connection)
        for mode in ("PASSIVE", "TRUNCATE"):  # the first makes nobody wait for the copying
            busy, pages, copied = (await connection.execute(text(f"PRAGMA wal_checkpoint({mode})"))).one()
            if busy or pages != copied:
                return False
    except SQLAlchemyError as error:
        log.warning("The write-ahead log can't be truncated: %s", getattr(error, "orig", error))
        return False
    return True


def stat(path: Path) -> os.stat_result | None:
    """Return what is known of a file, or None if there is none."""
    try:
        return path.stat()
    except OSError:
        return None


def is_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Tell whether there is a file, and it is the same one."""
    return one is not None and other is not None and os.path.samestat(one, other)


def is_unchanged(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Tell whether there is a file, the same one, and it was not written to."""
    return (
        one is not None
        and other is not None
        and os.path.samestat(one, other)
        and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
    )
