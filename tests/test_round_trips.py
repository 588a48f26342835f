"""How often an operation asks its database. On Postgres, each time is a trip over the network."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from sqlalchemy import URL, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app.main import create_app
from app.settings import Settings
from tests.conftest import running

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}
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
READY_FOR_QUERY = b"Z\0\0\0\5"  # with this message the server ends its answer, whatever it was asked


class Wire:
    """A stretch of wire before a Postgres server, where its answers can be counted."""

    def __init__(self, url: URL) -> None:
        """Lead to the server of that URL."""
        self.url = url
        self.answers = 0

    async def lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection to the server and back."""
        host, port = str(self.url.host or self.url.query["host"]), self.url.port or 5432
        server_reader, server_writer = (
            await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if host.startswith("/")
            else await asyncio.open_connection(host, port)
        )
        await asyncio.gather(self.carry(reader, server_writer), self.carry(server_reader, writer))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction, until it ends."""
        tail = b""
        while sent := await reader.read(65536):
            self.answers += (tail + sent).count(READY_FOR_QUERY)
            tail = sent[-(len(READY_FOR_QUERY) - 1) :]
            writer.write(sent)
        writer.close()


@asynccontextmanager
async def wired(url: URL) -> AsyncIterator[tuple[URL, Wire]]:
    """Another URL for the same database, behind a wire."""
    wire = Wire(url)
    async with await asyncio.start_server(wire.lead, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield url.set(host=host, port=port, query={"sslmode": "disable"}), wire


async def spend(client: httpx.AsyncClient, hero_id: int, count: Callable[[], int]) -> list[tuple[str, str, int, int]]:
    """Do every operation on the next hero, and write its budget as it was."""
    spent = []
    for method, path, *_ in BUDGET:
        before = count()
        answer = await client.request(method, path.format(id=hero_id), json=HERO)
        spent.append((method, path, answer.status_code, count() - before))
    return spent


async def test_an_operation_on_postgres_is_one_round_trip(postgres_url: URL) -> None:
    async with (
        wired(postgres_url) as (url, wire),
        running(create_app(Settings(database_url=url, pool_size=1))) as client,
    ):
        await spend(client, 1, lambda: wire.answers)  # the first time on a connection, each statement is prepared
        assert await spend(client, 2, lambda: wire.answers) == BUDGET


async def test_an_operation_on_sqlite_is_one_statement(sqlite_url: URL) -> None:
    statements: list[str] = []

    def trace(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.run_async(lambda driver: driver.set_trace_callback(statements.append))

    async with running(app := create_app(Settings(database_url=sqlite_url))) as client:
        for engine in (app.state.database.reads, app.state.database.writes):
            event.listen(engine.sync_engine, "connect", trace)
        assert await spend(client, 1, lambda: len(statements)) == BUDGET
