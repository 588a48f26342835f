"""SQLite's file: it can be deleted or replaced under open connections, and its write-ahead log can outgrow it.

A file that was deleted stays open: SQLite goes on writing to it, and all of that is gone when the file is closed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import WAL_LIMIT, build_engine
from app.pool import ConnectionPool
from app.schema import Schema, SchemaUnavailableError

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two looks at the file
# Seconds that a new file has to stay as it is before it is opened: it may still be being copied, and other processes
# have to leave the old one first, because the write-ahead logs of both have the same name.
SETTLING_TIME = 2.0

WARNING_INTERVAL = 60.0  # seconds between two equal warnings

REPLACED = "The database file was deleted or replaced."


class FileState(NamedTuple):
    """A file as it was at a moment."""

    inode: tuple[int, int]  # its device and its number there: another file has another
    size: int
    written_at: int


class SQLiteFile:
    """Watches the file.

    - When it is deleted or replaced, requests are refused. The new file is served when it has settled.
    - When its write-ahead log is larger than `WAL_LIMIT`, it is truncated as soon as no reader needs it.
    """

    def __init__(self, url: URL, pools: Collection[ConnectionPool], schema: Schema) -> None:
        """Take the URL of the file, all pools of connections to it, and what refuses their requests."""
        self._path = path = Path(str(url.database))
        self._wal_path = path.with_name(f"{path.name}-wal")
        # Of its own, so that a checkpoint waits for nobody: while it waits, writers wait for it. It creates no file.
        session = {"busy_timeout": 0, "query_only": "ON"}
        existing = url.set(database=path.absolute().as_uri()).update_query_dict({"uri": "true", "mode": "rw"})
        self._engine = build_engine(existing, session, isolation_level="AUTOCOMMIT")
        self._pools = pools
        self._schema = schema
        self._opened: FileState | None = None
        self._warned = ""
        self._warned_at = float("-inf")
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Watch it for a block."""
        self._opened = read_state(self._path)
        for engine in {self._engine, *(pool.engine for pool in self._pools)}:
            event.listen(engine.sync_engine, "do_connect", self._refuse_another)
        watching = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.wait({watching})

    async def _run(self) -> None:
        while True:
            try:
                await self._watch_one()
            except Exception as error:  # noqa: BLE001 - whatever it is, the file has to be watched
                if not (isinstance(error, SQLAlchemyError) and self._is_another()):
                    self._warn("The database file can't be watched", error)
                await self._pause()

    async def _watch_one(self) -> None:
        """Watch one file, and return when another in its place is served."""
        try:
            async with self._engine.connect() as connection:
                await self._wait_for_another(connection)
                await self._suspend()
                while not await self._truncate_wal(connection):
                    await self._pause()
        except SchemaUnavailableError:
            await self._suspend()
        await self._settle()
        self._schema.resume()
        with suppress(SchemaUnavailableError):  # deleted or replaced again: that is noticed when it connects
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

    def _is_another(self) -> bool:
        """Tell whether the file is no longer the one that was opened, if there was one."""
        found = read_state(self._path)
        return self._opened is not None and (found is None or found.inode != self._opened.inode)

    def _refuse_another(self, *_: object) -> None:
        """Refuse to open another file beside the one that is open: SQLite would create it, or mix the two up."""
        if self._is_another():
            raise SchemaUnavailableError(REPLACED)

    async def _wait_for_another(self, connection: AsyncConnection) -> None:
        """Watch the file, and return when it is no longer the one that was opened."""
        is_large = False
        while not self._is_another():
            self._opened = self._opened or read_state(self._path)
            with suppress(SQLAlchemyError):  # an upgrade may lock the whole file
                await open_wal(connection)
            wal = read_state(self._wal_path)
            was_large, is_large = is_large, wal is not None and wal.size > WAL_LIMIT
            if wal and is_large and not await self._truncate_wal(connection) and not was_large:
                log.warning("The write-ahead log has %d MB, because a long read needs it.", wal.size >> 20)
            elif was_large and not is_large:
                log.info("The write-ahead log was truncated.")
            await self._pause()

    async def _suspend(self) -> None:
        """Refuse requests, and close all connections but the one that watches.

        That one empties the write-ahead log, which SQLite would apply to a new file of the same name.
        """
        log.error(
            "The database file was deleted or replaced; the latest writes may be lost. Requests are refused until there"
            " is a file at %s again: move a backup there, or run 'alembic upgrade head'.",
            self._path,
        )
        await self._schema.suspend(REPLACED)
        await asyncio.gather(*(pool.disconnect() for pool in self._pools))

    async def _settle(self) -> None:
        """Wait until there is a file, and has been the same for a while."""
        loop = asyncio.get_running_loop()
        seen, since = None, loop.time()
        while seen is None or loop.time() - since < SETTLING_TIME:
            if (found := read_state(self._path)) != seen:
                seen, since = found, loop.time()
            await self._pause()
        self._opened = seen

    async def _truncate_wal(self, connection: AsyncConnection) -> bool:
        """Copy the write-ahead log into the file and truncate it. False if that has to be tried again."""
        try:
            await open_wal(connection)
            for mode in ("PASSIVE", "TRUNCATE"):  # the first makes nobody wait for the copying
                busy, pages, copied = (await connection.execute(text(f"PRAGMA wal_checkpoint({mode})"))).one()
                if busy or pages != copied:
                    return False
        except SQLAlchemyError as error:
            self._warn("The write-ahead log can't be truncated", error)
            return False
        return True

    def _warn(self, what: str, error: Exception) -> None:
        """Log an error, unless the same was logged just before. One that is not the database's has its traceback."""
        message = f"{what}. {type(error).__name__}: {getattr(error, 'orig', error)}"
        if message != self._warned or time.monotonic() - self._warned_at > WARNING_INTERVAL:
            log.warning("%s", message, exc_info=None if isinstance(error, SQLAlchemyError) else error)
            self._warned, self._warned_at = message, time.monotonic()


async def open_wal(connection: AsyncConnection) -> None:
    """Read the file's header: SQLite opens the file and its write-ahead log when it first reads."""
    await connection.execute(text("PRAGMA user_version"))


def read_state(path: Path) -> FileState | None:
    """Return the state of a file, or None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)
