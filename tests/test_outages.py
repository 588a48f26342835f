"""A Postgres server that hangs, or is stopped and started again, under a running service and its clients."""

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from app.schema import TIME_LIMIT
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.locks import stored_names
from tests.support.polling import wait_until, wait_until_async
from tests.support.postgres_server import PostgresServer, running_postgres
from tests.support.processes import TIMEOUT
from tests.support.service import Service, running_service

pytestmark = pytest.mark.chaos

STATEMENT_TIMEOUT = 1
QUEUE_TIMEOUT = 2
CLIENTS = 12
LIMIT = STATEMENT_TIMEOUT + QUEUE_TIMEOUT + 5  # seconds within which every request has its response
REFUSED = "08001: (FileNotFound|ConnectionRefused)Error: "  # by a server whose socket is gone, or that does not listen
PROCESS_MODELS = pytest.mark.parametrize(
    ("options", "code"),
    [pytest.param((), -signal.SIGTERM, id="one process"), pytest.param(("--workers", "2"), 0, id="two workers")],
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A Postgres server for these tests alone."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_databases(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Creates databases on that server."""
    return Databases(server.url, tmp_path_factory.mktemp("databases"))


@pytest.fixture
def own_url(own_databases: Databases) -> Iterator[URL]:
    """A database at head on that server, without rows."""
    url = own_databases.migrated()
    yield url
    own_databases.drop(url)


def serving(url: URL, folder: Path, *options: str) -> AbstractContextManager[Service]:
    """Run the service with limits that are short."""
    return running_service(
        url,
        folder / "log",
        *options,
        STATEMENT_TIMEOUT=str(STATEMENT_TIMEOUT),
        LOCK_TIMEOUT="1",
        QUEUE_TIMEOUT=str(QUEUE_TIMEOUT),
        POOL_SIZE="4",
    )


@dataclass
class Load:
    """Clients that send one request after the other, and what became of their requests.

    Attributes:
        statuses: of all responses; 0 stands for a request without one.
        slowest: the seconds that the slowest response took.
        sent: the names of the heroes that were to be created.
        acknowledged: those of a successful response.
        latest: the status of each client's latest response.
    """

    client: httpx.AsyncClient
    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0
    sent: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    latest: dict[int, int] = field(default_factory=dict)

    async def run(self, number: int, *, writes: bool) -> None:
        """Send requests until one has no response."""
        while self.latest.get(number) != 0:
            started = time.monotonic()
            try:
                status = await (self.write() if writes else self.read())
            except httpx.TransportError:
                status = 0
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.statuses[status] += 1
            self.latest[number] = status

    async def read(self) -> int:
        """Read a page, and return the status of the response."""
        return (await self.client.get("/heroes/?limit=1")).status_code

    async def write(self) -> int:
        """Create a hero of a new name, and return the status of the response."""
        name = f"hero {len(self.sent)}"
        self.sent.append(name)
        response = await self.client.post("/heroes/", json=DEADPOND | {"name": name})
        if response.status_code == 200:
            self.acknowledged.append(name)
        return response.status_code

    async def wait_until_all(self, status: int) -> None:
        """Wait until the latest response to every client has this status."""

        async def are() -> bool:
            return list(self.latest.values()) == [status] * CLIENTS

        await wait_until_async(are)


@asynccontextmanager
async def load_on(service: Service) -> AsyncIterator[Load]:
    """Send requests from concurrent clients for a block, half of them writes, each of a hero of its own name."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", limits=limits, timeout=TIMEOUT) as client:
        load = Load(client)
        tasks = [asyncio.create_task(load.run(number, writes=number % 2 == 0)) for number in range(CLIENTS)]
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def assert_writes_are_stored_once(load: Load, url: URL) -> None:
    stored = Counter(await asyncio.to_thread(stored_names, url))
    assert load.acknowledged
    assert set(load.acknowledged) <= set(stored) <= set(load.sent)
    assert set(stored.values()) == {1}


@PROCESS_MODELS
async def test_requests_to_a_frozen_server_are_503_in_time_and_everything_is_back_when_it_continues(
    server: PostgresServer, own_url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    with serving(own_url, tmp_path, *options) as service:
        async with load_on(service) as load:
            await load.wait_until_all(200)
            with server.frozen():
                await load.wait_until_all(503)
                for _ in range(5):
                    async with asyncio.timeout(4 * TIME_LIMIT):
                        assert (await load.client.get("/readyz")).status_code == 503
            await load.wait_until_all(200)
            for _ in range(5):
                assert (await load.client.get("/readyz")).status_code == 200
        assert set(load.statuses) == {200, 503}
        assert load.slowest < LIMIT
        await assert_writes_are_stored_once(load, own_url)
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.process.wait, TIMEOUT) == code
    assert "Traceback" not in (tmp_path / "log").read_text()


@PROCESS_MODELS
async def test_sigterm_ends_the_process_under_load_while_the_server_is_frozen(
    server: PostgresServer, own_url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    with serving(own_url, tmp_path, *options) as service:
        async with load_on(service) as load:
            await load.wait_until_all(200)
            with server.frozen():
                await load.wait_until_all(503)
                started = time.monotonic()
                service.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(service.process.wait, TIMEOUT) == code
                assert time.monotonic() - started < 2 * LIMIT
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert set(load.statuses) <= {0, 200, 503}
    await assert_writes_are_stored_once(load, own_url)


async def test_the_log_of_an_outage_names_its_cause_and_its_end_in_few_lines(
    server: PostgresServer, own_url: URL, tmp_path: Path
) -> None:
    with serving(own_url, tmp_path) as service:
        async with load_on(service) as load:
            await load.wait_until_all(200)
            await asyncio.to_thread(server.stop)
            try:
                await load.wait_until_all(503)
                assert (await load.client.get("/readyz")).status_code == 503
                refused = load.statuses[503]

                async def are_many() -> bool:
                    return load.statuses[503] > refused + 500

                await wait_until_async(are_many)
            finally:
                await asyncio.to_thread(server.start)
            await load.wait_until_all(200)
            assert (await load.client.get("/readyz")).status_code == 200
        ended = re.compile(rf"app\.errors: None in 10 s, after \d+ more: .* {REFUSED}")
        await asyncio.to_thread(wait_until, lambda: ended.search(service.log.read_text()))
        assert set(load.statuses) == {200, 503}
        await assert_writes_are_stored_once(load, own_url)
    log = service.log.read_text()
    assert "Traceback" not in log
    lines = [line for line in re.findall(r"^\S+ \w+ app\..*$", log, re.MULTILINE) if " app.access " not in line]
    assert len(lines) < 25
    refusals = [line for line in lines if re.search(rf"app\.errors \[\S+\]: (GET|POST) .* {REFUSED}", line)]
    assert 1 <= len(refusals) <= 2  # one for each of the two errors
    assert any(re.search(rf"app\.errors: \d+ more in 10 s: .* {REFUSED}", line) for line in lines)
    first, last = [line for line in lines if " app.schema" in line]
    assert "The database does not answer." in first
    assert last.endswith("The database is ready.")
