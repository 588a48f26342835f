"""The number of database round trips of each operation. On Postgres each costs a network latency."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from sqlalchemy import URL, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app import idempotency
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND

BUDGET = [
    ("POST", "/heroes/", 200, 1),
    ("GET", "/heroes/", 200, 1),
    ("GET", "/heroes/{id}", 200, 1),
    ("PATCH", "/heroes/{id}", 200, 1),
    ("DELETE", "/heroes/{id}", 200, 1),
    ("GET", "/heroes/{id}", 404, 1),
    ("PATCH", "/heroes/{id}", 404, 1),
    ("DELETE", "/heroes/{id}", 404, 1),
    ("GET", "/heroes/x", 422, 0),
    ("PUT", "/heroes/9", 405, 0),
    ("GET", "/livez", 200, 0),
]
READY_FOR_QUERY = b"Z\0\0\0\5"  # the message that ends each response of the server


class CountingProxy:
    """A TCP proxy in front of a Postgres server that counts round trips."""

    def __init__(self, url: URL) -> None:
        """Forward to the server of this URL."""
        self.url = url
        self.round_trips = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions."""
        host, port = str(self.url.host or self.url.query["host"]), self.url.port or 5432
        server_reader, server_writer = (
            await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if host.startswith("/")
            else await asyncio.open_connection(host, port)
        )
        await asyncio.gather(self.copy(reader, server_writer), self.copy(server_reader, writer))

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy one direction until it is closed."""
        tail = b""
        while sent := await reader.read(65536):
            self.round_trips += (tail + sent).count(READY_FOR_QUERY)
            tail = sent[-(len(READY_FOR_QUERY) - 1) :]
            writer.write(sent)
        writer.close()


@asynccontextmanager
async def counting_proxy(url: URL) -> AsyncIterator[tuple[URL, CountingProxy]]:
    """Yield a URL for the same database through a counting proxy, and the proxy."""
    proxy = CountingProxy(url)
    async with await asyncio.start_server(proxy.forward, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield url.set(host=host, port=port, query={"sslmode": "disable"}), proxy


async def run_operations(
    client: httpx.AsyncClient, hero_id: int, count: Callable[[], int]
) -> list[tuple[str, str, int, int]]:
    """Run every operation of the budget on one hero, and return their actual costs."""
    costs = []
    for method, path, *_ in BUDGET:
        before = count()
        response = await client.request(method, path.format(id=hero_id), json=DEADPOND)
        costs.append((method, path, response.status_code, count() - before))
    return costs


async def test_an_operation_on_postgres_is_one_round_trip(postgres_url: URL) -> None:
    async with (
        counting_proxy(postgres_url) as (url, proxy),
        running(create_app(Settings(database_url=url, pool_size=1))) as client,
    ):
        await run_operations(client, 1, lambda: proxy.round_trips)  # prepares each statement on the connection
        assert await run_operations(client, 2, lambda: proxy.round_trips) == BUDGET


async def test_behind_a_pooler_an_operation_on_postgres_is_begin_a_statement_and_commit(postgres_url: URL) -> None:
    """The description of the statement is a fourth round trip, which is not counted: ReadyForQuery doesn't end it."""
    budget = [(method, path, status, 3 * trips) for method, path, status, trips in BUDGET]
    async with (
        counting_proxy(postgres_url) as (url, proxy),
        running(create_app(Settings(database_url=url, pool_size=1, database_pooler="transaction"))) as client,
    ):
        await run_operations(client, 1, lambda: proxy.round_trips)
        assert await run_operations(client, 2, lambda: proxy.round_trips) == budget


async def test_a_keyed_post_on_postgres_is_five_round_trips_and_a_replay_four(
    postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of the key, the hero and the response, or of the key and the stored response."""
    monkeypatch.setattr(idempotency, "randrange", lambda _: 1)  # it doesn't purge
    async with (
        counting_proxy(postgres_url) as (url, proxy),
        running(create_app(Settings(database_url=url, pool_size=1))) as client,
    ):
        for key in ("first", "second"):  # the first prepares each statement on the connection
            costs = []
            for _ in range(2):
                before = proxy.round_trips
                await client.post("/heroes/", json=DEADPOND, headers={"Idempotency-Key": key})
                costs.append(proxy.round_trips - before)
        assert costs == [5, 4]


async def test_an_operation_on_sqlite_is_one_statement(sqlite_url: URL) -> None:
    statements: list[str] = []

    def trace_statements(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.run_async(lambda driver: driver.set_trace_callback(statements.append))

    async with running(app := create_app(Settings(database_url=sqlite_url))) as client:
        for engine in (app.state.sessionmaker.database.reads, app.state.sessionmaker.database.writes):
            event.listen(engine.sync_engine, "connect", trace_statements)
        assert await run_operations(client, 1, lambda: len(statements)) == BUDGET
