"""A session does what SQLAlchemy documents, keeps what is committed, and leaves nothing to the next request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from sqlalchemy import URL, event, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app.heroes.models import Hero
from app.main import create_app
from app.sessions import AutocommitSessionDep, ReadSessionDep, SessionDep
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.app_client import running
from tests.support.backends import count_backends, wait_for_backends, wait_until_asleep
from tests.support.heroes import DEADPOND
from tests.support.processes import TIMEOUT
from tests.support.sessions import (
    HEROES,
    add_heroes,
    deadpond,
    fetch_ages,
    pools_of,
    run,
    serving,
)

# What makes a COMMIT fail, after the statement itself has succeeded.
FAILING_COMMIT = {
    "sqlite": [
        "CREATE TABLE nobody (id INTEGER PRIMARY KEY)",
        "CREATE TABLE late (id INTEGER REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER fail AFTER INSERT ON hero BEGIN INSERT INTO late VALUES (NEW.id); END",
    ],
    "postgresql": [
        "CREATE FUNCTION fail() RETURNS trigger AS 'BEGIN RAISE EXCEPTION ''no''; END' LANGUAGE plpgsql",
        (
            "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON hero"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()"
        ),
    ],
}
PID = text("SELECT pg_backend_pid()")


async def increment(session: SessionDep) -> int:
    """Read, then write what was read and one more."""
    statement = select(Hero).where(Hero.id == 1).with_for_update()
    hero = (await session.exec(statement)).one()
    await asyncio.sleep(0.001)
    hero.age = (hero.age or 0) + 1
    await session.commit()
    return hero.age


async def get_current_user(session: ReadSessionDep) -> Hero:
    """Load the user of a request."""
    hero = await session.get(Hero, 1)
    assert hero is not None
    return hero


async def get_writable_user(session: SessionDep) -> Hero:
    """Load the user of a request."""
    return await get_current_user(session)


CurrentUser = Annotated[Hero, Depends(get_current_user)]
WritableUser = Annotated[Hero, Depends(get_writable_user)]


async def age_user(user: CurrentUser, session: SessionDep) -> int | None:
    user.age = 66
    await session.commit()
    return user.age


async def age_writable_user(session: SessionDep, user: WritableUser) -> int | None:
    return await age_user(user, session)


async def touch_user(user: CurrentUser, session: AutocommitSessionDep) -> int | None:
    return await age_user(user, session)


async def mix(one: SessionDep, other: AutocommitSessionDep) -> bool:
    return one is other


async def mix_after_reading(_: ReadSessionDep, one: SessionDep, other: AutocommitSessionDep) -> bool:
    return one is other


async def begin_to_read(session: ReadSessionDep) -> AsyncIterator[None]:
    async with session.begin():
        await session.exec(select(Hero))
        yield


async def write_meanwhile(_: Annotated[None, Depends(begin_to_read)], session: SessionDep) -> None:
    await session.exec(insert(HEROES).values(**DEADPOND))


class TestRequest:
    async def test_a_dependency_and_its_handler_share_one_session(self, url: URL) -> None:
        await add_heroes(url, 55)
        async with serving(url, age_user, age_writable_user, touch_user) as (client, _):
            for path in ("/age_user", "/age_writable_user", "/touch_user"):
                await run(url, "UPDATE hero SET age = 55")
                assert (await client.post(path)).json() == 66
                assert await fetch_ages(url) == [66]

    async def test_a_session_for_both_transactions_and_autocommit_is_refused_with_what_to_do(
        self, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(url, mix, mix_after_reading, write_meanwhile) as (client, _):
            for path in ("/mix", "/mix_after_reading", "/write_meanwhile"):
                caplog.clear()
                assert (await client.post(path)).status_code == 500
                assert "let all of its dependencies take SessionDep" in caplog.text

    @pytest.mark.parametrize("size", [1, 2])
    async def test_fifty_requests_that_read_and_write_do_not_deadlock(self, url: URL, size: int) -> None:
        await add_heroes(url, 55)
        async with serving(url, age_user, pool_size=size, queue_timeout=TIMEOUT) as (client, _):
            responses = await asyncio.gather(*(client.post("/age_user") for _ in range(50)))
            assert {response.status_code for response in responses} == {200}

    async def test_what_a_transaction_reads_is_still_true_when_it_writes(self, url: URL) -> None:
        """Two processes' worth of writers. Without a lock from its beginning, SQLite loses or refuses most of these."""
        await add_heroes(url, 0)
        async with serving(url, increment) as (one, _), serving(url, increment) as (other, _):
            responses = await asyncio.gather(*(client.post("/increment") for client in [one, other] * 30))
            assert sorted(response.json() for response in responses) == list(range(1, 61))

    async def test_a_refused_request_keeps_nothing(self, url: URL) -> None:
        async def refuse(session: SessionDep) -> None:
            session.add(deadpond())
            await session.flush()
            raise HTTPException(status_code=400)

        async def refuse_in_a_transaction(session: AutocommitSessionDep) -> None:
            async with session.begin():
                await session.exec(insert(HEROES).values(**DEADPOND))
                raise HTTPException(status_code=400)

        async with serving(url, refuse, refuse_in_a_transaction) as (client, _):
            assert (await client.post("/refuse")).status_code == 400
            assert (await client.post("/refuse_in_a_transaction")).status_code == 400
            assert await fetch_ages(url) == []

    async def test_a_failed_request_keeps_nothing(self, url: URL) -> None:
        async def fail(session: SessionDep) -> None:
            await session.exec(update(HEROES).values(age=2))
            await session.exec(update(HEROES).values(name=None))

        await add_heroes(url, 1)
        async with serving(url, fail) as (client, _):
            assert (await client.post("/fail")).status_code == 422
            assert await fetch_ages(url) == [1]

    async def test_what_a_request_leaves_in_its_session_is_not_in_the_next(self, url: URL) -> None:
        held: list[Any] = []  # a session forgets by itself what nobody holds

        async def leave(session: SessionDep) -> None:
            session.info["user"] = "Deadpond"
            held.append(await session.get(Hero, 1))
            held[-1].age = 7
            session.add(deadpond())

        async def swallow(session: SessionDep) -> None:
            values: dict[str, Any] = {"name": "Deadpond"}  # no secret_name: the database refuses it
            session.add(Hero(**values))
            with suppress(IntegrityError):
                await session.flush()

        async def find(session: SessionDep) -> list[int | None]:
            assert not session.info
            assert not session.identity_map.values()
            assert not session.new
            return [hero.age for hero in await session.exec(select(Hero))]

        await add_heroes(url, 1)
        async with serving(url, leave, swallow, find) as (client, _):
            for dirty in ("/leave", "/swallow"):
                assert (await client.post(dirty)).status_code == 200
                assert (await client.post("/find")).json() == [1]

    async def test_a_commit_that_fails_is_no_success(self, url: URL) -> None:
        async def create(session: SessionDep) -> None:
            session.add(deadpond())
            await session.commit()

        await run(url, *FAILING_COMMIT[url.get_backend_name()])
        async with serving(url, create) as (client, _):
            for path in ("/heroes/", "/create"):
                response = await client.post(path, json=DEADPOND)
                assert response.status_code == (409 if is_sqlite(url) else 500)
            assert await fetch_ages(url) == []
            await run(url, "DROP TRIGGER fail" if is_sqlite(url) else "DROP TRIGGER fail ON hero")
            assert (await client.post("/create")).status_code == 200

    async def test_a_request_beyond_the_queue_is_refused_at_once(self, url: URL) -> None:
        async def take(session: ReadSessionDep) -> int:
            return len((await session.exec(select(HEROES.c.id))).all())

        async with serving(url, take, queue_size=0) as (client, sessionmaker):
            async with sessionmaker(read=True) as session:
                await session.exec(select(Hero))
                for method, path in (("GET", "/heroes/"), ("POST", "/take")):
                    refused = await client.request(method, path)
                    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
                    assert "Too many requests" in refused.json()["detail"]
                assert (await client.get("/livez")).status_code == 200
            assert (await client.post("/take")).json() == 0

    @pytest.mark.parametrize(("method", "path"), [("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("GET", "/heroes/x")])
    async def test_an_invalid_request_waits_for_no_connection(self, url: URL, method: str, path: str) -> None:
        async with (
            serving(url) as (client, sessionmaker),
            asyncio.timeout(TIMEOUT),
            sessionmaker() as writer,
            sessionmaker(read=True) as reader,
        ):
            await writer.exec(select(Hero))
            if is_sqlite(url):
                await reader.exec(select(Hero))
            assert not any(pool.free for pool in pools_of(sessionmaker))
            assert (await client.request(method, path, json={"name": 1})).status_code == 422


class TestAfterTheRequest:
    """A session that is used after its request is an error, and never touches the connection of another one."""

    async def test_it_is_an_error_in_a_background_task_in_a_generator_and_in_a_global(self, url: URL) -> None:
        kept: list[AsyncSession] = []
        errors: list[str] = []

        async def use(session: AsyncSession, *, orm: bool) -> None:
            try:
                await session.exec(select(Hero) if orm else select(HEROES.c.id))
            except InvalidRequestError as error:
                errors.append(str(error))

        async def keep(session: SessionDep, tasks: BackgroundTasks) -> StreamingResponse:
            kept.append(session)
            await session.exec(select(Hero))

            async def stream() -> AsyncIterator[bytes]:
                await use(session, orm=True)
                yield b"x"

            tasks.add_task(use, session, orm=True)
            return StreamingResponse(stream())

        async def keep_reading(session: ReadSessionDep, tasks: BackgroundTasks) -> None:
            kept.append(session)
            tasks.add_task(use, session, orm=True)
            tasks.add_task(use, session, orm=False)

        async with serving(url, keep, keep_reading) as (client, sessionmaker):
            await client.post("/keep")
            await client.post("/keep_reading")
            for session in kept:
                for orm in (False, True):
                    await use(session, orm=orm)
                with pytest.raises(InvalidRequestError, match="ended with its request"):
                    await session.get(Hero, 1)
                session.add(deadpond())
                with pytest.raises(InvalidRequestError, match="ended with its request"):
                    await session.commit()
            assert sessionmaker.writes.free == 1
        assert len(errors) == 8
        assert all("`async with request.app.state.sessionmaker() as session`" in error for error in errors)

    @pytest.mark.parametrize("orm", [False, True])
    async def test_a_task_that_still_waits_for_a_connection_gets_none(self, url: URL, *, orm: bool) -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def start(session: AutocommitSessionDep) -> None:
            statement: Any = select(Hero) if orm else select(HEROES.c.id)
            tasks.append(asyncio.create_task(session.exec(statement)))
            await asyncio.sleep(0)

        async with serving(url, start) as (client, sessionmaker):
            async with sessionmaker() as holder:
                await holder.exec(select(Hero))
                assert (await client.post("/start")).status_code == 200
                assert not tasks[0].done()
            with pytest.raises(InvalidRequestError, match="ended with its request"):
                await tasks[0]

    @pytest.mark.parametrize("autocommit", [False, True])
    async def test_a_task_that_still_executes_shares_its_connection_with_nobody(
        self, postgres: URL, postgres_url: URL, *, autocommit: bool
    ) -> None:
        async with serving(postgres_url) as (_, sessionmaker):
            with suppress(DBAPIError):  # a transaction can't be rolled back meanwhile: an error of its own
                async with sessionmaker(autocommit=autocommit) as session:
                    sleeping = asyncio.create_task(session.scalar(text("SELECT pg_sleep(20)")))
                    await wait_until_asleep(postgres, postgres_url)
            async with sessionmaker() as session, session.begin():
                session.add(deadpond(age=1))
                await session.flush()
                await asyncio.wait({sleeping})
                assert await session.scalar(text("SELECT 7")) == 7
            sleeping.exception()
            assert await fetch_ages(postgres_url) == [1]


class Journal:
    """An app that records what its sessions execute, and whether all connections are free when a response starts."""

    def __init__(self, app: FastAPI) -> None:
        """Wrap an app that is running."""
        self.app = app
        self.lines: list[str] = []
        self.sizes = {pool: pool.free for pool in pools_of(app.state.sessionmaker)}
        for engine in {app.state.sessionmaker.database.reads, app.state.sessionmaker.database.writes}:
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: self.lines.append("execute"))
            event.listen(engine.sync_engine, "after_cursor_execute", lambda *_: self.lines.append("executed"))
            event.listen(engine.sync_engine, "commit", lambda *_: self.lines.append("commit"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as the app does."""

        async def record_and_send(message: Message) -> None:
            assert all(pool.free == size for pool, size in self.sizes.items())
            self.lines.append(message["type"].removeprefix("http."))
            await send(message)

        await self.app(scope, receive, record_and_send)

    def client(self) -> httpx.AsyncClient:
        """Create a client of the app."""
        transport = httpx.ASGITransport(self, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://heroes.test")


OPERATIONS = [
    ("POST", "/heroes/", 200),
    ("GET", "/heroes/", 200),
    ("GET", "/heroes/1", 200),
    ("PATCH", "/heroes/1", 200),
    ("DELETE", "/heroes/1", 200),
    ("DELETE", "/heroes/1", 404),
]


class TestResponse:
    async def test_an_operation_is_one_statement_and_releases_its_connection_before_the_response_starts(
        self, app: FastAPI
    ) -> None:
        async with running(app), (journal := Journal(app)).client() as client:
            for method, path, status in OPERATIONS:
                journal.lines.clear()
                assert (await client.request(method, path, json=DEADPOND)).status_code == status
                assert [line for line in journal.lines if line != "commit"] == [
                    "execute",
                    "executed",
                    "response.start",
                    "response.body",
                ]

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_transaction_is_over_before_the_response_starts(self, app: FastAPI, *, fails: bool) -> None:
        router = APIRouter()

        @router.post("/create")
        async def create(session: SessionDep) -> None:
            session.add(deadpond())
            await session.commit()
            await session.exec(select(Hero))  # begins another one, and leaves it
            if fails:
                raise HTTPException(status_code=400)

        app.include_router(router)
        async with running(app), (journal := Journal(app)).client() as client:
            assert (await client.post("/create")).status_code == (400 if fails else 200)
            assert journal.lines[-2:] == ["response.start", "response.body"]
            assert "commit" in journal.lines[:-2]

    async def test_a_write_is_visible_to_others_before_its_response_starts(self, app: FastAPI, url: URL) -> None:
        async with running(app), running(create_app(Settings(database_url=url))) as other:
            seen = []

            async def look_before_response(scope: Scope, receive: Receive, send: Send) -> None:
                async def look_and_send(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        seen.append((await other.get("/heroes/")).text)
                    await send(message)

                await app(scope, receive, look_and_send)

            transport = httpx.ASGITransport(look_before_response)
            async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
                await client.post("/heroes/", json=DEADPOND)
                await client.patch("/heroes/1", json={"age": 7})
                await client.delete("/heroes/1")
        hero = '{"name":"Deadpond","age":%s,"id":1}'
        assert seen == [f"[{hero % 'null'}]", f"[{hero % 7}]", "[]"]


async def test_an_app_that_has_stopped_has_no_connection(postgres_url: URL, postgres: URL) -> None:
    async with running(create_app(Settings(database_url=postgres_url))) as client:
        assert (await client.get("/heroes/")).status_code == 200
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        assert await count_backends(postgres, postgres_url) > 0
    await wait_for_backends(postgres, postgres_url, most=0)
