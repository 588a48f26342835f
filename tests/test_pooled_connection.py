"""A pooled connection knows whether it is clean, and is prepared for transactions or for AUTOCOMMIT."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL, text

from app.database import Database
from app.pooled_connection import PooledConnection, close_all, connect
from tests.support.locks import async_write_lock
from tests.support.processes import TIMEOUT

INSERT = text("INSERT INTO hero (name, secret_name) VALUES ('Deadpond', 'Dive Wilson')")
COUNT = text("SELECT count(*) FROM hero")


@pytest.fixture
def database(url: URL) -> Database:
    """The engines of a migrated database."""
    return Database(url, lock_timeout=5, statement_timeout=30, sqlite_synchronous="NORMAL")


@pytest.fixture
async def pooled(database: Database) -> AsyncIterator[PooledConnection]:
    """A connection that writes."""
    pooled = await connect(database.writes)
    yield pooled
    await close_all([pooled])


async def test_it_is_clean_when_it_is_new_and_after_a_transaction(pooled: PooledConnection) -> None:
    assert pooled.is_clean
    pooled.prepare(autocommit=False)
    await pooled.connection.execute(INSERT)
    assert not pooled.is_clean
    await pooled.connection.rollback()
    assert pooled.is_clean
    assert await pooled.connection.scalar(COUNT) == 0


async def test_in_autocommit_it_is_clean_after_each_statement_which_is_kept(pooled: PooledConnection) -> None:
    pooled.prepare(autocommit=True)
    await pooled.connection.execute(INSERT)
    assert pooled.is_clean
    pooled.prepare(autocommit=False)
    assert await pooled.connection.scalar(COUNT) == 1


async def test_it_is_not_clean_with_other_options_or_a_result_that_is_still_read(pooled: PooledConnection) -> None:
    pooled.streamed = True
    assert not pooled.is_clean
    pooled.streamed = False
    await pooled.connection.execution_options(stream_results=True)
    assert not pooled.is_clean


async def test_closing_it_ends_its_transaction_and_its_locks(pooled: PooledConnection, url: URL) -> None:
    pooled.prepare(autocommit=False)
    await pooled.connection.execute(INSERT)
    await pooled.close()
    assert not pooled.is_clean
    async with asyncio.timeout(TIMEOUT), async_write_lock(url):
        pass


async def test_one_that_can_not_be_closed_keeps_no_other_one_open(database: Database) -> None:
    first, second = [await connect(database.reads) for _ in range(2)]
    await first.close()
    await close_all([first, second])
    assert not second.is_clean
