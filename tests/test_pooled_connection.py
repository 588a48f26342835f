"""A pooled connection knows whether it is clean, and is prepared for transactions or for AUTOCOMMIT."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL, text

from app.database import Database
from app.pool import ConnectionPool
from app.pooled_connection import PooledConnection, connect
from tests.support.locks import async_write_lock
from tests.support.processes import TIMEOUT

INSERT = text("INSERT INTO hero (name, secret_name) VALUES ('Deadpond', 'Dive Wilson')")
COUNT = text("SELECT count(*) FROM hero")


@pytest.fixture
async def pooled(url: URL) -> AsyncIterator[PooledConnection]:
    """A connection that writes."""
    database = Database(url, lock_timeout=5, statement_timeout=30, sqlite_synchronous="NORMAL")
    pooled = await connect(ConnectionPool(database.writes, size=1, queue_size=0, queue_timeout=0))
    yield pooled
    await pooled.close()


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


async def test_it_is_not_clean_when_it_is_expired(pooled: PooledConnection) -> None:
    pooled.expired = True
    assert not pooled.is_clean


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


async def test_closing_one_that_is_closed_is_no_error(pooled: PooledConnection) -> None:
    for _ in range(2):
        await pooled.close()
        assert not pooled.is_clean
