"""The session behaves as SQLAlchemy and SQLModel document it, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from sqlalchemy import URL, Integer, cast, func, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import registry, selectinload
from sqlmodel import Field, Relationship, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import build_engine
from app.heroes.models import Hero
from app.main import open_sessionmaker
from app.pool import ConnectionPool
from app.pooled_session import AsyncPooledSession
from app.sessions import SessionMaker
from app.settings import Settings
from app.slots import QueueFullError
from app.urls import is_sqlite
from tests.support.backends import wait_for_backends
from tests.support.heroes import DEADPOND
from tests.support.locks import async_write_lock
from tests.support.postgres_server import unreachable_url
from tests.support.processes import TIMEOUT
from tests.support.sessions import (
    HEROES,
    add_heroes,
    deadpond,
    ensure_nothing_is_left,
    fetch_ages,
    pools_of,
    run,
    serving,
)
from tests.support.sql import POOLER

PID = text("SELECT pg_backend_pid()")


class Model(SQLModel, registry=registry()):
    """A base with tables of its own, which no migration knows."""


class Team(Model, table=True):
    """A team of SQLModel's tutorial."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    members: list["Member"] = Relationship(back_populates="team")


class Member(Model, table=True):
    """A hero of SQLModel's tutorial."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    team_id: int | None = Field(default=None, foreign_key="team.id")
    team: Team | None = Relationship(back_populates="members")


async def fail_in_a_savepoint(session: AsyncSession) -> None:
    async with session.begin_nested():
        await session.exec(update(HEROES).values(age=9))
        await session.exec(update(HEROES).values(name=None))


async def fail_in_a_transaction(session: AsyncSession) -> None:
    async with session.begin():
        session.add(deadpond(age=9))
        await session.flush()
        raise LookupError


@pytest.fixture
async def sessionmaker(url: URL) -> AsyncIterator[SessionMaker]:
    """Opens sessions on one connection. In the end nothing may be left of any of them."""
    async with open_sessionmaker(Settings(database_url=url, pool_size=1)) as sessionmaker:
        sizes = {pool: pool.free for pool in pools_of(sessionmaker)}
        yield sessionmaker
        await ensure_nothing_is_left(sessionmaker, url, sizes)


class TestSession:
    """The session of `SessionDep`: what SQLAlchemy's documentation promises."""

    async def test_nothing_is_kept_without_commit(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker() as session:
            session.add(deadpond())
            await session.flush()
            assert len((await session.exec(select(Hero))).all()) == 1
        assert await fetch_ages(url) == []

    async def test_the_tutorials_add_commit_refresh_get_and_delete_work(
        self, sessionmaker: SessionMaker, url: URL
    ) -> None:
        async with sessionmaker() as session:
            hero = deadpond(age=5)
            session.add(hero)
            await session.commit()
            await run(url, "UPDATE hero SET age = 6")
            await session.refresh(hero)
            assert hero.age == 6
        async with sessionmaker() as session:
            stored = await session.get(Hero, hero.id)
            assert stored is not None
            stored.age = 7
            await session.commit()
            assert await fetch_ages(url) == [7]
            await session.delete(stored)
            await session.commit()
        assert await fetch_ages(url) == []

    async def test_a_session_holds_no_connection_before_its_first_statement_or_after_its_transaction(
        self, sessionmaker: SessionMaker
    ) -> None:
        async with sessionmaker() as session:
            session.add(deadpond())
            assert sessionmaker.writes.free == 1
            await session.flush()
            assert sessionmaker.writes.free == 0
            await session.commit()
            assert sessionmaker.writes.free == 1
            await session.exec(select(Hero))
            assert sessionmaker.writes.free == 0
            await session.rollback()
            assert sessionmaker.writes.free == 1

    async def test_rollback_undoes_and_the_session_goes_on(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker() as session:
            session.add(deadpond(age=1))
            await session.flush()
            await session.rollback()
            session.add(deadpond(age=2))
            await session.commit()
        assert await fetch_ages(url) == [2]

    async def test_begin_commits_at_the_end_of_its_block_and_rolls_back_if_that_raises(
        self, sessionmaker: SessionMaker, url: URL
    ) -> None:
        async with sessionmaker() as session:
            async with session.begin():
                session.add(deadpond(age=1))
            with pytest.raises(LookupError):
                await fail_in_a_transaction(session)
        assert await fetch_ages(url) == [1]

    @pytest.mark.parametrize("autocommit", [False, True])
    async def test_a_transaction_begins_in_no_other(self, sessionmaker: SessionMaker, *, autocommit: bool) -> None:
        for begin in (AsyncSession.begin, AsyncSession.begin_nested):
            async with sessionmaker(autocommit=autocommit) as session, begin(session):
                with pytest.raises(InvalidRequestError, match="already begun"):
                    await session.begin()

    async def test_a_transaction_that_an_object_has_begun_is_not_begun_again(self, sessionmaker: SessionMaker) -> None:
        async with sessionmaker() as session:
            session.add(deadpond())
            with pytest.raises(InvalidRequestError, match="already begun"):
                await session.begin()

    async def test_begin_nested_rolls_back_to_its_savepoint_alone(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker() as session:
            session.add(deadpond(age=1))
            with pytest.raises(IntegrityError):
                await fail_in_a_savepoint(session)
            session.add(deadpond(age=2))
            await session.commit()
        assert await fetch_ages(url) == [1, 2]

    async def test_merge_updates_the_row_of_a_detached_object(self, sessionmaker: SessionMaker, url: URL) -> None:
        await add_heroes(url, 1)
        async with sessionmaker() as session:
            hero = await session.get(Hero, 1)
        assert hero is not None
        hero.age = 2
        async with sessionmaker() as session:
            await session.merge(hero)
            await session.commit()
        assert await fetch_ages(url) == [2]

    async def test_stream_yields_every_row(self, sessionmaker: SessionMaker, url: URL) -> None:
        await add_heroes(url, 1, 2, 3)
        async with sessionmaker() as session:
            heroes = await session.stream_scalars(select(Hero).order_by("id"))
            assert [hero.age async for hero in heroes] == [1, 2, 3]

    async def test_a_stream_is_at_its_end_with_its_transaction(self, sessionmaker: SessionMaker, url: URL) -> None:
        """A cursor that could still fetch would abort the transaction of whoever has its connection then."""
        await add_heroes(url, *range(200))
        async with sessionmaker() as session:
            heroes = await session.stream_scalars(select(Hero))
            await session.commit()
            async with sessionmaker() as other:
                await other.exec(update(HEROES).values(age=5).where(HEROES.c.id == 1))
                with suppress(Exception):  # on SQLite its rows were fetched at once
                    await heroes.all()
                await other.commit()
        assert (await fetch_ages(url))[0] == 5

    async def test_relationships_load_by_selectinload(self, sessionmaker: SessionMaker, url: URL) -> None:
        engine = build_engine(url, {}, pooler=POOLER)
        async with engine.begin() as connection:
            await connection.run_sync(Model.metadata.create_all)
        await engine.dispose()
        async with sessionmaker() as session:
            session.add(Team(name="Preventers", members=[Member(name="Rusty-Man"), Member(name="Tarantula")]))
            await session.commit()
        for read in (False, True):
            async with sessionmaker(read=read) as session:
                members: Any = Team.members
                team = (await session.exec(select(Team).options(selectinload(members)))).one()
            assert sorted(member.name for member in team.members) == ["Rusty-Man", "Tarantula"]

    @pytest.mark.parametrize("autocommit", [False, True])
    async def test_the_isolation_level_of_one_transaction_can_be_set(
        self, sessionmaker: SessionMaker, url: URL, *, autocommit: bool
    ) -> None:
        async with sessionmaker(autocommit=autocommit) as session:
            connection = await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            if not is_sqlite(url):
                assert await connection.scalar(text("SHOW transaction_isolation")) == "serializable"
                assert await connection.scalar(text("SELECT txid_current() = txid_current()"))
            await session.exec(insert(HEROES).values(**DEADPOND))
            if not is_sqlite(url):
                await session.rollback()
                assert await fetch_ages(url) == []
        if not is_sqlite(url):
            async with sessionmaker() as session:
                assert await (await session.connection()).scalar(text("SHOW transaction_isolation")) == "read committed"

    @pytest.mark.parametrize("end", ["close", "reset", "invalidate", "rollback"])
    async def test_a_session_that_was_closed_can_be_used_again(
        self, sessionmaker: SessionMaker, url: URL, end: str
    ) -> None:
        async with sessionmaker() as session:
            session.add(deadpond(age=1))
            await session.flush()
            await getattr(session, end)()
            assert not session.new
            assert not session.in_transaction()
            session.add(deadpond(age=2))
            await session.commit()
        assert await fetch_ages(url) == [2]

    async def test_two_updates_of_which_the_second_fails_keep_nothing(
        self, sessionmaker: SessionMaker, url: URL
    ) -> None:
        await add_heroes(url, 1)
        async with sessionmaker() as session:
            await session.exec(update(HEROES).values(age=2))
            with pytest.raises(IntegrityError):
                await session.exec(update(HEROES).values(name=None))
        assert await fetch_ages(url) == [1]

    async def test_a_failed_statement_is_never_committed_in_silence(self, sessionmaker: SessionMaker, url: URL) -> None:
        """Postgres has given the transaction up by then, and would answer COMMIT with a rollback and no error."""
        await add_heroes(url, 1)
        for autocommit in (False, True):
            async with sessionmaker(autocommit=autocommit) as session:
                try:
                    async with session.begin():
                        await session.exec(update(HEROES).values(age=7))
                        with suppress(SQLAlchemyError):
                            await session.exec(insert(HEROES).values(id=1, **DEADPOND))
                except SQLAlchemyError:
                    assert await fetch_ages(url) == [1]
                else:
                    assert await fetch_ages(url) == [7]

    async def test_a_transaction_that_raises_costs_no_connection(self, postgres_url: URL) -> None:
        async with serving(postgres_url) as (_, sessionmaker):
            async with sessionmaker() as session:
                before = await session.scalar(PID)
            async with sessionmaker() as session:
                with pytest.raises(LookupError):
                    await fail_in_a_transaction(session)
            async with sessionmaker() as session:
                assert await session.scalar(PID) == before

    async def test_two_tasks_on_one_session_are_refused_and_lose_no_slot(self, url: URL) -> None:
        async with serving(url, pool_size=6) as (_, sessionmaker), sessionmaker(read=True) as session:
            errors = await asyncio.gather(*(session.exec(select(Hero)) for _ in range(3)), return_exceptions=True)
            assert any("Two tasks use one session" in str(error) for error in errors)
            assert sessionmaker.reads.free >= 2


async def test_a_connection_goes_back_to_the_pool_that_it_is_from(postgres_url: URL) -> None:
    """Another task of the session may have fallen back to the other pool meanwhile."""
    async with serving(postgres_url, pool_size=6) as (_, sessionmaker):
        reads = sessionmaker.reads
        pool = ConnectionPool(reads.engine, size=2, queue_size=1, queue_timeout=60, fallback=reads)
        session = AsyncPooledSession(pool=pool, autocommit=True, read=True)
        reading = asyncio.create_task(session.exec(select(HEROES.c.name)))
        await asyncio.sleep(0)
        assert pool.free == 1
        session.sync_session.fall_back()
        assert (await reading).all() == []
        assert pool.free == 2
        await session.finish()
        await pool.close()


class TestAutocommit:
    """The session of `AutocommitSessionDep`, and of `ReadSessionDep`."""

    async def test_each_statement_is_kept_by_itself(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker(autocommit=True) as session:
            await session.exec(insert(HEROES).values(age=1, **DEADPOND))
            assert await fetch_ages(url) == [1]
            with pytest.raises(IntegrityError):
                await session.exec(update(HEROES).values(name=None))
            await session.rollback()
        assert await fetch_ages(url) == [1]

    async def test_a_core_statement_holds_its_connection_for_its_time_alone(self, sessionmaker: SessionMaker) -> None:
        async with sessionmaker(autocommit=True) as session:
            await session.exec(insert(HEROES).values(**DEADPOND))
            assert sessionmaker.writes.free == 1
            assert (await session.exec(select(HEROES.c.name))).all() == ["Deadpond"]
            assert sessionmaker.writes.free == 1

    @pytest.mark.parametrize("read", [False, True])
    async def test_objects_can_be_read(self, sessionmaker: SessionMaker, url: URL, *, read: bool) -> None:
        await add_heroes(url, 1, 2)
        async with sessionmaker(autocommit=True, read=read) as session:
            heroes = (await session.exec(select(Hero).order_by("id"))).all()
            assert [hero.age for hero in heroes] == [1, 2]
            assert await session.get(Hero, 1) is heroes[0]
            assert await session.get(Hero, 3) is None
            async with session.begin():
                assert len((await session.exec(select(Hero))).all()) == 2
            assert len((await session.exec(select(HEROES.c.id))).all()) == 2

    async def test_objects_can_be_written(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker(autocommit=True) as session:
            hero = deadpond(age=0)
            session.add(hero)
            await session.flush()
            assert await fetch_ages(url) == [0]
            hero.age = 1
            await session.commit()
            assert await fetch_ages(url) == [1]
            hero.age = 2
            await session.commit()
            await session.refresh(hero)
            assert await fetch_ages(url) == [2]
            await session.delete(hero)
            await session.flush()
            assert await fetch_ages(url) == []

    @pytest.mark.parametrize("before", ["nothing", "core", "orm", "added"])
    async def test_begin_begins_a_real_transaction(self, sessionmaker: SessionMaker, url: URL, before: str) -> None:
        await add_heroes(url, 1)

        async def change(session: AsyncSession, age: int) -> None:
            if before == "core":
                await session.exec(select(HEROES.c.id))
            elif before == "orm":
                await session.exec(select(Hero))
            elif before == "added":
                session.add(await session.get(Hero, 1))
            async with session.begin():
                await session.exec(update(HEROES).values(age=age))
                assert await fetch_ages(url) == [1]
                hero = await session.get(Hero, 1, populate_existing=True)
                assert hero is not None
                hero.age = age + 1
                if age == 8:
                    await session.flush()
                    raise LookupError

        async with sessionmaker(autocommit=True) as session:
            with pytest.raises(LookupError):
                await change(session, 8)
            assert await fetch_ages(url) == [1]
            await change(session, 5)
            assert await fetch_ages(url) == [6]
            await session.exec(update(HEROES).values(age=9))
            assert await fetch_ages(url) == [9]

    @pytest.mark.parametrize("is_lost", [True, False])
    async def test_a_connection_that_is_lost_or_to_be_closed_does_not_keep_a_transaction_from_beginning(
        self, sessionmaker: SessionMaker, url: URL, *, is_lost: bool
    ) -> None:
        async def lose_connection(session: AsyncSession) -> None:
            await session.get(Hero, 1)
            pooled = session.sync_session.pooled  # type: ignore[attr-defined]  # of this project's own class
            await (pooled.driver.close() if is_lost else pooled.pool.disconnect())

        async with sessionmaker(autocommit=True) as session:
            await lose_connection(session)
            async with session.begin():
                session.add(deadpond(age=1))
        async with sessionmaker(autocommit=True, read=True) as session:
            assert isinstance(session, AsyncPooledSession)
            await lose_connection(session)
            session.allow_writes(sessionmaker.writes, autocommit=False)
            session.add(deadpond(age=2))
            await session.commit()
        assert await fetch_ages(url) == [1, 2]

    async def test_a_core_statement_has_its_execution_options(self, sessionmaker: SessionMaker) -> None:
        options = {"schema_translate_map": {None: "nowhere"}}
        async with sessionmaker(autocommit=True) as session:
            with pytest.raises(DBAPIError, match="nowhere"):
                await session.exec(select(HEROES.c.id), execution_options=options)

    async def test_a_savepoint_outside_of_a_transaction_leaves_nothing(self, sessionmaker: SessionMaker) -> None:
        async with sessionmaker(autocommit=True) as session:
            with suppress(DBAPIError):  # Postgres refuses it
                await session.begin_nested()
                await session.exec(insert(HEROES).values(**DEADPOND))

    async def test_a_savepoint_within_a_transaction_works(self, sessionmaker: SessionMaker, url: URL) -> None:
        async with sessionmaker(autocommit=True) as session, session.begin():
            await session.exec(insert(HEROES).values(age=1, **DEADPOND))
            with pytest.raises(IntegrityError):
                await fail_in_a_savepoint(session)
        assert await fetch_ages(url) == [1]

    async def test_on_sqlite_a_read_session_cannot_write_and_waits_for_no_writer(self, sqlite_url: URL) -> None:
        async with (
            serving(sqlite_url) as (_, sessionmaker),
            async_write_lock(sqlite_url),
            sessionmaker(autocommit=True, read=True) as session,
        ):
            assert (await session.exec(select(Hero))).all() == []
            with pytest.raises(DBAPIError, match="readonly"):
                await session.exec(insert(HEROES).values(**DEADPOND))


class TestBusy:
    async def test_a_transaction_that_cannot_begin_is_an_error_and_can_be_tried_again(self, sqlite_url: URL) -> None:
        async with serving(sqlite_url, lock_timeout=0.05) as (_, sessionmaker), sessionmaker() as session:
            async with async_write_lock(sqlite_url):
                for _ in range(2):
                    with pytest.raises(DBAPIError, match="locked"):
                        await session.exec(select(Hero))
            session.add(deadpond(age=1))
            await session.commit()
            assert await fetch_ages(sqlite_url) == [1]

    @pytest.mark.parametrize("autocommit", [False, True])
    async def test_a_write_cancelled_while_it_waits_for_a_lock_leaves_none(self, url: URL, *, autocommit: bool) -> None:
        async with serving(url, lock_timeout=0.5) as (_, sessionmaker):

            async def write() -> None:
                async with sessionmaker(autocommit=autocommit) as session:
                    await session.exec(insert(HEROES).values(**DEADPOND))

            async with async_write_lock(url):
                writing = asyncio.create_task(write())
                await asyncio.sleep(0.05)  # by then it waits in the database, or is about to
                writing.cancel()
                await asyncio.wait({writing})
                assert writing.cancelled()
            await run(url, "UPDATE hero SET age = 1")
        assert None in await fetch_ages(url)

    async def test_a_time_limit_inside_of_a_session_is_an_error_that_the_session_survives(
        self, sessionmaker: SessionMaker, url: URL
    ) -> None:
        long = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT max(i) FROM n"
        async with sessionmaker() as session:
            session.add(deadpond(age=1))
            await session.flush()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await session.scalar(text(long))
            await session.rollback()
            session.add(deadpond(age=2))
            await session.commit()
        assert await fetch_ages(url) == [2]


async def write_objects(session: AsyncSession) -> None:
    session.add(deadpond())
    await session.flush()
    await session.exec(select(Hero).limit(1))
    await session.commit()


async def write_in_a_transaction(session: AsyncSession) -> None:
    async with session.begin():
        await session.exec(insert(HEROES).values(**DEADPOND))
        await session.exec(update(HEROES).values(age=1).where(HEROES.c.id == 1))


async def write_in_a_savepoint(session: AsyncSession) -> None:
    await session.exec(select(HEROES.c.id).limit(1))
    async with session.begin_nested():
        await session.exec(insert(HEROES).values(**DEADPOND))
    await session.commit()


async def write(session: AsyncSession) -> None:
    await session.exec(insert(HEROES).values(**DEADPOND))


WORK: list[tuple[Callable[[AsyncSession], Awaitable[None]], bool]] = [
    (write_objects, False),
    (write_objects, True),
    (write_in_a_transaction, False),
    (write_in_a_transaction, True),
    (write_in_a_savepoint, False),
    (write, True),
]


class TestCancellation:
    @pytest.mark.parametrize("size", [1, 3])
    async def test_cancellation_at_any_moment_leaves_no_lock_slot_or_transaction(
        self, url: URL, postgres: URL, size: int
    ) -> None:
        random = Random(size)  # noqa: S311 - it chooses a delay, not a secret

        async def work(write: Callable[[AsyncSession], Awaitable[None]], *, autocommit: bool) -> None:
            async with sessionmaker(autocommit=autocommit) as session:
                await write(session)

        async with serving(url, pool_size=size) as (_, sessionmaker):
            await work(write, autocommit=True)
            for _ in range(25):
                tasks = [asyncio.create_task(work(kind, autocommit=autocommit)) for kind, autocommit in WORK]
                random.shuffle(tasks)
                for task in tasks:
                    await asyncio.sleep(random.uniform(0, 0.004))
                    for _ in range(random.choice([1, 1, 2])):  # the second one interrupts the cleaning up
                        task.cancel()
                        await asyncio.sleep(0)
                await asyncio.wait(tasks)
                assert all(task.cancelled() or task.result() is None for task in tasks)
                async with asyncio.timeout(TIMEOUT):
                    await work(write, autocommit=True)
            if not is_sqlite(url):
                await wait_for_backends(postgres, url, most=size + 1)  # one is the probe of the schema


class TestFallback:
    @pytest.mark.parametrize("statement", [select(HEROES.c.age), select(Hero)], ids=["core", "orm"])
    async def test_what_can_not_be_connected_to_is_read_from_the_fallback(
        self, postgres_url: URL, statement: Any
    ) -> None:
        engine = build_engine(unreachable_url(), {})
        await add_heroes(postgres_url, 1)
        async with serving(postgres_url, pool_size=2) as (_, sessionmaker):
            pool = ConnectionPool(engine, size=1, queue_size=0, queue_timeout=60, fallback=sessionmaker.reads)
            async with AsyncPooledSession(pool=pool, autocommit=True, read=True) as session:
                assert len((await session.exec(statement)).all()) == 1
            assert pool.free == 1
            await pool.close()
            pool = ConnectionPool(engine, size=1, queue_size=0, queue_timeout=60)
            async with AsyncPooledSession(pool=pool, autocommit=True, read=True) as session:
                with pytest.raises(SQLAlchemyError):
                    await session.exec(statement)
            await pool.close()

    async def test_who_waits_for_a_pool_that_is_terminated_reads_from_the_fallback(self, postgres_url: URL) -> None:
        async with serving(postgres_url, pool_size=2) as (_, sessionmaker):
            reads = sessionmaker.reads
            pool = ConnectionPool(reads.engine, size=1, queue_size=1, queue_timeout=60, fallback=reads)
            holder, waiter = (AsyncPooledSession(pool=pool, autocommit=True, read=True) for _ in range(2))
            await holder.exec(select(Hero))
            waiting = asyncio.create_task(waiter.exec(select(HEROES.c.id)))
            await asyncio.sleep(0)
            assert not pool.free
            pool.terminate(opened_before=0)
            assert (await waiting).all() == []
            for session in (holder, waiter):
                await session.finish()
            await pool.close()

    async def test_a_queue_that_is_full_does_not_lead_to_the_fallback(self, postgres_url: URL) -> None:
        async with serving(postgres_url, pool_size=2) as (_, sessionmaker):
            reads = sessionmaker.reads
            pool = ConnectionPool(reads.engine, size=1, queue_size=0, queue_timeout=60, fallback=reads)
            async with (
                AsyncPooledSession(pool=pool, autocommit=True, read=True) as holder,
                AsyncPooledSession(pool=pool, autocommit=True, read=True) as session,
            ):
                await holder.exec(select(Hero))
                with pytest.raises(QueueFullError):
                    await session.exec(select(HEROES.c.id))
            await pool.close()

    async def test_an_error_of_the_statement_does_not_lead_to_the_fallback(
        self, postgres: URL, postgres_url: URL
    ) -> None:
        async with serving(postgres_url, pool_size=2) as (_, sessionmaker):
            engine = build_engine(postgres, {})
            pool = ConnectionPool(engine, size=1, queue_size=0, queue_timeout=60, fallback=sessionmaker.reads)
            is_fallback = cast(func.current_database() != postgres.database, Integer)
            async with AsyncPooledSession(pool=pool, autocommit=True, read=True) as session:
                with pytest.raises(DBAPIError, match="division by zero"):
                    await session.exec(select(1 / is_fallback))
            await pool.close()

    async def test_a_connection_that_is_lost_leads_to_the_fallback(self, postgres: URL, postgres_url: URL) -> None:
        lose = select(func.pg_terminate_backend(func.pg_backend_pid()))
        async with serving(postgres_url, pool_size=2) as (_, sessionmaker):
            engine = build_engine(postgres, {})
            pool = ConnectionPool(engine, size=1, queue_size=0, queue_timeout=60, fallback=sessionmaker.reads)
            async with AsyncPooledSession(pool=pool, autocommit=True, read=True) as session:
                elsewhere = func.current_database() == postgres.database
                assert (await session.exec(lose.where(elsewhere))).all() == []
            await pool.close()
