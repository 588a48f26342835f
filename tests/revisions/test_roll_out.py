"""Upgrades and roll-outs under load: no request fails."""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy import URL, text

from app.database import build_engine
from app.main import create_app
from app.schema import read_revisions
from app.sessions import SessionDep
from app.settings import Settings
from tests.revisions.rollout import Load, two_workers
from tests.support.alembic_commands import HEAD, SCRIPT, alembic, migrate
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.project import copy_project
from tests.support.service import Service, running_service
from tests.support.sql import execute, run_in_transaction

OPERATIONS = [
    ("POST", "/heroes/", DEADPOND),
    ("GET", "/heroes/", None),
    ("GET", "/heroes/1", None),
    ("PATCH", "/heroes/1", {"age": 7}),
    ("DELETE", "/heroes/{}", None),
]
CONNECTIONS = 10
ID_CHANGES = ("ALTER TABLE hero ALTER COLUMN id TYPE integer", "ALTER TABLE hero ALTER COLUMN id TYPE bigint")
CHANGES = (
    "ALTER TABLE hero ALTER COLUMN name TYPE text",
    "ALTER TABLE hero ALTER COLUMN name TYPE varchar",
    "ALTER TABLE hero ALTER COLUMN age TYPE bigint",
    "ALTER TABLE hero ALTER COLUMN age TYPE integer",
)
COUNTS = text("SELECT (SELECT count(*) FROM hero), (SELECT count(*) FROM deed)")
COUNTED_AND_REFUSED = (
    "CREATE SEQUENCE tries",
    (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM nextval(''tries''); RAISE EXCEPTION ''no'' USING ERRCODE = ''40P01''; END'"
    ),
    "CREATE TRIGGER refuse BEFORE INSERT ON hero FOR EACH ROW EXECUTE FUNCTION refuse()",
)
TRIES = text("SELECT last_value FROM tries")
LOCKS = text(
    "SELECT count(*) FILTER (WHERE granted AND mode = 'AccessExclusiveLock'), count(*) FILTER (WHERE NOT granted)"
    " FROM pg_locks WHERE relation = 'hero'::regclass"
)


