"""Sessions are lent in order, within bounds, and clean; and what they are lent for is done."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import Database
from app.errors import Unavailable
from app.heroes.models import Hero
from app.pool import BrokenOffError, SessionPool
from app.sessions import transaction
from tests.conftest import execute

PATIENCE = 30  # seconds: for a queue that hangs, not for one that is slow
HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}


@asynccontextmanager
async def lending(
    url: URL, *, size: int = 1, queue_size: int = 100, queue_timeout: float = 60
) -> AsyncIterator[SessionPool]:
    """A pool of sessions that write."""
    async with Database(url, lock_timeout=5, statement_timeout=30, sqlite_synchronous="NORMAL") as database:
        pool = SessionPool(database.writes, size=size, queue_size=queue_size, queue_timeout=queue_timeout)
        async with asyncio.timeout(PATIENCE):
            yield pool
        async with asyncio.timeout(PATIENCE):
            await pool.close()


class Hold:
    """Work that holds its session until it is told to let go."""

    def __init__(self, pool: SessionPool) -> None:
        """Begin."""
        self._held = asyncio.Event()
        self._over = asyncio.Event()
        self.task = asyncio.create_task(pool.lend(self._work))

    async def _work(self, session: AsyncSession) -> str:
        await run(session, "SELECT 1")
        self._held.set()
        await self._over.wait()
        return "done"

    async def is_held(self) -> None:
        """Wait until the session is lent."""
        await self._held.wait()

    async def let_go(self) -> str:
        """Let the session go."""
        self._over.set()
        return await self.task


async def run(session: AsyncSession, statement: str, **parameters: str) -> Any:
    """Run plain SQL, and return the first value that it yields."""
    result = await (await session.connection()).execute(text(statement), parameters)
    return result.scalar() if result.returns_rows else None


async def count(session: AsyncSession) -> int:
    return int(await run(session, "SELECT count(*) FROM hero"))


async def insert(session: AsyncSession) -> None:
    await run(session, "INSERT INTO hero (name, secret_name) VALUES (:name, :secret_name)", **HERO)


class TestQueue:
    async def test_who_comes_first_is_served_first(self, url: URL) -> None:
        served: list[int] = []

        def serve(number: int) -> Callable[[AsyncSession], Awaitable[None]]:
            async def work(session: AsyncSession) -> None:
                await run(session, "SELECT 1")
                served.append(number)

            return work

        async with lending(url) as pool:
            hold = Hold(pool)
            await hold.is_held()
            waiting = []
            for number in range(50):
                waiting.append(asyncio.create_task(pool.lend(serve(number))))
                await asyncio.sleep(0)
            await hold.let_go()
            late = asyncio.create_task(pool.lend(serve(50)))
            await asyncio.gather(late, *waiting)
        assert served == list(range(51))

    async def test_as_many_work_at_once_as_there_are_sessions_and_no_more(self, url: URL) -> None:
        at_once, most = 0, 0

        async def work(session: AsyncSession) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await run(session, "SELECT 1")
            await asyncio.sleep(0.01)
            at_once -= 1

        async with lending(url, size=3) as pool:
            await asyncio.gather(*(pool.lend(work) for _ in range(30)))
            assert most == 3
            assert pool.free == 3

    async def test_who_finds_the_queue_full_is_refused_at_once_and_the_queue_is_served(self, url: URL) -> None:
        async with lending(url, queue_size=2) as pool:
            hold = Hold(pool)
            await hold.is_held()
            waiting = [asyncio.create_task(pool.lend(count)) for _ in range(2)]
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(Unavailable, match="Too many") as refusal:
                    await pool.lend(count)
                assert refusal.value.headers == {"Retry-After": "1"}
            assert not hold.task.done()
            await hold.let_go()
            assert await asyncio.gather(*waiting) == [0, 0]
            assert await pool.lend(count) == 0

    async def test_who_has_waited_too_long_is_refused_and_never_served(self, url: URL) -> None:
        async with lending(url, queue_timeout=0.05) as pool:
            hold = Hold(pool)
            await hold.is_held()
            waiting = [asyncio.create_task(pool.lend(insert)) for _ in range(3)]
            for waiter in waiting:
                with pytest.raises(Unavailable, match="too long"):
                    await waiter
            assert await hold.let_go() == "done"
            assert await pool.lend(count) == 0
            assert pool.free == 1

    async def test_who_leaves_the_queue_is_never_served_and_holds_up_nobody(
        self, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with lending(url, queue_timeout=0.1) as pool:
            hold = Hold(pool)
            await hold.is_held()
            leaving = [asyncio.create_task(pool.lend(insert)) for _ in range(3)]
            staying = asyncio.create_task(pool.lend(count))
            await asyncio.sleep(0)
            for waiter in leaving:
                waiter.cancel()
            await hold.let_go()
            assert await staying == 0
            assert pool.free == 1
            await asyncio.sleep(0.2)  # when they would have waited too long
        assert not caplog.records

    async def test_who_leaves_in_the_moment_of_his_turn_loses_no_session(self, url: URL) -> None:
        async with lending(url) as pool:
            for _ in range(20):
                hold = Hold(pool)
                await hold.is_held()
                waiter = asyncio.create_task(pool.lend(count))
                await asyncio.sleep(0)
                await hold.let_go()
                waiter.cancel()
                await asyncio.wait({waiter})
            assert await pool.lend(count) == 0
            assert pool.free == 1


class TestWork:
    async def test_it_is_done_to_its_end_when_whoever_waits_for_it_leaves(self, url: URL) -> None:
        async def slow(session: AsyncSession) -> None:
            await insert(session)
            await asyncio.sleep(0.05)
            await insert(session)

        async with lending(url) as pool:
            waiter = asyncio.create_task(pool.lend(slow))
            await asyncio.sleep(0.02)
            waiter.cancel()
            await asyncio.wait({waiter})
            assert waiter.cancelled()
            assert await pool.lend(count) == 2

    async def test_closing_waits_for_what_has_begun(self, url: URL) -> None:
        async with lending(url) as pool:
            hold = Hold(pool)
            await hold.is_held()
            closing = asyncio.create_task(pool.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
            assert await hold.let_go() == "done"
            await closing

    async def test_its_error_reaches_whoever_waits_for_it(self, url: URL) -> None:
        async def fail(_: AsyncSession) -> None:
            raise LookupError("mine")

        async with lending(url) as pool:
            with pytest.raises(LookupError, match="mine"):
                await pool.lend(fail)
            assert await pool.lend(count) == 0
            assert pool.free == 1

    async def test_it_knows_the_context_of_its_request_also_when_it_has_waited(self, url: URL) -> None:
        request: ContextVar[str] = ContextVar("request")

        async def read(_: AsyncSession) -> str:
            return request.get()

        async def ask(pool: SessionPool, name: str) -> str:
            request.set(name)
            return await pool.lend(read)

        async with lending(url) as pool:
            names = [f"request {number}" for number in range(5)]
            assert await asyncio.gather(*(ask(pool, name) for name in names)) == names


class TestSession:
    """What one request has left in a session, the next doesn't find."""

    async def test_its_statements_are_committed_one_by_one(self, url: URL) -> None:
        async def fail(session: AsyncSession) -> None:
            await insert(session)
            await run(session, "nonsense")

        async with lending(url) as pool:
            with pytest.raises(SQLAlchemyError):
                await pool.lend(fail)
            assert await pool.lend(count) == 1

    async def test_objects_are_written_and_forgotten(self, url: URL) -> None:
        held: list[Hero] = []  # a session forgets by itself what nobody holds

        async def add(session: AsyncSession) -> None:
            async with transaction(session):
                session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))

        async def rename(session: AsyncSession) -> None:
            async with transaction(session):
                hero = await session.get(Hero, 1)
                assert hero
                hero.name = "Dead Pond"
                held.append(hero)

        async def look(session: AsyncSession) -> tuple[int, str]:
            known = len(session.identity_map) + len(session.new)
            return known, str(await run(session, "SELECT name FROM hero"))

        async with lending(url) as pool:
            await pool.lend(add)
            assert await pool.lend(look) == (0, "Deadpond")
            await pool.lend(rename)
            assert await pool.lend(look) == (0, "Dead Pond")

    async def test_objects_of_work_that_fails_are_forgotten(self, url: URL) -> None:
        async def fail(session: AsyncSession) -> None:
            session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
            raise LookupError

        async with lending(url) as pool:
            with pytest.raises(LookupError):
                await pool.lend(fail)
            assert await pool.lend(count) == 0

    async def test_objects_that_nobody_has_written_are_an_error(self, url: URL) -> None:
        async def add(session: AsyncSession) -> None:
            session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))

        async with lending(url) as pool:
            with pytest.raises(RuntimeError, match="left unwritten"):
                await pool.lend(add)
            assert await pool.lend(count) == 0

    async def test_its_own_transactions_are_refused(self, url: URL) -> None:
        async def begin(session: AsyncSession) -> None:
            async with session.begin():
                await insert(session)

        async def commit(session: AsyncSession) -> None:
            await session.commit()

        async def rollback(session: AsyncSession) -> None:
            async with transaction(session):
                await insert(session)
                await session.rollback()

        async with lending(url) as pool:
            for work in (begin, commit, rollback):
                with pytest.raises(RuntimeError, match=rf"{work.__name__}\(\) is not for a session that is lent"):
                    await pool.lend(work)
            assert await pool.lend(count) == 0

    async def test_a_transaction_that_is_left_open_is_an_error_and_rolled_back(self, url: URL) -> None:
        async def leave(session: AsyncSession) -> None:
            await run(session, "BEGIN")
            await insert(session)

        async with lending(url) as pool:
            with pytest.raises(RuntimeError, match="left open"):
                await pool.lend(leave)
            async with lending(url) as other:  # not held up by a lock
                await other.lend(insert)
            assert await pool.lend(count) == 1
            assert pool.free == 1

    async def test_a_time_limit_within_the_work_is_its_own_error(self, url: URL) -> None:
        async def hurry(session: AsyncSession) -> None:
            async with asyncio.timeout(0.05):
                while True:
                    await run(session, "SELECT count(*) FROM hero")

        async with lending(url) as pool:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await pool.lend(hurry)
                assert await pool.lend(count) == 0
            assert pool.free == 1

    async def test_work_that_is_cancelled_from_within_is_an_error(self, url: URL) -> None:
        async def await_somebody_who_leaves(_: AsyncSession) -> None:
            somebody = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(somebody.cancel)
            await somebody

        async with lending(url) as pool:
            with pytest.raises(BrokenOffError):
                await pool.lend(await_somebody_who_leaves)
            assert await pool.lend(count) == 0
            assert pool.free == 1

    async def test_a_connection_that_is_dead_is_replaced_before_it_is_lent(
        self, postgres: URL, postgres_url: URL
    ) -> None:
        async with lending(postgres_url, size=3) as pool:
            holds = [Hold(pool) for _ in range(3)]
            for hold in holds:
                await hold.is_held()
            for hold in holds:
                await hold.let_go()
            await asyncio.to_thread(kill_connections, postgres, postgres_url)
            for _ in range(6):
                assert await pool.lend(count) == 0

    async def test_a_connection_that_dies_at_work_is_an_error_once(self, postgres: URL, postgres_url: URL) -> None:
        async def sleep(session: AsyncSession) -> None:
            await run(session, "SELECT pg_sleep(20)")

        async with lending(postgres_url) as pool:
            waiter = asyncio.create_task(pool.lend(sleep))
            await asyncio.to_thread(wait_until_asleep, postgres, postgres_url)
            await asyncio.to_thread(kill_connections, postgres, postgres_url)
            with pytest.raises(SQLAlchemyError):
                await waiter
            assert await pool.lend(count) == 0
            assert pool.free == 1

    async def test_a_connection_that_is_not_to_be_had_costs_no_session(self, postgres_url: URL) -> None:
        async with lending(postgres_url.set(database="nowhere")) as pool:
            for _ in range(3):
                with pytest.raises(SQLAlchemyError):
                    await pool.lend(count)
            assert pool.free == 1

    async def test_it_has_no_more_connections_than_sessions(self, postgres: URL, postgres_url: URL) -> None:
        async def name(session: AsyncSession) -> int:
            return int(await run(session, "SELECT pg_backend_pid() FROM pg_sleep(0.01)"))

        async with lending(postgres_url, size=4) as pool:
            pids = await asyncio.gather(*(pool.lend(name) for _ in range(40)))
            assert len(set(pids)) == 4
            assert await asyncio.to_thread(count_connections, postgres, postgres_url) == 4
        assert await asyncio.to_thread(count_connections, postgres, postgres_url) == 0


def kill_connections(server: URL, url: URL) -> None:
    execute(
        server, f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = '{url.database}'"
    )


def wait_until_asleep(server: URL, url: URL) -> None:
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while not execute(server, f"{asleep} AND datname = '{url.database}'"):
        pass


def count_connections(server: URL, url: URL) -> object:
    return execute(server, f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.database}'")
