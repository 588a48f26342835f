"""The pool serves in the order of arrival, within bounds, and hands out no connection that somebody has left dirty."""

import asyncio
import gc
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

import app.pool
from app.database import Database
from app.pool import ConnectionPool
from app.pooled_connection import PooledConnection
from app.slots import PoolUnavailableError
from app.urls import is_sqlite
from tests.support.backends import count_backends, terminate_backends, wait_for_backends, wait_until_asleep
from tests.support.locks import async_write_lock
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.relay import relay
from tests.support.sql import execute_autocommit, fetch_value

INSERT = "INSERT INTO hero (name, secret_name) VALUES ('Deadpond', 'Dive Wilson')"
COUNT = "SELECT count(*) FROM hero"


@asynccontextmanager
async def open_pool(
    url: URL, *, size: int = 1, queue_size: int = 100, queue_timeout: float = 60
) -> AsyncIterator[ConnectionPool]:
    """Yield a pool of connections that write."""
    database = Database(url, lock_timeout=5, statement_timeout=30, sqlite_synchronous="NORMAL")
    pool = ConnectionPool(database.writes, size=size, queue_size=queue_size, queue_timeout=queue_timeout)
    try:
        async with asyncio.timeout(TIMEOUT):
            yield pool
    finally:
        async with asyncio.timeout(TIMEOUT):
            await pool.close()


@asynccontextmanager
async def acquired(pool: ConnectionPool, *, unbounded: bool = False) -> AsyncIterator[PooledConnection]:
    """Hold a connection in AUTOCOMMIT, as a session does."""
    pooled = pool.acquire_nowait() or await pool.acquire(unbounded=unbounded)
    try:
        pooled.prepare(autocommit=True)
        yield pooled
    finally:
        pool.release(pooled)


async def execute(pooled: PooledConnection, statement: str) -> Any:
    """Execute a statement, and return the first value of its first row."""
    result = await pooled.connection.execute(text(statement))
    return result.scalar() if result.returns_rows else None


async def run(pool: ConnectionPool, statement: str) -> Any:
    """Execute one statement on a connection of the pool."""
    async with acquired(pool) as pooled:
        return await execute(pooled, statement)


async def start(pool: ConnectionPool, statement: str = COUNT) -> asyncio.Task[Any]:
    """Execute a statement in a task of its own, which has begun and waits when this returns."""
    task = asyncio.create_task(run(pool, statement))
    await asyncio.sleep(0)
    return task


async def wait_until_free(pool: ConnectionPool, size: int = 1) -> None:
    """Wait until every slot is free: a connection that is closed keeps its slot until that is done."""

    async def is_free() -> bool:
        return pool.free == size

    await wait_until_async(is_free)


