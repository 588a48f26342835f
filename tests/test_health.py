"""The probes of an orchestrator, when all is well and when the database is not there."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import URL

from app.main import create_app
from app.schema import TIME_LIMIT
from app.settings import Settings
from app.urls import parse_url
from tests.conftest import running
from tests.processes import PATIENCE, free_port


@pytest.fixture
async def silent() -> AsyncIterator[tuple[URL, list[asyncio.StreamWriter]]]:
    """A Postgres that takes connections and never says a word, and the connections that it took."""
    connections: list[asyncio.StreamWriter] = []

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", port := free_port())
    yield parse_url(f"postgresql://postgres@127.0.0.1:{port}/heroes?sslmode=disable"), connections
    for connection in connections:
        connection.close()
    server.close()
    await server.wait_closed()


async def test_all_is_well(client: httpx.AsyncClient) -> None:
    for path, answer in [("/livez", {"status": "alive"}), ("/readyz", {"status": "ready"})]:
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, answer)


async def test_a_database_that_refuses_makes_the_service_unready_and_leaves_it_alive() -> None:
    url = parse_url(f"postgresql://postgres@127.0.0.1:{free_port()}/heroes")
    async with running(create_app(Settings(database_url=url))) as client:
        response = await client.get("/readyz")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["detail"].startswith("The database does not answer")
        assert (await client.get("/heroes/")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


async def test_a_database_that_is_silent_makes_the_service_unready_in_time(
    silent: tuple[URL, list[asyncio.StreamWriter]],
) -> None:
    async with running(create_app(Settings(database_url=silent[0]))) as client:
        async with asyncio.timeout(4 * TIME_LIMIT):  # sooner than the driver gives up to connect
            answers = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {503}


async def test_liveness_asks_nobody(silent: tuple[URL, list[asyncio.StreamWriter]]) -> None:
    url, connections = silent
    async with running(create_app(Settings(database_url=url))) as client:
        before = len(connections)
        for _ in range(10):
            assert (await client.get("/livez")).status_code == 200
        assert len(connections) == before


async def test_readiness_waits_for_no_session(url: URL) -> None:
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client, asyncio.timeout(PATIENCE):
        sessions = app.state.sessions
        over = asyncio.Event()
        holds = [asyncio.create_task(pool.lend(lambda _: over.wait())) for pool in {sessions.reads, sessions.writes}]
        await asyncio.sleep(0)
        assert sessions.reads.free == sessions.writes.free == 0
        assert (await client.get("/readyz")).status_code == 200
        over.set()
        await asyncio.gather(*holds)
