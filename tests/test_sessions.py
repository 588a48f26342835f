"""When a handler gets its session, what is committed, and that all of it is over before the response starts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from inspect import signature
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from sqlalchemy import URL, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app.database import create_engine
from app.http import Router
from app.main import create_app
from app.sessions import ReadSessionDep, SessionDep, lending, transaction
from app.settings import Settings
from app.urls import is_sqlite
from tests.conftest import running
from tests.processes import PATIENCE

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}

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

router = Router(prefix="/ages")


@router.post("/increment")
async def increment(session: SessionDep) -> int:
    """Read, then write what was read and one more."""
    async with transaction(session):
        connection = await session.connection()
        lock = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""
        age = int((await connection.execute(text(f"SELECT age FROM hero WHERE id = 1{lock}"))).scalar_one())
        await asyncio.sleep(0.001)
        await connection.execute(text("UPDATE hero SET age = :age WHERE id = 1"), {"age": age + 1})
    return age + 1


@router.post("/refuse")
async def refuse(session: SessionDep) -> None:
    """Write, and then refuse."""
    async with transaction(session):
        await (await session.connection()).execute(text("UPDATE hero SET age = 99"))
        raise HTTPException(status_code=409)


async def oldest(session: ReadSessionDep) -> int | None:
    """A dependency that needs a session of its own."""
    age: int | None = (await (await session.connection()).execute(text("SELECT max(age) FROM hero"))).scalar_one()
    return age


@router.get("/oldest")
async def read_oldest(age: Annotated[int | None, Depends(lending(oldest))], session: SessionDep) -> list[int | None]:
    """Take what a dependency has read, and read it again."""
    return [age, await oldest(session)]


@router.get("/request")
async def read_request(asked: Request, session: ReadSessionDep) -> str:
    """Take both."""
    await oldest(session)
    return asked.url.path


async def run(url: URL, *statements: str) -> None:
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@asynccontextmanager
async def serving(url: URL, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with one hero, and with the operations above."""
    app = create_app(Settings(database_url=url, **settings))
    app.router.routes += router.routes
    async with running(app) as client:
        await client.post("/heroes/", json={**HERO, "age": 0})
        yield client