class TestQueue:
    async def test_waiters_are_served_in_the_order_of_arrival(self, url: URL) -> None:
        served: list[int] = []

        async def serve(number: int) -> None:
            async with acquired(pool) as pooled:
                await execute(pooled, "SELECT 1")
                served.append(number)

        async with open_pool(url) as pool:
            async with acquired(pool):
                waiting = []
                for number in range(50):
                    waiting.append(asyncio.create_task(serve(number)))
                    await asyncio.sleep(0)
            late = asyncio.create_task(serve(50))
            await asyncio.gather(late, *waiting)
        assert served == list(range(51))

    async def test_as_many_connections_are_in_use_as_the_pool_has_slots_and_no_more(self, url: URL) -> None:
        in_use, most = 0, 0
        all_in_use = asyncio.Event()

        async def use() -> None:
            nonlocal in_use, most
            async with acquired(pool) as pooled:
                in_use += 1
                most = max(most, in_use)
                if in_use == 3:
                    all_in_use.set()
                await all_in_use.wait()
                await execute(pooled, "SELECT 1")
                in_use -= 1

        async with open_pool(url, size=3) as pool:
            await asyncio.gather(*(use() for _ in range(30)))
            assert most == 3
            assert pool.free == 3

    async def test_a_full_queue_refuses_on_arrival_and_serves_those_in_it(self, url: URL) -> None:
        async with open_pool(url, queue_size=2) as pool:
            async with acquired(pool):
                waiting = [await start(pool) for _ in range(2)]
                for _ in range(3):
                    with pytest.raises(PoolUnavailableError, match="Too many requests"):
                        await pool.acquire()
                    with pytest.raises(PoolUnavailableError, match="Too many requests"):
                        pool.check_queue()
                assert not any(task.done() for task in waiting)
            assert await asyncio.gather(*waiting) == [0, 0]
            pool.check_queue()
            assert await run(pool, COUNT) == 0

    async def test_a_waiter_that_times_out_is_refused_and_never_runs(self, url: URL) -> None:
        async with open_pool(url, queue_timeout=0.05) as pool:
            async with acquired(pool):
                for waiter in [await start(pool, INSERT) for _ in range(3)]:
                    with pytest.raises(PoolUnavailableError, match="Timed out"):
                        await waiter
            assert await run(pool, COUNT) == 0
            assert pool.free == 1

    async def test_a_cancelled_waiter_never_runs_and_delays_nobody(
        self, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_pool(url, queue_timeout=0.1) as pool:
            async with acquired(pool):
                leaving = [await start(pool, INSERT) for _ in range(3)]
                staying = await start(pool)
                for waiter in leaving:
                    waiter.cancel()
            assert await staying == 0
            assert pool.free == 1
            await asyncio.sleep(0.2)  # past the moment at which they would have timed out
        assert all(waiter.cancelled() for waiter in leaving)
        assert not caplog.records

    async def test_whoever_releases_a_connection_does_not_acquire_it_again_before_those_who_wait(
        self, url: URL
    ) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                waiter = asyncio.create_task(pool.acquire())
                await asyncio.sleep(0)
            assert pool.acquire_nowait() is None
            assert await waiter is first
            pool.release(first)

    async def test_a_waiter_cancelled_in_the_moment_of_its_turn_loses_no_slot(self, url: URL) -> None:
        async with open_pool(url) as pool:
            for _ in range(20):
                async with acquired(pool):
                    waiter = await start(pool)
                waiter.cancel()
                await asyncio.wait({waiter})
                assert waiter.cancelled()
                assert pool.free == 1
            assert await run(pool, COUNT) == 0

    async def test_an_unbounded_waiter_is_neither_refused_nor_timed_out(self, url: URL) -> None:
        async with open_pool(url, queue_size=0, queue_timeout=0.01) as pool:
            async with acquired(pool):
                waiter = asyncio.create_task(pool.acquire(unbounded=True))
                await asyncio.sleep(0.05)  # longer than the timeout of the queue
                assert not waiter.done()
            pool.release(await waiter)
            assert pool.free == 1


class TestConnections:
    async def test_a_clean_connection_is_used_again(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                await execute(first, "SELECT 1")
            async with acquired(pool) as second:
                assert second is first

    async def test_a_failed_statement_costs_no_connection(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                with pytest.raises(SQLAlchemyError):
                    await execute(first, "nonsense")
            async with acquired(pool) as second:
                assert second is first
                assert await execute(second, COUNT) == 0

    async def test_a_connection_released_in_a_transaction_is_closed_and_its_locks_with_it(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                first.prepare(autocommit=False)
                await execute(first, INSERT)
            async with asyncio.timeout(TIMEOUT), async_write_lock(url):
                pass
            async with acquired(pool) as second:
                assert second is not first
                assert await execute(second, COUNT) == 0
            assert pool.free == 1

    async def test_a_transaction_begun_in_plain_sql_is_noticed_too(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                await execute(first, "BEGIN")
                await execute(first, INSERT)
            async with asyncio.timeout(TIMEOUT), async_write_lock(url):
                pass
            assert await run(pool, COUNT) == 0

    async def test_a_connection_that_is_closed_keeps_its_slot_until_that_is_done(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as pooled:
                await execute(pooled, "BEGIN")
            assert pool.free == 0
            await wait_until_free(pool)
            assert pooled.sync.closed

    async def test_a_connection_released_with_other_options_is_closed(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as first:
                await first.connection.execution_options(isolation_level="SERIALIZABLE")
            async with acquired(pool) as second:
                assert second is not first

    async def test_a_connection_released_while_its_statement_runs_is_not_given_to_the_next(
        self, postgres: URL, postgres_url: URL
    ) -> None:
        async with open_pool(postgres_url) as pool:
            async with acquired(pool) as first:
                sleeping = asyncio.create_task(execute(first, "SELECT pg_sleep(20)"))
                await wait_until_asleep(postgres, postgres_url)
            assert await run(pool, COUNT) == 0
            with pytest.raises(SQLAlchemyError):
                await sleeping
            await wait_for_backends(postgres, postgres_url, most=1)

    async def test_a_dead_connection_is_replaced_before_it_is_acquired(self, postgres: URL, postgres_url: URL) -> None:
        async with open_pool(postgres_url, size=3) as pool:
            async with acquired(pool) as first, acquired(pool) as second, acquired(pool) as third:
                idle = (first, second, third)
            await terminate_backends(postgres, postgres_url)

            async def are_closed() -> bool:
                return all(pooled.driver.is_closed() for pooled in idle)

            await wait_until_async(are_closed)  # the driver hears of it when it reads next
            for _ in range(6):
                assert await run(pool, COUNT) == 0
            assert pool.free == 3

    async def test_a_connection_that_dies_in_use_is_an_error_once(self, postgres: URL, postgres_url: URL) -> None:
        async with open_pool(postgres_url) as pool:
            sleeping = await start(pool, "SELECT pg_sleep(20)")
            await wait_until_asleep(postgres, postgres_url)
            await terminate_backends(postgres, postgres_url)
            with pytest.raises(SQLAlchemyError):
                await sleeping
            assert await run(pool, COUNT) == 0
            assert pool.free == 1

    async def test_only_connections_older_than_a_change_of_server_are_terminated(
        self, postgres: URL, postgres_url: URL
    ) -> None:
        async with open_pool(postgres_url, size=2) as pool:
            old = await start(pool, "SELECT pg_sleep(20)")
            await wait_until_asleep(postgres, postgres_url)
            changed_at = time.monotonic()
            async with acquired(pool) as new:
                waiter = await start(pool)
                pool.terminate(opened_before=changed_at)
                with pytest.raises(SQLAlchemyError):
                    await old
                assert await waiter == 0
                assert await execute(new, COUNT) == 0

    async def test_a_failed_connect_costs_no_slot(self, postgres_url: URL) -> None:
        async with open_pool(postgres_url.set(database="nowhere")) as pool:
            for _ in range(3):
                with pytest.raises(SQLAlchemyError):
                    await pool.acquire()
            assert pool.free == 1

    async def test_a_pool_has_no_more_connections_than_slots(self, postgres: URL, postgres_url: URL) -> None:
        async with open_pool(postgres_url, size=4) as pool:
            pids = await asyncio.gather(*(run(pool, "SELECT pg_backend_pid() FROM pg_sleep(0.01)") for _ in range(40)))
            assert len(set(pids)) == 4
            assert await count_backends(postgres, postgres_url) == 4
        await wait_for_backends(postgres, postgres_url, most=0)


class TestCancellation:
    async def test_a_cancelled_statement_costs_its_connection_and_nothing_else(
        self, postgres: URL, postgres_url: URL
    ) -> None:
        async with open_pool(postgres_url) as pool:
            for _ in range(3):
                sleeping = await start(pool, "SELECT pg_sleep(20)")
                await wait_until_asleep(postgres, postgres_url)
                sleeping.cancel()
                await asyncio.wait({sleeping})
                assert sleeping.cancelled()
                assert await run(pool, COUNT) == 0
                assert pool.free == 1
                await wait_for_backends(postgres, postgres_url, most=1)

    async def test_a_time_limit_of_the_caller_is_its_own_error(self, url: URL) -> None:
        async def hurry() -> None:
            async with acquired(pool) as pooled, asyncio.timeout(0.02):
                while True:
                    await execute(pooled, COUNT)

        async with open_pool(url) as pool:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await hurry()
                assert await run(pool, COUNT) == 0
                assert pool.free == 1

    async def test_cancellation_while_connecting_leaks_neither_a_slot_nor_a_connection(
        self, url: URL, postgres: URL
    ) -> None:
        random = Random(0)  # noqa: S311 - it chooses a delay, not a secret
        async with open_pool(url, size=2) as pool:
            for _ in range(40):
                connecting = asyncio.create_task(pool.acquire())
                await asyncio.sleep(random.uniform(0, 0.03))
                connecting.cancel()
                await asyncio.wait({connecting})
                if not connecting.cancelled():
                    await connecting.result().connection.invalidate()
                    pool.release(connecting.result())
            await wait_until_free(pool, 2)
            assert await run(pool, COUNT) == 0
            if not is_sqlite(url):
                await wait_for_backends(postgres, url, most=2)

    async def test_the_first_connect_of_an_engine_can_be_cancelled_at_any_moment(self, url: URL, postgres: URL) -> None:
        for half_milliseconds in itertools.count():
            async with open_pool(url) as pool:
                connecting = asyncio.create_task(pool.acquire())
                await asyncio.wait({connecting}, timeout=half_milliseconds / 2000)
                following = asyncio.create_task(run(pool, COUNT))
                if has_connected := connecting.done():
                    pool.release(connecting.result())
                else:
                    connecting.cancel()
                    await asyncio.wait({connecting})
                    assert connecting.cancelled()
                assert await following == 0
                await wait_until_free(pool)
            if has_connected:
                break
        gc.collect()  # a socket that is left open is a warning, and so an error
        if not is_sqlite(url):
            await wait_for_backends(postgres, url, most=0)

    async def test_cancellation_at_any_moment_leaves_no_lock_slot_or_connection(self, url: URL, postgres: URL) -> None:
        random = Random(1)  # noqa: S311 - it chooses a delay, not a secret
        size = 1 if is_sqlite(url) else 3

        async def work() -> None:
            async with acquired(pool) as pooled:
                pooled.prepare(autocommit=random.random() < 0.5)
                await execute(pooled, INSERT)
                await execute(pooled, COUNT)
                await pooled.connection.rollback()

        async with open_pool(url, size=size) as pool:
            await run(pool, COUNT)
            for _ in range(30):
                tasks = [asyncio.create_task(work()) for _ in range(6)]
                for task in tasks:
                    await asyncio.sleep(random.uniform(0, 0.004))
                    task.cancel()
                await asyncio.wait(tasks)
                for task in tasks:
                    assert task.cancelled() or task.result() is None
            async with asyncio.timeout(TIMEOUT), async_write_lock(url):
                pass
            assert await run(pool, INSERT) is None
            await wait_until_free(pool, size)
            if not is_sqlite(url):
                assert 1 <= await count_backends(postgres, url) <= size


class TestClose:
    async def test_it_waits_for_connections_in_use(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool) as pooled:
                closing = asyncio.create_task(pool.close())
                await asyncio.sleep(0)
                assert await execute(pooled, COUNT) == 0
                assert not closing.done()
            await closing
            assert pooled.sync.closed

    async def test_it_serves_those_that_wait_and_refuses_those_that_come_later(self, url: URL) -> None:
        async with open_pool(url) as pool:
            async with acquired(pool):
                waiting = [await start(pool) for _ in range(3)]
                closing = asyncio.create_task(pool.close())
                await asyncio.sleep(0)
                for unbounded in (False, True):
                    with pytest.raises(PoolUnavailableError, match="shutting down"):
                        await pool.acquire(unbounded=unbounded)
            assert await asyncio.gather(*waiting) == [0, 0, 0]
            await closing
            assert pool.acquire_nowait() is None
            with pytest.raises(PoolUnavailableError, match="shutting down"):
                await pool.acquire()

    async def test_past_its_timeout_it_closes_connections_in_use_and_refuses_those_that_wait(
        self, postgres: URL, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with open_pool(postgres_url) as pool:
            sleeping = await start(pool, "SELECT pg_sleep(20)")
            await wait_until_asleep(postgres, postgres_url)
            waiting = await start(pool)
            monkeypatch.setattr(app.pool, "CLOSE_TIMEOUT", 0.05)
            await pool.close()
            with pytest.raises(SQLAlchemyError):
                await sleeping
            with pytest.raises(PoolUnavailableError):
                await waiting
            await wait_for_backends(postgres, postgres_url, most=0)

    async def test_a_closed_sqlite_database_is_not_locked(self, sqlite_url: URL) -> None:
        async with open_pool(sqlite_url) as pool:
            await run(pool, INSERT)
        assert await asyncio.to_thread(fetch_value, sqlite_url, COUNT) == 1


@pytest.fixture
def full_url(postgres: URL, postgres_url: URL) -> Iterator[URL]:
    """The URL of a role that the server grants no connection."""
    role = f"limited_{secrets.token_hex(4)}"
    execute_autocommit(postgres, f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    yield postgres_url.set(username=role, password="x")
    execute_autocommit(postgres, f"DROP ROLE {role}")


async def test_who_waits_for_a_server_that_grants_no_connection_is_refused_in_time(full_url: URL) -> None:
    async with open_pool(full_url, queue_timeout=0.5) as pool:
        with pytest.raises(PoolUnavailableError, match="Timed out"):
            await pool.acquire()


async def test_a_pool_with_a_fallback_does_not_wait_for_a_server_that_grants_no_connection(full_url: URL) -> None:
    async with open_pool(full_url) as other:
        pool = ConnectionPool(other.engine, size=1, queue_size=1, queue_timeout=60, fallback=other)
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(DBAPIError, match="too many connections"):
                await pool.acquire()
            assert pool.free == 1
            await pool.close()


async def test_a_probe_asks_a_connection_that_is_open(postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.pool, "PROBE_TIMEOUT", 0.2)
    with relay(postgres_url) as opened:
        async with open_pool(opened.url, size=2) as pool:
            first, second = await pool.acquire(), await pool.acquire()
            pool.release(first)
            pool.release(second)
            await pool.probe()
            second.driver.terminate()
            opened.silence()
            with pytest.raises(PoolUnavailableError, match="does not answer"):
                await pool.probe()
