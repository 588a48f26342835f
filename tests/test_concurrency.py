"""Concurrent clients: no update is lost, all responses agree, and none waits for what it does not need."""

import asyncio
import itertools
import resource
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from random import Random

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL

from app.database import ANSWER_TIMEOUT
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.backends import count_backends
from tests.support.heroes import DEADPOND, DEADPOND_JSON
from tests.support.lists import count
from tests.support.locks import async_row_lock, async_write_lock
from tests.support.polling import wait_until_async
from tests.support.processes import free_port, render_url, server
from tests.support.raw_http import begin_request, connections, read_response
from tests.support.service import running_service

ROUNDS = 25
OPEN_FILES = 4096  # enough for a thousand connections

Clients = tuple[httpx.AsyncClient, httpx.AsyncClient]


@pytest.fixture
async def clients(url: URL) -> AsyncIterator[Clients]:
    """Clients of two apps on one database, each with connections of its own, as two processes have."""
    settings = Settings(database_url=url, queue_timeout=60, lock_timeout=60, statement_timeout=60)  # for slow machines
    async with running(create_app(settings)) as one, running(create_app(settings)) as other:
        yield one, other


@pytest.fixture(scope="module")
def port(module_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a service in a process of its own, which the slow tests of this module share."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    log = tmp_path_factory.mktemp("concurrency") / "log"
    with running_service(module_url, log, QUEUE_TIMEOUT="60") as service:  # for slow machines
        yield service.port


def unlimited_client(port: int) -> httpx.AsyncClient:
    """Create a client without a limit on its connections."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60)


async def create(client: httpx.AsyncClient) -> str:
    """Create a hero, and return its path."""
    return str((await client.post("/heroes/", json=DEADPOND)).headers["Location"])


async def test_concurrent_patch_and_delete_each_succeed_or_are_404(clients: Clients) -> None:
    one, other = clients
    for _ in range(20):
        path = await create(one)
        patched, deleted = await asyncio.gather(one.patch(path, json={"age": 1}), other.delete(path))
        assert patched.status_code in {200, 404}
        assert deleted.status_code == 200


async def test_one_of_twenty_concurrent_deletes_succeeds(clients: Clients) -> None:
    for _ in range(5):
        path = await create(clients[0])
        responses = await asyncio.gather(*(client.delete(path) for client in clients * 10))
        assert sorted(response.status_code for response in responses) == [200] + [404] * 19


async def test_sixty_concurrent_writes_are_all_stored(clients: Clients) -> None:
    paths = await asyncio.gather(*(create(client) for client in clients * 30))
    ages = {path: age for age, path in enumerate(paths)}
    assert len(ages) == 60
    patches = zip(itertools.cycle(clients), ages.items(), strict=False)
    responses = await asyncio.gather(*(client.patch(path, json={"age": age}) for client, (path, age) in patches))
    assert [response.json()["age"] for response in responses] == list(ages.values())
    listed = (await clients[0].get("/heroes/")).json()
    assert {f"/heroes/{hero['id']}": hero["age"] for hero in listed} == ages


async def test_concurrent_patches_of_one_hero_all_succeed(clients: Clients) -> None:
    path = await create(clients[0])
    for _ in range(20):
        patches = (client.patch(path, json={"age": age}) for age in (5, 6) for client in clients)
        responses = await asyncio.gather(*patches)
        assert [response.json()["age"] for response in responses] == [5, 5, 6, 6]
        assert (await clients[0].get(path)).json()["age"] in {5, 6}


@pytest.mark.slow
async def test_a_thousand_concurrent_requests_are_all_served(port: int) -> None:
    async with unlimited_client(port) as client:
        path = await create(client)
        responses = await asyncio.gather(*(client.get(path) for _ in range(1000)))
        assert {response.status_code for response in responses} == {200}


async def test_a_cancelled_write_is_atomic_and_leaves_no_lock(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    random = Random(0)  # noqa: S311 - it chooses a delay, not a secret
    acknowledged = 0
    async with running(app) as client:
        await client.get("/heroes/")
        for _ in range(ROUNDS):
            caplog.clear()
            first = asyncio.create_task(client.post("/heroes/", json=DEADPOND))
            await asyncio.sleep(random.uniform(0, 0.012))
            first.cancel()
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
            acknowledged += 1
            await asyncio.wait({first})
            acknowledged += not first.cancelled() and first.result().status_code == 200
            rows = len((await client.get("/heroes/")).json())
            assert acknowledged <= rows <= acknowledged + 1
            acknowledged = rows
    assert {record.name for record in caplog.records} == {"app.access"}


@pytest.mark.slow
async def test_a_write_whose_client_disconnects_is_atomic_and_leaves_no_lock(port: int) -> None:
    random = Random(0)  # noqa: S311 - it chooses a delay, not a secret
    async with unlimited_client(port) as client:
        before = await count(client)
        for _ in range(ROUNDS):
            async with unlimited_client(port) as leaving:
                first = asyncio.create_task(leaving.post("/heroes/", json=DEADPOND))
                await asyncio.sleep(random.uniform(0, 0.012))
                first.cancel()
                await asyncio.wait({first})
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        assert ROUNDS <= await count(client) - before <= 2 * ROUNDS


@pytest.mark.chaos
async def test_two_hundred_reset_connections_leak_no_database_connections_and_log_no_errors(
    postgres_url: URL, postgres: URL
) -> None:
    """They are reset while their statements wait for a lock."""
    port = free_port()
    changes = {"DATABASE_URL": render_url(postgres_url), "POOL_SIZE": "10"}

    async def are_blocked() -> bool:
        return await count_backends(postgres, postgres_url, "wait_event_type = 'Lock'") == 5

    with (
        tempfile.TemporaryFile() as log,
        server("uvicorn", "app.main:app", "--port", str(port), port=port, changes=changes, output=log) as client,
    ):
        path = f"/heroes/{client.post('/heroes/', json=DEADPOND).json()['id']}"
        async with async_write_lock(postgres_url):
            with connections(port, 200) as clients:
                for connection in clients:
                    send_patch(connection, path)
                await wait_until_async(are_blocked)
                for connection in clients:  # close() then sends a reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.5)  # the service reacts to the resets, and must open no connections for them
            assert await count_backends(postgres, postgres_url) <= 10 + 2  # the probe, and this test
        for _ in range(20):
            assert client.get(path).status_code == 200
        assert client.patch(path, json={"age": 8}).json()["age"] == 8
        assert await count_backends(postgres, postgres_url) <= 10 + 1
        log.seek(0)
        written = log.read().decode()
    for word in ("Traceback", "WARNING", "ERROR", "garbage", "never retrieved"):
        assert word not in written


async def test_a_request_refused_by_a_full_queue_keeps_its_connection_alive(url: URL) -> None:
    app = create_app(Settings(database_url=url, pool_size=1, queue_size=0, lock_timeout=60, statement_timeout=60))

    def send_refused_requests(port: int) -> None:
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            connection.connect()
            connection.auto_open = False  # it would hide that the service has closed it
            for body in (DEADPOND_JSON, b"nonsense", b"[" * 100_000):
                connection.request("POST", "/heroes/", body, {"Content-Type": "application/json"})
                refused = connection.getresponse()
                assert refused.read()
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
                assert refused.headers["X-Request-ID"]
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200

    async def is_full() -> bool:
        return bool(app.state.sessionmaker.writes.free == 0)

    async with listening(app) as port, unlimited_client(port) as client:
        async with async_write_lock(url):
            writing = asyncio.create_task(client.post("/heroes/", json=DEADPOND))
            await wait_until_async(is_full)
            await asyncio.to_thread(send_refused_requests, port)
        assert (await writing).status_code == 200
        assert (await client.post("/heroes/", json=DEADPOND)).json()["id"] == 2


def send_patch(connection: socket.socket, path: str) -> None:
    """Send a PATCH, and return without waiting for the response: by then the app is reading the body."""
    body = b'{"age": 7}'
    begin_request(connection, f"PATCH {path}", len(body))
    connection.sendall(body)


@pytest.mark.slow
async def test_fifty_writers_and_fifty_readers_on_sqlite_are_all_served_for_ten_seconds(
    sqlite_url: URL, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):  # services, since one of two processes behind one port may accept all connections
            service = stack.enter_context(running_service(sqlite_url, tmp_path / "log"))
            clients.append(await stack.enter_async_context(unlimited_client(service.port)))
        over = time.monotonic() + 10

        async def read(client: httpx.AsyncClient, path: str) -> None:
            while time.monotonic() < over:
                assert (await client.get(path)).status_code == 200

        async def write(client: httpx.AsyncClient, path: str) -> None:
            for age in itertools.count():
                response = await client.patch(path, json={"age": age})
                assert (response.status_code, response.json()["age"]) == (200, age)
                if time.monotonic() > over:
                    break
            assert (await client.get(path)).json()["age"] == age

        both = list(itertools.islice(itertools.cycle(clients), 50))
        paths = [await create(client) for client in both]
        await asyncio.gather(*map(read, both, paths), *map(write, both, paths))


async def test_reads_do_not_wait_for_blocked_writes(clients: Clients, url: URL) -> None:
    path = await create(clients[0])
    async with async_write_lock(url):
        writes = [asyncio.create_task(client.patch(path, json={"age": 7})) for client in clients * 20]
        await asyncio.sleep(0)  # they queue: there are more than the pools of both apps have connections
        responses = await asyncio.gather(*(client.get(path) for client in clients * 25))
        assert {response.json()["age"] for response in responses} == {None}
        assert not any(write.done() for write in writes)
    assert {(await write).json()["age"] for write in writes} == {7}


@pytest.mark.chaos
async def test_patches_of_a_locked_row_are_answered_in_time_and_leave_reads_a_third_of_their_rate(url: URL) -> None:
    port = free_port()
    limits = {"QUEUE_TIMEOUT": 2, "LOCK_TIMEOUT": 2, "STATEMENT_TIMEOUT": 3}
    changes = {"DATABASE_URL": render_url(url), **{name: str(seconds) for name, seconds in limits.items()}}
    with server("uvicorn", "app.main:app", "--port", str(port), "--no-access-log", port=port, changes=changes) as one:
        path = f"/heroes/{one.post('/heroes/', json=DEADPOND).json()['id']}"
        before = await count_reads(port, path)
        async with async_row_lock(url):
            started = time.monotonic()
            with connections(port, 20) as writers:
                for connection in writers:
                    send_patch(connection, path)
                meanwhile = await count_reads(port, path)
                assert {read_response(connection)[0] for connection in writers} == {503}
            seconds = time.monotonic() - started
        assert seconds < limits["QUEUE_TIMEOUT"] + limits["STATEMENT_TIMEOUT"] + ANSWER_TIMEOUT
        assert meanwhile > before / 3
        assert one.patch(path, json={"age": 8}).json()["age"] == 8


async def count_reads(port: int, path: str) -> int:
    """Count the reads that four clients complete in a second."""
    over = time.monotonic() + 1

    async def read(client: httpx.AsyncClient) -> int:
        number = 0
        while time.monotonic() < over:
            assert (await client.get(path)).json()["age"] is None
            number += 1
        return number

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        return sum(await asyncio.gather(*(read(client) for _ in range(4))))
