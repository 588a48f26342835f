"""Four processes on one database: they agree on keys, ETags, deletions and cursors, because none keeps state."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial

import httpx
import psutil
import pytest
from sqlalchemy import URL

from tests.support.heroes import DEADPOND, RUSTY_MAN
from tests.support.polling import wait_until
from tests.support.service import Service, running_service

PROCESSES = 4
CONNECTIONS = 3  # to each process
SORTS = ["-id", "name", "-age"]  # unique, with ties, and with nulls; tests/test_pagination.py has the other three

Client = httpx.AsyncClient

pytestmark = pytest.mark.slow
LIMITS = httpx.Limits(max_connections=1, keepalive_expiry=None)  # by default a connection is kept for 5 s


@pytest.fixture(scope="module")
def service(module_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of four processes."""
    log = tmp_path_factory.mktemp("workers") / "log"
    # The fixture below suspends processes, and the parent would replace one that does not respond for 5 s.
    options = ("--workers", str(PROCESSES), "--timeout-worker-healthcheck", "60")
    # For slow machines: on SQLite processes wait for each other.
    with running_service(module_url, log, *options, POOL_SIZE="4", LOCK_TIMEOUT="30") as service:
        wait_until(lambda: log.read_text().count("Application startup complete") == PROCESSES, log.read_text)
        yield service


def are_stopped(processes: list[psutil.Process]) -> bool:
    return all(process.status() == psutil.STATUS_STOPPED for process in processes)


@pytest.fixture
async def clients(service: Service) -> AsyncIterator[list[Client]]:
    """Clients of one connection each: one to the first process, to the second, and so on, and again from the first.

    All processes accept connections from one socket. While the others are suspended, only one can.
    """
    workers = [
        child
        for child in psutil.Process(service.process.pid).children()
        if any("multiprocessing.spawn" in word for word in child.cmdline())
    ]
    assert len(workers) == PROCESSES
    async with AsyncExitStack() as stack:
        by_worker: list[list[Client]] = []
        for worker in workers:
            clients = [
                Client(base_url=f"http://127.0.0.1:{service.port}", limits=LIMITS, timeout=60)
                for _ in range(CONNECTIONS)
            ]
            others = [other for other in workers if other is not worker]
            try:
                for other in others:
                    other.suspend()
                wait_until(partial(are_stopped, others))
                for client in clients:
                    await (await stack.enter_async_context(client)).get("/livez")
            finally:
                for other in others:
                    other.resume()
            by_worker.append(clients)
        yield [client for each in zip(*by_worker, strict=True) for client in each]
        accepted = [
            sum(one.status == psutil.CONN_ESTABLISHED for one in worker.net_connections("tcp4")) for worker in workers
        ]
        assert accepted == [CONNECTIONS] * PROCESSES  # none was opened anew, by chance to another process


@pytest.mark.parametrize(("path", "body"), [("/heroes/", DEADPOND), ("/heroes/batch", [DEADPOND, RUSTY_MAN])])
async def test_concurrent_requests_with_one_key_run_once(clients: list[Client], path: str, body: object) -> None:
    async def count() -> int:
        return int((await clients[0].get("/heroes/?limit=0&count=exact")).headers["X-Total-Count"])

    for number in range(5):
        before = await count()
        headers = {"Idempotency-Key": f"{path}{number}"}
        responses = await asyncio.gather(*(client.post(path, json=body, headers=headers) for client in clients))
        assert {response.status_code for response in responses} == {200}
        assert len({response.content for response in responses}) == 1
        assert await count() - before == (len(body) if isinstance(body, list) else 1)


async def test_one_of_concurrent_patches_with_one_etag_succeeds(clients: list[Client]) -> None:
    for _ in range(5):
        path = (await clients[0].post("/heroes/", json=DEADPOND)).headers["Location"]
        headers = {"If-Match": '"1"'}
        responses = await asyncio.gather(
            *(client.patch(path, json={"age": age}, headers=headers) for age, client in enumerate(clients))
        )
        assert sorted(response.status_code for response in responses) == [200] + [412] * (len(clients) - 1)
        (winner,) = [response for response in responses if response.status_code == 200]
        for client in clients:
            current = await client.get(path)
            assert (current.content, current.headers["ETag"]) == (winner.content, '"2"')


async def test_one_of_concurrent_deletes_succeeds(clients: list[Client]) -> None:
    for _ in range(5):
        path = (await clients[0].post("/heroes/", json=DEADPOND)).headers["Location"]
        responses = await asyncio.gather(*(client.delete(path) for client in clients))
        assert sorted(response.status_code for response in responses) == [200] + [404] * (len(clients) - 1)


async def test_walks_go_on_in_another_process_and_are_complete_under_writes(clients: list[Client]) -> None:
    """Each page is asked from the next process. Those that stay are there once, those that come or go at most once."""
    heroes = [
        {"name": f"Stays {number * 7919 % 60}", "age": number % 9 or None, "secret_name": "x"} for number in range(60)
    ]
    stay = {hero["id"] for hero in (await clients[0].post("/heroes/batch", json=heroes)).json()}
    over = asyncio.Event()

    async def write(client: Client) -> None:
        for age in itertools.cycle(range(9)):
            created = await client.post("/heroes/", json=DEADPOND | {"name": f"Stays {age}", "age": age})
            assert (await client.delete(created.headers["Location"])).status_code == 200
            if over.is_set():
                return

    async def walk(sort: str) -> list[dict[str, object]]:
        found, target, number = [], f"/heroes/?sort={sort}&limit=7", 0
        while target:
            page = await clients[number % PROCESSES].get(target)
            assert page.status_code == 200
            found += page.json()
            target, number = page.links.get("next", {}).get("url", ""), number + 1
        assert number > PROCESSES
        return found

    writers = [asyncio.create_task(write(client)) for client in clients[PROCESSES:]]
    walked = [await walk(sort) for sort in SORTS]
    over.set()
    await asyncio.gather(*writers)
    for found in walked:
        ids = [hero["id"] for hero in found]
        assert len(set(ids)) == len(ids)
        assert stay <= set(ids)
