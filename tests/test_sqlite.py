"""A statement is one trip to the connection's thread, and everything else is as with aiosqlite."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from app.sqlite import Connection

ROWS = [(1, "one"), (2, None), (3, "três")]


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection to a new file."""
    connection = Connection(str(tmp_path / "x.db"), isolation_level=None)
    async with connection:
        yield connection


async def test_a_statement_is_one_trip_to_the_thread(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = []
    to_thread: Any = aiosqlite.Connection._execute  # noqa: SLF001 - the way to the thread

    async def count(self: Connection, *arguments: object) -> object:
        trips.append(arguments)
        return await to_thread(self, *arguments)

    monkeypatch.setattr(Connection, "_execute", count)
    cursor = await connection.cursor().__aenter__()
    await cursor.execute("SELECT 1 AS one UNION ALL SELECT 2")
    assert cursor.description
    assert cursor.description[0][0] == "one"
    assert await cursor.fetchall() == [(1,), (2,)]
    await cursor.close()
    assert len(trips) == 1


async def test_rows_are_taken_one_by_one_or_several(connection: Connection) -> None:
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    assert cursor.description is None
    assert await cursor.fetchone() is None
    await cursor.executemany("INSERT INTO t VALUES (?, ?)", ROWS)
    assert cursor.rowcount == 3
    await cursor.execute("SELECT * FROM t ORDER BY id")
    assert [await cursor.fetchone(), *await cursor.fetchmany(), *await cursor.fetchall()] == ROWS
    assert await cursor.fetchall() == []
    await cursor.execute("INSERT INTO t (name) VALUES (?) RETURNING id", ["four"])
    assert await cursor.fetchall() == [(4,)]
    assert cursor.lastrowid == 4


async def test_a_statement_that_returns_rows_is_over_when_it_answers(connection: Connection, tmp_path: Path) -> None:
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    await cursor.execute("INSERT INTO t VALUES (1), (2) RETURNING id")
    with sqlite3.connect(tmp_path / "x.db", timeout=0) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (2,)
        other.execute("INSERT INTO t VALUES (3)")
    other.close()


async def test_an_error_is_the_caller_s_and_the_connection_serves_on(connection: Connection) -> None:
    cursor = connection.cursor()
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="nonsense"):
            await cursor.execute("nonsense")
    await cursor.execute("SELECT 1")
    assert await cursor.fetchall() == [(1,)]


async def test_it_knows_whether_it_is_open(tmp_path: Path) -> None:
    connection = Connection(str(tmp_path / "x.db"))
    assert not connection.is_open
    await connection
    assert connection.is_open
    await connection.close()
    assert not connection.is_open
    with pytest.raises(ValueError, match="closed"):
        await connection.cursor().execute("SELECT 1")
