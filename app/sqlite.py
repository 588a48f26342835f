"""SQLite: a connection that goes to its thread once for a statement, where aiosqlite by itself goes four times."""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Self

import aiosqlite


class Connection(aiosqlite.Connection):
    """A connection whose cursors are made, used and closed in one go."""

    def __init__(self, database: str, **options: Any) -> None:
        """Take what `sqlite3.connect` takes. It is opened when it is awaited."""
        super().__init__(partial(sqlite3.connect, database, **options), iter_chunk_size=64)
        self._thread.daemon = True  # so that no connection keeps a process alive

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and not closed yet."""
        return self._connection is not None

    def cursor(self) -> "Cursor":  # type: ignore[override]  # SQLAlchemy takes whatever can be entered
        """Make a cursor, which the thread doesn't hear of yet."""
        return Cursor(self)

    async def use(self, work: Callable[[sqlite3.Cursor], None]) -> None:
        """Do work with a cursor in the thread."""

        def make_and_use() -> None:
            with closing(self._conn.cursor()) as cursor:
                work(cursor)

        await self._execute(make_and_use)  # type: ignore[no-untyped-call]  # aiosqlite has no types here


class Cursor:
    """The part of a cursor that SQLAlchemy uses: a statement, and then all of its rows."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Sequence[Any] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        """Be used for the length of a block."""
        return self

    async def execute(self, statement: str, parameters: Iterable[Any] = ()) -> Self:
        """Run a statement, and fetch its rows."""

        def run(cursor: sqlite3.Cursor) -> None:
            cursor.execute(statement, tuple(parameters))
            self._keep(cursor)

        await self._connection.use(run)
        return self

    async def executemany(self, statement: str, parameters: Iterable[Iterable[Any]]) -> Self:
        """Run a statement for each of the sets of parameters."""

        def run(cursor: sqlite3.Cursor) -> None:
            cursor.executemany(statement, map(tuple, parameters))
            self._keep(cursor)

        await self._connection.use(run)
        return self

    def _keep(self, cursor: sqlite3.Cursor) -> None:
        self._rows = deque(cursor.fetchall())
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid

    async def fetchone(self) -> Any:
        """Take the next row, or None."""
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Take the next rows."""
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    async def fetchall(self) -> list[Any]:
        """Take the rows that are left."""
        return await self.fetchmany(len(self._rows))

    async def close(self) -> None:
        """Have nothing left to close."""
