"""Connections to Postgres that fall silent: the network drops packets, or a relay or the server hangs."""

import asyncio
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from app.main import create_app
from app.schema import TIME_LIMIT
from app.settings import Settings
from tests.support.app_client import running
from tests.support.backends import wait_for_backends
from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until, wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.relay import Relay, relay
from tests.support.service import Service, running_service
from tests.support.sql import execute_autocommit

pytestmark = pytest.mark.chaos

STATEMENT_TIMEOUT = 1
LIMIT = STATEMENT_TIMEOUT + 5  # seconds within which every request has its response
POOL_SIZE = 4


@contextmanager
def serving(url: URL, folder: Path, *options: str) -> Iterator[tuple[Relay, Service, httpx.Client]]:
    """Run the service on a Postgres behind a relay, with all of its connections open."""
    with (
        relay(url) as opened,
        running_service(
            opened.url,
            folder / "log",
            *options,
            STATEMENT_TIMEOUT=str(STATEMENT_TIMEOUT),
            LOCK_TIMEOUT="1",
            QUEUE_TIMEOUT="1",
            POOL_SIZE=str(POOL_SIZE),
        ) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=TIMEOUT) as client,
    ):
        assert set(statuses(client, "/heroes/", 20)) == {200}
        yield opened, service, client


def status_and_seconds(client: httpx.Client, path: str) -> tuple[int, float]:
    started = time.monotonic()
    status = client.get(path).status_code
    return status, time.monotonic() - started


def statuses(client: httpx.Client, path: str, number: int) -> list[int]:
    """Send concurrent requests, and return the statuses of their responses."""
    with ThreadPoolExecutor(number) as executor:
        return [response.status_code for response in executor.map(client.get, [path] * number)]


def test_requests_on_silent_connections_are_503_in_time_and_all_connections_are_replaced(
    postgres_url: URL, tmp_path: Path
) -> None:
    with serving(postgres_url, tmp_path) as (opened, _, client):
        opened.silence()
        with ThreadPoolExecutor(10) as executor:
            found = list(executor.map(lambda _: status_and_seconds(client, "/heroes/"), range(10)))
        assert max(seconds for _, seconds in found) < LIMIT
        assert 503 in {status for status, _ in found}
        wait_until(lambda: client.get("/heroes/").status_code == 200)
        assert set(statuses(client, "/heroes/", 20)) == {200}


def test_one_lost_connection_costs_no_further_request(postgres_url: URL, tmp_path: Path) -> None:
    with serving(postgres_url, tmp_path) as (opened, _, client):
        opened.silence()
        assert client.get("/heroes/").status_code == 503
        assert [client.get("/heroes/").status_code for _ in range(10)] == [200] * 10


def test_a_write_on_a_silent_connection_is_503_and_not_repeated(postgres_url: URL, tmp_path: Path) -> None:
    with serving(postgres_url, tmp_path) as (opened, _, client):
        assert client.post("/heroes/", json=DEADPOND).status_code == 200
        opened.silence()
        assert client.post("/heroes/", json=DEADPOND).status_code == 503
        assert len(client.get("/heroes/").json()) == 1


def test_readiness_follows_the_connections_of_requests_and_responds_in_time(postgres_url: URL, tmp_path: Path) -> None:
    with serving(postgres_url, tmp_path) as (opened, _, client):
        opened.silence(new_too=True)
        for _ in range(3):
            status, seconds = status_and_seconds(client, "/readyz")
            assert status == 503
            assert seconds < 4 * TIME_LIMIT
        opened.passes_new = True
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/heroes/").status_code == 200


@pytest.mark.parametrize(("options", "code"), [((), -signal.SIGTERM), (("--workers", "2"), 0)])
@pytest.mark.parametrize("in_flight", [0, 8])
def test_sigterm_ends_the_process_while_the_database_is_silent(
    postgres_url: URL, tmp_path: Path, in_flight: int, options: tuple[str, ...], code: int
) -> None:
    with serving(postgres_url, tmp_path, *options) as (opened, service, client):
        opened.silence(new_too=True)
        with ThreadPoolExecutor(10) as executor:
            pending = [executor.submit(client.get, "/heroes/") for _ in range(in_flight)]
            wait_until(lambda: len(opened.withheld) >= min(in_flight, POOL_SIZE))
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(TIMEOUT) == code
            assert time.monotonic() - started < 2 * LIMIT
            assert {response.result().status_code for response in pending} <= {503}
        assert "Traceback" not in service.log.read_text()


