"""Many clients at once, over real sockets, on real servers: nothing is lost, and nobody is told two stories."""

import asyncio
import itertools
import resource
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from random import Random

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL

from tests.conftest import execute, running
from tests.locks import locked
from tests.processes import free_port, server, spell

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}
ROUNDS = 25
FILES = 4096  # enough for a thousand connections


@pytest.fixture
def base_url(url: URL) -> Iterator[str]:
    """The address of a server of its own, with two processes."""
    port = free_port()
    command = ("uvicorn", "app.main:app", "--workers", "2", "--port", str(port), "--no-access-log")
    changes = {"DATABASE_URL": spell(url), "QUEUE_TIMEOUT": "60"}  # for slow machines
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, FILES)), hard))
    with server(*command, port=port, changes=changes) as client:
        yield str(client.base_url)


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with as many connections as it has requests under way."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60) as client:
        yield client


async def create(client: httpx.AsyncClient) -> str:
    return f"/heroes/{(await client.post('/heroes/', json=HERO)).json()['id']}"


@pytest.mark.slow
async def test_what_is_created_is_found_by_the_next_request_on_another_connection(base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url) as writer, httpx.AsyncClient(base_url=base_url) as reader:
        for _ in range(500):
            assert (await reader.get(await create(writer))).status_code == 200


@pytest.mark.slow
async def test_a_change_and_a_removal_at_once_are_each_done_or_find_nothing(client: httpx.AsyncClient) -> None:
    for _ in range(200):
        path = await create(client)
        patched, deleted = await asyncio.gather(client.patch(path, json={"age": 1}), client.delete(path))
        assert patched.status_code in {200, 404}
        assert deleted.status_code == 200


async def test_of_twenty_removals_at_once_one_is_told_that_it_did(client: httpx.AsyncClient) -> None:
    for _ in range(20):
        path = await create(client)
        answers = await asyncio.gather(*(client.delete(path) for _ in range(20)))
        assert sorted(answer.status_code for answer in answers) == [200] + [404] * 19


async def test_of_sixty_writers_at_once_none_is_lost_and_none_refused(client: httpx.AsyncClient) -> None:
    paths = await asyncio.gather(*(create(client) for _ in range(60)))
    assert len(set(paths)) == 60
    answers = await asyncio.gather(*(client.patch(path, json={"age": age}) for age, path in enumerate(paths)))
    assert [answer.json()["age"] for answer in answers] == list(range(60))
    listed = (await client.get("/heroes/")).json()
    assert {f"/heroes/{hero['id']}": hero["age"] for hero in listed} == {path: age for age, path in enumerate(paths)}


async def test_a_change_to_what_somebody_else_has_just_changed_is_made(client: httpx.AsyncClient) -> None:
    path = await create(client)
    for _ in range(50):
        answers = await asyncio.gather(*(client.patch(path, json={"age": age}) for age in (5, 6, 5, 6)))
        assert [answer.json()["age"] for answer in answers] == [5, 6, 5, 6]
        assert (await client.get(path)).json()["age"] in {5, 6}


