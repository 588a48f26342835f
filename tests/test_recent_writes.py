"""A client that has just written is told so by a cookie, if there is a replica. Here none answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import URL
from sqlmodel import select

from app.heroes.models import Hero
from app.main import create_app
from app.recent_writes import may_read_replica
from app.sessions import AutocommitSessionDep, ReadSessionDep, SessionDep, SessionMakerDep
from app.settings import Settings
from tests.support.app_client import running
from tests.support.backends import count_backends
from tests.support.heroes import DEADPOND
from tests.support.postgres_server import unreachable_url

COOKIE = "recent_write=1; Max-Age=6; Path=/; HttpOnly; SameSite=Lax"

router = APIRouter()


@router.get("/only-reads")
async def only_read(session: ReadSessionDep) -> None:
    await session.exec(select(Hero))


@router.get("/reads-and-writes")
async def read_and_write(_: ReadSessionDep, session: SessionDep) -> None:
    await session.exec(select(Hero))


@router.get("/autocommits")
async def autocommit(session: AutocommitSessionDep) -> None:
    await session.exec(select(Hero))


@router.post("/opens-sessions")
@router.get("/opens-sessions")
async def open_session(sessionmaker: SessionMakerDep) -> None:
    async with sessionmaker() as session:
        session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
        await session.commit()


def replicated_app(url: URL) -> FastAPI:
    """Create the app with a replica that nothing answers for."""
    replica_url = unreachable_url()
    app = create_app(Settings(database_url=url, database_replica_url=replica_url))
    app.include_router(router)
    return app


@asynccontextmanager
async def serving(url: URL) -> AsyncIterator[httpx.AsyncClient]:
    async with running(replicated_app(url)) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "header",
    [
        (b"cookie", b"a=b"),
        (b"cookie", b"no-cache"),
        (b"cache-control", b"max-age=01"),
        (b"cache-control", b"recent_write=1"),
        (b"x-note", b"recent_write=1, no-cache"),
    ],
)
def test_a_replica_may_answer_a_read(method: str, header: tuple[bytes, bytes]) -> None:
    assert may_read_replica({"method": method, "headers": [header]})


@pytest.mark.parametrize(
    "header",
    [
        (b"cookie", b"recent_write=1"),
        (b"cookie", b"a=b; recent_write=1; c=d"),
        (b"cache-control", b"no-cache"),
        (b"cache-control", b"no-store,Max-Age=0"),
    ],
)
def test_no_replica_answers_a_client_that_has_just_written_or_asks_for_what_is_new(header: tuple[bytes, bytes]) -> None:
    assert not may_read_replica({"method": "GET", "headers": [(b"cookie", b"a=b"), header]})


def test_no_replica_answers_an_unsafe_method_or_a_websocket() -> None:
    assert not may_read_replica({"method": "POST", "headers": []})
    assert not may_read_replica({"headers": []})


async def test_a_write_sets_the_cookie_for_longer_than_the_replica_may_be_behind(postgres_url: URL) -> None:
    async with serving(postgres_url) as client:
        response = await client.post("/heroes/", json=DEADPOND)
        assert response.headers.get_list("Set-Cookie") == [COOKIE]


async def test_a_write_that_fails_sets_the_cookie_because_it_may_have_been_committed(postgres_url: URL) -> None:
    async with serving(postgres_url) as client:
        response = await client.patch("/heroes/0", json={"age": 1})
        assert (response.status_code, response.headers.get("Set-Cookie")) == (404, COOKIE)


@pytest.mark.parametrize(
    ("path", "cookie"),
    [("/only-reads", None), ("/heroes/", None), ("/reads-and-writes", COOKIE), ("/autocommits", COOKIE)],
)
async def test_a_get_sets_the_cookie_if_its_session_can_write(postgres_url: URL, path: str, cookie: str | None) -> None:
    async with serving(postgres_url) as client:
        response = await client.get(path)
        assert (response.status_code, response.headers.get("Set-Cookie")) == (200, cookie)


@pytest.mark.parametrize(("method", "cookie"), [("POST", COOKIE), ("GET", None)])
async def test_an_unsafe_method_that_opens_sessions_sets_the_cookie(
    postgres_url: URL, method: str, cookie: str | None
) -> None:
    async with serving(postgres_url) as client:
        response = await client.request(method, "/opens-sessions")
        assert (response.status_code, response.headers.get("Set-Cookie")) == (200, cookie)


async def test_a_mounted_app_sets_the_cookie_once(postgres_url: URL) -> None:
    outer, inner = replicated_app(postgres_url), replicated_app(postgres_url)
    outer.mount("/inner", inner)
    async with running(outer) as client, inner.router.lifespan_context(inner):
        response = await client.post("/inner/heroes/", json=DEADPOND)
        assert response.headers.get_list("Set-Cookie") == [COOKIE]


async def test_without_a_replica_no_cookie_is_set(url: URL) -> None:
    async with running(create_app(Settings(database_url=url))) as client:
        assert "Set-Cookie" not in (await client.post("/heroes/", json=DEADPOND)).headers


async def test_without_a_replica_and_on_one_host_no_server_is_watched(postgres: URL, postgres_url: URL) -> None:
    async with running(create_app(Settings(database_url=postgres_url))) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert await count_backends(postgres, postgres_url) == 1  # that of the probes