def client_of(worker: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{worker.port}", timeout=TIMEOUT)


@pytest.mark.slow
class TestUnderLoad:
    async def test_a_release_serves_while_the_next_one_expands_backfills_and_indexes(
        self, url: URL, tmp_path: Path
    ) -> None:
        """From rename_4 on, a release that does not write aliases is refused, as expand and contract requires."""
        with two_workers(url, tmp_path) as workers:
            async with Load(url, *workers) as load:
                await load.make_progress()
                await asyncio.to_thread(alembic, url, "-c", "docs/rename/alembic.ini", "upgrade", "rename_3")
                await load.make_progress()
            for worker in workers:
                async with client_of(worker) as client:
                    assert (await client.get("/readyz")).status_code == 200
        assert await asyncio.to_thread(run_in_transaction, url, read_revisions) == {"rename_3"}
        await asyncio.to_thread(load.assert_nothing_failed_or_was_lost)

    async def test_a_release_that_needs_an_earlier_revision_serves_during_later_ones(
        self, empty_url: URL, tmp_path: Path
    ) -> None:
        """Its code is the current one, which does not need the newest indexes and the table of keys."""
        project = copy_project(tmp_path / "release", "bench", "docs", "tests")
        for step in SCRIPT.iterate_revisions(HEAD, "0004"):
            (project / "migrations/versions" / Path(step.path).name).unlink()
        await asyncio.to_thread(migrate, empty_url, "0004")
        with two_workers(empty_url, tmp_path, project) as workers:
            async with Load(empty_url, *workers) as load:
                await load.make_progress()
                await asyncio.to_thread(alembic, empty_url, "upgrade", "head")
                await load.make_progress()
        assert await asyncio.to_thread(run_in_transaction, empty_url, read_revisions) == {HEAD}
        await asyncio.to_thread(load.assert_nothing_failed_or_was_lost)

    async def test_requests_succeed_while_column_types_change_and_change_back(
        self, postgres_url: URL, tmp_path: Path
    ) -> None:
        with two_workers(postgres_url, tmp_path) as workers:
            async with Load(postgres_url, *workers) as load:
                for statement in CHANGES:
                    await load.make_progress()
                    await asyncio.to_thread(execute, postgres_url, statement)
                await load.make_progress()
        await asyncio.to_thread(load.assert_nothing_failed_or_was_lost)

    async def test_workers_are_replaced_one_by_one_by_a_release_with_another_column(
        self, url: URL, tmp_path: Path
    ) -> None:
        project = copy_project(tmp_path / "release", "bench", "docs", "tests")
        models = project / "app/heroes/models.py"
        age = '    age: int | None = Field(default=None, description="The age in years, if it is known.")\n'
        assert models.read_text().count(age) == 1
        models.write_text(models.read_text().replace(age, f"{age}    power: str | None = None\n"))
        await asyncio.to_thread(alembic, url, "revision", "--autogenerate", "-m", "Add power", cwd=project)
        with ExitStack() as stack:
            old = stack.enter_context(two_workers(url, tmp_path))
            new = []
            async with Load(url, *old) as load:
                await load.make_progress()
                await asyncio.to_thread(alembic, url, "upgrade", "head", cwd=project)
                await load.make_progress()
                for worker in old:
                    await load.remove_worker(worker)
                    worker.process.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(worker.process.wait, TIMEOUT) == -signal.SIGTERM
                    replacement = running_service(url, tmp_path / "new.log", "--app-dir", str(project))
                    new.append(await asyncio.to_thread(stack.enter_context, replacement))
                    await load.add_worker(new[-1])
                    await load.make_progress()
            for worker in new:
                async with client_of(worker) as client:
                    assert (await client.get("/heroes/1")).json()["power"] is None
        await asyncio.to_thread(load.assert_nothing_failed_or_was_lost)


class Lock:
    """A transaction that locks the table `hero` exclusively, and holds the lock until `commit`."""

    def __init__(self, url: URL, statement: str) -> None:
        self._url, self._statement = url, statement
        self._committing = asyncio.Event()
        self._task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        engine = build_engine(self._url, {})
        async with asyncio.timeout(TIMEOUT), engine.begin() as connection:
            await connection.execute(text(self._statement))
            await self._committing.wait()

    async def commit(self) -> None:
        """Commit, and wait for the end of the transaction."""
        self._committing.set()
        await self._task


async def queue_is(url: URL, *, held: int, waiting: int) -> None:
    """Wait until so many transactions hold an exclusive lock on the table, and so many wait for it."""
    engine = build_engine(url, {}, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:

        async def reached() -> bool:
            return tuple((await connection.execute(LOCKS)).one()) == (held, waiting)

        await wait_until_async(reached)


async def at_once(url: URL, statement: str, requests: Sequence[Awaitable[httpx.Response]]) -> list[httpx.Response]:
    """Run a statement that locks the table, and commit it when all requests wait for it."""
    lock = Lock(url, statement)
    await queue_is(url, held=1, waiting=0)
    sent = [asyncio.ensure_future(request) for request in requests]
    await queue_is(url, held=1, waiting=len(sent))
    await lock.commit()
    return await asyncio.gather(*sent)


@pytest.fixture
async def warm(postgres_url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app in which every connection has prepared every statement."""
    async with running(create_app(Settings(database_url=postgres_url, pool_size=2 * CONNECTIONS))) as client:
        for method, path, body in OPERATIONS:
            requests = [client.request(method, path.format(0), json=body) for _ in range(CONNECTIONS)]
            answers = await at_once(postgres_url, "LOCK TABLE hero", requests)
            assert {answer.status_code for answer in answers} == {404 if method == "DELETE" else 200}
        yield client


class TestPreparedStatements:
    """All statements but the list return the id: after a change of its type, Postgres rejects the prepared ones."""

    async def test_the_first_request_of_each_operation_after_a_type_change_succeeds(
        self, warm: httpx.AsyncClient, postgres_url: URL
    ) -> None:
        for statement, (method, path, body) in zip(itertools.cycle(ID_CHANGES), OPERATIONS, strict=False):
            await asyncio.to_thread(execute, postgres_url, statement)
            assert (await warm.request(method, path.format(2), json=body)).status_code == 200

    async def test_requests_that_wait_for_a_type_change_succeed_and_run_once(
        self, warm: httpx.AsyncClient, postgres_url: URL
    ) -> None:
        requests = [
            warm.request(method, path.format(hero), json=body) for method, path, body in OPERATIONS for hero in (2, 3)
        ]
        answers = await at_once(postgres_url, ID_CHANGES[0], requests)
        assert [answer.status_code for answer in answers] == [200] * CONNECTIONS
        created = [answer.json()["id"] for answer in answers[:2]]
        there = [hero["id"] for hero in (await warm.get("/heroes/")).json()]
        assert there == [1, *range(4, CONNECTIONS + 1), *sorted(created)]

    @pytest.mark.parametrize("seen_before", [0, 1])
    async def test_a_write_between_two_type_changes_runs_once(self, postgres_url: URL, seen_before: int) -> None:
        """On a connection that has seen a change, the driver cleans up between preparing and executing."""
        changes = itertools.cycle(ID_CHANGES)
        async with running(create_app(Settings(database_url=postgres_url, pool_size=1))) as client:
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
            for _ in range(seen_before):
                await asyncio.to_thread(execute, postgres_url, next(changes))
                assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
            before = Lock(postgres_url, next(changes))
            await queue_is(postgres_url, held=1, waiting=0)
            posting = asyncio.create_task(client.post("/heroes/", json=DEADPOND))
            await queue_is(postgres_url, held=1, waiting=1)
            between = Lock(postgres_url, next(changes))
            await queue_is(postgres_url, held=1, waiting=2)
            await before.commit()  # the first try is rejected now, and the second waits for the next change
            await queue_is(postgres_url, held=1, waiting=1)
            after = Lock(postgres_url, next(changes))
            await queue_is(postgres_url, held=1, waiting=2)
            await between.commit()
            await after.commit()
            assert (await posting).status_code == 200
            assert len((await client.get("/heroes/")).json()) == 1 + seen_before + 1

    async def test_a_statement_that_fails_for_another_reason_is_not_executed_again(self, postgres_url: URL) -> None:
        await asyncio.to_thread(execute, postgres_url, *COUNTED_AND_REFUSED)
        async with running(create_app(Settings(database_url=postgres_url))) as client:
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 503
        tries = await asyncio.to_thread(run_in_transaction, postgres_url, lambda connection: connection.scalar(TRIES))
        assert tries == 1

    async def test_a_type_change_during_a_transaction_rolls_it_back(self, postgres_url: URL) -> None:
        half_done, go_on = asyncio.Event(), asyncio.Event()
        router = APIRouter(prefix="/deeds")

        @router.post("/")
        async def add_hero_with_deed(session: SessionDep) -> None:
            connection = await session.connection()
            await connection.execute(text("INSERT INTO hero (name, secret_name) VALUES ('x', 'x') RETURNING id"))
            half_done.set()
            await go_on.wait()
            await connection.execute(text("INSERT INTO deed VALUES ('x') RETURNING name"))
            await session.commit()

        async def rows() -> tuple[Any, ...]:
            return tuple(
                await asyncio.to_thread(
                    run_in_transaction, postgres_url, lambda connection: connection.execute(COUNTS).one()
                )
            )

        await asyncio.to_thread(execute, postgres_url, "CREATE TABLE deed (name varchar)")
        app = create_app(Settings(database_url=postgres_url, pool_size=1))
        app.include_router(router)
        async with running(app) as client, asyncio.timeout(TIMEOUT):
            go_on.set()
            assert (await client.post("/deeds/")).status_code == 200
            half_done.clear()
            go_on.clear()
            adding = asyncio.create_task(client.post("/deeds/"))
            await half_done.wait()
            await asyncio.to_thread(execute, postgres_url, "ALTER TABLE deed ALTER COLUMN name TYPE text")
            go_on.set()
            refused = await adding
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert await rows() == (1, 1)
            assert (await client.post("/deeds/")).status_code == 200
            assert await rows() == (2, 2)
