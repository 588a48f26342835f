"""Liveness and readiness, with and without a database."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import URL

import app.slots
from app.main import create_app
from app.schema import TIME_LIMIT
from app.settings import Settings
from app.urls import parse_url
from tests.support.app_client import running
from tests.support.polling import wait_until_async
from tests.support.postgres_server import unreachable_url
from tests.support.processes import TIMEOUT, free_port


@pytest.fixture
async def unresponsive() -> AsyncIterator[tuple[URL, list[asyncio.StreamWriter]]]:
    """The URL of a Postgres that accepts connections and never responds, and the connections it accepted."""
    connections: list[asyncio.StreamWriter] = []

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", port := free_port())
    yield parse_url(f"postgresql://postgres@127.0.0.1:{port}/heroes?sslmode=disable"), connections
    for connection in connections:
        connection.close()
    server.close()
    await server.wait_closed()


async def test_a_service_with_a_database_is_alive_and_ready(client: httpx.AsyncClient) -> None:
    for path, body in [("/livez", {"status": "alive"}), ("/readyz", {"status": "ready"})]:
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, body)


async def test_a_service_whose_database_refuses_connections_is_alive_and_not_ready() -> None:
    async with running(create_app(Settings(database_url=unreachable_url()))) as client:
        response = await client.get("/readyz")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["detail"].startswith("The database does not answer")
        assert (await client.get("/heroes/")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


async def test_a_service_whose_database_does_not_respond_is_not_ready_within_the_time_limit(
    unresponsive: tuple[URL, list[asyncio.StreamWriter]],
) -> None:
    async with running(create_app(Settings(database_url=unresponsive[0]))) as client:
        async with asyncio.timeout(4 * TIME_LIMIT):  # before the driver's own connect timeout
            responses = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        assert {response.status_code for response in responses} == {503}


async def test_liveness_opens_no_database_connection(unresponsive: tuple[URL, list[asyncio.StreamWriter]]) -> None:
    url, connections = unresponsive
    async with running(create_app(Settings(database_url=url))) as client:
        before = len(connections)
        for _ in range(10):
            assert (await client.get("/livez")).status_code == 200
        assert len(connections) == before


async def test_readiness_does_not_wait_for_a_pooled_connection(url: URL) -> None:
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client, asyncio.timeout(TIMEOUT):
        pools = {app.state.sessionmaker.reads, app.state.sessionmaker.writes}
        acquired = [(pool, await pool.acquire()) for pool in pools]
        assert not any(pool.free for pool in pools)
        assert (await client.get("/readyz")).status_code == 200
        for pool, connection in acquired:
            pool.release(connection)


async def test_readiness_is_independent_of_the_bounds_of_the_queue(postgres_url: URL) -> None:
    app = create_app(Settings(database_url=postgres_url, pool_size=2, queue_size=0))
    async with app.router.lifespan_context(app):  # its check of the capacity has just begun
        await app.state.sessionmaker.check()
    async with running(app) as client:
        for _ in range(20):  # the connection that is idle may be taken in the same moment
            first, ready, second = await asyncio.gather(
                *(client.get(path) for path in ("/heroes/", "/readyz", "/heroes/"))
            )
            assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
            assert {first.status_code, second.status_code} <= {200, 503}


async def test_a_service_whose_requests_get_no_connection_is_not_ready(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.slots, "STALL_TIMEOUT", 0)
    service = create_app(Settings(database_url=url, pool_size=1))
    async with running(service) as client, asyncio.timeout(TIMEOUT):

        async def is_stalled() -> bool:
            response = await client.get("/readyz")
            return response.status_code == 503 and "No database connection becomes free." in response.text

        reads = service.state.sessionmaker.reads
        acquired = await reads.acquire()
        waiting = asyncio.create_task(client.get("/heroes/"))
        await wait_until_async(is_stalled)
        reads.release(acquired)
        assert (await waiting).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