class Journal:
    """An app that writes down what its sessions run, and whether all are back when a response starts."""

    def __init__(self, app: FastAPI) -> None:
        """Wrap an app that is running."""
        self.app = app
        self.lines: list[str] = []
        self.sizes = {pool: pool.free for pool in (app.state.sessions.reads, app.state.sessions.writes)}
        for engine in {app.state.database.reads, app.state.database.writes}:
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: self.lines.append("execute"))
            event.listen(engine.sync_engine, "after_cursor_execute", lambda *_: self.lines.append("executed"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does."""

        async def note_and_send(message: Message) -> None:
            assert all(pool.free == size for pool, size in self.sizes.items())
            self.lines.append(message["type"].removeprefix("http."))
            await send(message)

        await self.app(scope, receive, note_and_send)

    def client(self) -> httpx.AsyncClient:
        """Make a client of the app."""
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


async def test_an_operation_is_one_statement_and_its_session_is_back_before_the_response_starts(app: FastAPI) -> None:
    async with running(app), (journal := Journal(app)).client() as client:
        for method, path, status in OPERATIONS:
            journal.lines.clear()
            assert (await client.request(method, path, json=HERO)).status_code == status
            assert journal.lines == ["execute", "executed", "response.start", "response.body"]


async def test_a_write_is_there_for_others_before_its_response_starts(app: FastAPI, url: URL) -> None:
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
            await client.post("/heroes/", json=HERO)
            await client.patch("/heroes/1", json={"age": 7})
            await client.delete("/heroes/1")
    hero = '{"name":"Deadpond","age":%s,"id":1}'
    assert seen == [f"[{hero % 'null'}]", f"[{hero % 7}]", "[]"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("GET", "/heroes/x")])
async def test_an_invalid_request_waits_for_no_session(app: FastAPI, method: str, path: str) -> None:
    async with running(app) as client, asyncio.timeout(PATIENCE):
        over = asyncio.Event()
        pools = {app.state.sessions.reads, app.state.sessions.writes}
        holds = [asyncio.create_task(pool.lend(lambda _: over.wait())) for pool in pools for _ in range(pool.free)]
        await asyncio.sleep(0)
        assert not any(pool.free for pool in pools)
        assert (await client.request(method, path, json={"name": 1})).status_code == 422
        over.set()
        await asyncio.gather(*holds)


async def test_a_commit_that_fails_is_no_success(url: URL) -> None:
    await run(url, *FAILING_COMMIT[url.get_backend_name()])
    async with running(create_app(Settings(database_url=url))) as client:
        assert (await client.post("/heroes/", json=HERO)).status_code == (409 if is_sqlite(url) else 500)
        assert (await client.get("/heroes/")).json() == []
        await run(url, "DROP TRIGGER fail" if is_sqlite(url) else "DROP TRIGGER fail ON hero")
        assert (await client.post("/heroes/", json=HERO)).status_code == 200


async def test_a_request_beyond_the_queue_is_told_at_once_to_come_back(url: URL) -> None:
    async with running(app := create_app(Settings(database_url=url, pool_size=1, queue_size=0))) as client:
        over = asyncio.Event()
        hold = asyncio.create_task(app.state.sessions.reads.lend(lambda _: over.wait()))
        await asyncio.sleep(0)
        refused = await client.get("/heroes/")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json() == {"detail": "Too many requests are waiting for the database."}
        assert (await client.get("/livez")).status_code == 200
        over.set()
        await hold
        assert (await client.get("/heroes/")).status_code == 200


class TestTransaction:
    async def test_what_it_reads_is_still_true_when_it_writes(self, url: URL) -> None:
        """Two processes' worth of writers. Without a lock from its beginning, SQLite loses or refuses most of these."""
        async with serving(url) as one, serving(url) as other:
            answers = await asyncio.gather(*(client.post("/ages/increment") for client in [one, other] * 30))
            assert sorted(answer.json() for answer in answers) == list(range(1, 61))

    async def test_it_is_undone_when_its_block_raises(self, url: URL) -> None:
        async with serving(url) as client:
            assert (await client.post("/ages/refuse")).status_code == 409
            assert (await client.get("/heroes/1")).json()["age"] == 0
            assert (await client.post("/ages/increment")).json() == 1

    async def test_its_connection_serves_on_when_its_block_raises(self, postgres_url: URL) -> None:
        async def pid(session: AsyncSession) -> int:
            return int((await (await session.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one())

        async def fail(session: AsyncSession) -> None:
            async with transaction(session):
                raise LookupError

        async with running(app := create_app(Settings(database_url=postgres_url, pool_size=1))):
            pool = app.state.sessions.writes
            before = await pool.lend(pid)
            with pytest.raises(LookupError):
                await pool.lend(fail)
            assert await pool.lend(pid) == before

    async def test_what_has_failed_within_it_is_not_committed_in_silence(self, url: URL) -> None:
        """Postgres has given the transaction up by then, and would answer COMMIT with a rollback and no error."""

        async def go_on(session: AsyncSession) -> None:
            async with transaction(session):
                connection = await session.connection()
                await connection.execute(text("UPDATE hero SET age = 7"))
                with suppress(SQLAlchemyError):
                    await connection.execute(text("INSERT INTO hero (id, name, secret_name) VALUES (1, 'x', 'x')"))

        async with running(app := create_app(Settings(database_url=url))) as client:
            await client.post("/heroes/", json=HERO)
            pool = app.state.sessions.writes
            try:
                await pool.lend(go_on)
            except SQLAlchemyError:
                assert (await client.get("/heroes/1")).json()["age"] is None
            else:
                assert (await client.get("/heroes/1")).json()["age"] == 7

    async def test_it_holds_no_other(self, url: URL) -> None:
        async def nest(session: AsyncSession) -> None:
            async with transaction(session), transaction(session):
                raise AssertionError("a transaction in a transaction")

        async with running(app := create_app(Settings(database_url=url))) as client:
            with pytest.raises(RuntimeError, match="transaction in a transaction"):
                await app.state.sessions.writes.lend(nest)
            assert (await client.post("/heroes/", json=HERO)).status_code == 200


class TestLending:
    async def test_a_handler_may_take_its_request_too(self, url: URL) -> None:
        async with serving(url) as client:
            assert (await client.get("/ages/request")).json() == "/ages/request"

    async def test_a_dependency_can_borrow_a_session_too(self, url: URL) -> None:
        async with serving(url, pool_size=1) as client, asyncio.timeout(PATIENCE):
            assert (await client.get("/ages/oldest")).json() == [0, 0]

    def test_a_handler_that_takes_no_session_stays_what_it_is(self) -> None:
        async def handler(hero_id: int) -> int:
            return hero_id

        assert lending(handler) is handler

    def test_an_endpoint_shows_the_parameters_of_its_handler_but_the_session(self) -> None:
        assert [*signature(lending(read_oldest)).parameters] == ["age", "lending_request"]
        assert lending(read_oldest).__doc__ == read_oldest.__doc__

    def test_a_handler_that_is_not_async_is_refused(self) -> None:
        def handler(session: SessionDep) -> None: ...

        with pytest.raises(TypeError, match="must be async"):
            lending(handler)

    def test_a_handler_that_takes_two_sessions_is_refused(self) -> None:
        async def handler(one: SessionDep, other: ReadSessionDep) -> None: ...

        with pytest.raises(TypeError, match="more than one session"):
            lending(handler)