def two_hosts(first: Relay, second: Relay) -> URL:
    """Return a URL of two hosts."""
    ports = f"{first.port},{second.port}"
    url, query = first.url, {"host": "127.0.0.1,127.0.0.1", "port": ports}
    return URL.create(url.drivername, url.username, url.password, database=url.database, query=query)


async def test_a_silent_host_hides_the_next_one_only_until_one_connection_has_found_it(postgres_url: URL) -> None:
    with relay(postgres_url) as silent, relay(postgres_url) as answering:
        silent.silence(new_too=True)
        app = create_app(Settings(database_url=two_hosts(silent, answering), pool_size=POOL_SIZE))
        async with running(app) as client:

            async def is_ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await wait_until_async(is_ready)
            tried = silent.accepted
            assert {each.status_code for each in await gather_heroes(client, 20)} == {200}
            assert silent.accepted == tried


async def test_when_the_host_in_use_falls_silent_the_other_one_is_found(postgres_url: URL) -> None:
    with relay(postgres_url) as first, relay(postgres_url) as second:
        url = two_hosts(first, second)
        app = create_app(Settings(database_url=url, pool_size=2, statement_timeout=1, queue_timeout=20))
        async with running(app) as client:
            assert {each.status_code for each in await gather_heroes(client, 20)} == {200}
            first.silence(new_too=True)
            await gather_heroes(client, 2)
            assert {each.status_code for each in await gather_heroes(client, 20)} == {200}
            assert (await client.get("/readyz")).status_code == 200


@pytest.fixture
def limited_url(postgres: URL, postgres_url: URL) -> Iterator[URL]:
    """The URL of a role that the server grants three connections."""
    role = f"limited_{secrets.token_hex(4)}"
    execute_autocommit(postgres, f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 3")
    for kind in ("TABLES", "SEQUENCES"):
        execute_autocommit(postgres_url, f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}")
    yield postgres_url.set(username=role, password="x")
    execute_autocommit(postgres_url, f"DROP OWNED BY {role}")
    execute_autocommit(postgres, f"DROP ROLE {role}")


async def test_requests_share_the_connections_that_the_server_grants(limited_url: URL) -> None:
    async with running(create_app(Settings(database_url=limited_url, pool_size=10))) as client:
        for _ in range(3):
            assert {each.status_code for each in await gather_heroes(client, 50)} == {200}
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_readiness_does_not_depend_on_connections_that_the_server_closes_when_they_are_idle(
    postgres: URL, postgres_url: URL
) -> None:
    url = postgres_url.update_query_dict({"options": "-c idle_session_timeout=100"})
    async with running(create_app(Settings(database_url=url))) as client:
        for _ in range(4):
            assert (await client.get("/heroes/")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            await wait_for_backends(postgres, postgres_url, most=0)


async def gather_heroes(client: httpx.AsyncClient, number: int) -> list[httpx.Response]:
    """Send concurrent requests, and return their responses."""
    return await asyncio.gather(*(client.get("/heroes/") for _ in range(number)))


async def test_a_commit_that_waits_for_a_standby_is_503_in_time(postgres: URL, postgres_url: URL) -> None:
    url = postgres_url.update_query_dict({"options": "-c synchronous_commit=on"})
    app = create_app(Settings(database_url=url, statement_timeout=STATEMENT_TIMEOUT))
    async with running(app) as client, asyncio.timeout(TIMEOUT):
        await asyncio.to_thread(set_standbys, postgres, "absent")
        try:
            assert (await client.post("/heroes/", json=DEADPOND)).status_code == 503
            assert (await client.get("/readyz")).status_code == 200
        finally:
            await asyncio.to_thread(set_standbys, postgres, "")
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200


def set_standbys(postgres: URL, names: str) -> None:
    """Let commits wait for these standbys, if they are synchronous."""
    execute_autocommit(postgres, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    execute_autocommit(postgres, "SELECT pg_reload_conf()")