@pytest.mark.slow
async def test_a_thousand_clients_at_once_are_all_served(base_url: str) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60) as client:
        path = await create(client)
        answers = await asyncio.gather(*(client.get(path) for _ in range(1000)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_write_that_is_cancelled_is_done_or_not_begun_and_leaves_no_lock(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(0)  # noqa: S311 - a moment, not a secret
    acknowledged = 0
    async with running(app) as client:
        await client.get("/heroes/")
        for _ in range(ROUNDS):
            caplog.clear()
            first = asyncio.create_task(client.post("/heroes/", json=HERO))
            await asyncio.sleep(random.uniform(0, 0.012))
            first.cancel()
            assert (await client.post("/heroes/", json=HERO)).status_code == 200
            acknowledged += 1
            await asyncio.wait({first})
            acknowledged += not first.cancelled() and first.result().status_code == 200
            rows = len((await client.get("/heroes/")).json())
            assert acknowledged <= rows <= acknowledged + 1
            acknowledged = rows
    assert not caplog.records


async def test_a_write_whose_client_leaves_is_done_or_not_begun_and_leaves_no_lock(base_url: str) -> None:
    random = Random(0)  # noqa: S311 - a moment, not a secret
    async with httpx.AsyncClient(base_url=base_url) as client:
        for _ in range(ROUNDS):
            async with httpx.AsyncClient(base_url=base_url) as leaving:
                first = asyncio.create_task(leaving.post("/heroes/", json=HERO))
                await asyncio.sleep(random.uniform(0, 0.012))
                first.cancel()
                await asyncio.wait({first})
            assert (await client.post("/heroes/", json=HERO)).status_code == 200
        assert ROUNDS <= len((await client.get("/heroes/")).json()) <= 2 * ROUNDS


async def test_two_hundred_clients_that_reset_their_connections_leave_nothing_behind(
    postgres_url: URL, postgres: URL
) -> None:
    """They leave while their statements wait for a lock."""
    port = free_port()
    changes = {"DATABASE_URL": spell(postgres_url), "POOL_SIZE": "5"}
    backends = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{postgres_url.database}'"
    with (
        tempfile.TemporaryFile() as log,
        server("uvicorn", "app.main:app", "--port", str(port), port=port, changes=changes, output=log) as client,
    ):
        path = f"/heroes/{client.post('/heroes/', json=HERO).json()['id']}"
        async with locked(postgres_url):
            sockets = [patching(port, path) for _ in range(200)]
            await asyncio.sleep(0.5)
            for each in sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
                each.close()
            await asyncio.sleep(0.5)
            assert int(str(await asyncio.to_thread(execute, postgres, backends))) <= 5 + 2  # the probe, and this test
        for _ in range(20):
            assert client.get(path).status_code == 200
        assert client.patch(path, json={"age": 8}).json()["age"] == 8
        assert int(str(await asyncio.to_thread(execute, postgres, backends))) <= 5 + 1
        log.seek(0)
        written = log.read().decode()
    for word in ("Traceback", "WARNING", "ERROR", "garbage", "never retrieved"):
        assert word not in written


async def test_who_is_refused_on_arrival_keeps_his_connection_and_the_service_its_temper(url: URL) -> None:
    port = free_port()
    changes = {"DATABASE_URL": spell(url), "POOL_SIZE": "1", "QUEUE_SIZE": "0"}
    with server("uvicorn", "app.main:app", "--port", str(port), port=port, changes=changes) as refused:
        async with httpx.AsyncClient(base_url=refused.base_url, timeout=60) as other:
            async with locked(url):
                writing = asyncio.create_task(other.post("/heroes/", json=HERO))
                await asyncio.sleep(1)  # until it has the session
                for content in (b'{"name": "Deadpond", "secret_name": "Dive Wilson"}', b"nonsense", b"[" * 100_000):
                    answer = refused.post("/heroes/", content=content, headers={"Content-Type": "application/json"})
                    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                    assert answer.headers["X-Request-ID"]
                    assert refused.get("/livez").status_code == 200
            assert (await writing).status_code == 200
        assert refused.post("/heroes/", json=HERO).json()["id"] == 2


def patching(port: int, path: str) -> socket.socket:
    """Send a PATCH, and don't wait for its answer."""
    body = b'{"age": 7}'
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connected = socket.create_connection(("127.0.0.1", port))
    connected.sendall(head.encode() + body)
    return connected


@pytest.mark.slow
async def test_on_sqlite_fifty_writers_and_fifty_readers_are_all_served_for_ten_seconds(sqlite_url: URL) -> None:
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):  # servers: of two processes behind one port, one may take all connections
            port = free_port()
            command = ("uvicorn", "app.main:app", "--port", str(port), "--no-access-log")
            starter = stack.enter_context(server(*command, port=port, changes={"DATABASE_URL": spell(sqlite_url)}))
            client = httpx.AsyncClient(base_url=starter.base_url, limits=httpx.Limits(max_connections=None), timeout=60)
            clients.append(await stack.enter_async_context(client))
        over = time.monotonic() + 10

        async def read(client: httpx.AsyncClient, path: str) -> None:
            while time.monotonic() < over:
                assert (await client.get(path)).status_code == 200

        async def write(client: httpx.AsyncClient, path: str) -> None:
            for age in itertools.count():
                answer = await client.patch(path, json={"age": age})
                assert (answer.status_code, answer.json()["age"]) == (200, age)
                if time.monotonic() > over:
                    break
            assert (await client.get(path)).json()["age"] == age

        both = list(itertools.islice(itertools.cycle(clients), 50))
        paths = [await create(client) for client in both]
        await asyncio.gather(*map(read, both, paths), *map(write, both, paths))


async def test_readers_do_not_wait_for_a_writer(client: httpx.AsyncClient, url: URL) -> None:
    path = await create(client)
    async with locked(url):
        writing = [asyncio.create_task(client.patch(path, json={"age": 7})) for _ in range(6)]  # in both processes
        await asyncio.sleep(0.5)
        readers = [client.get(path) for _ in range(50)]
        assert {answer.json()["age"] for answer in await asyncio.gather(*readers)} == {None}
        assert not any(each.done() for each in writing)
    assert {answer.json()["age"] for answer in await asyncio.gather(*writing)} == {7}
