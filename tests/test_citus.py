"""On a Citus cluster: the tables are distributed by a command, and the service responds as on one Postgres.

`make test-citus` runs these, and the tests of the contract on the same cluster.
"""

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.alembic_commands import HEAD, alembic, migrate
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT, render_url, run
from tests.support.service import running_service
from tests.support.sql import execute, fetch_value

pytestmark = pytest.mark.citus

SORTS = ["id", "-id", "name", "-name", "age", "-age"]
CLIENTS = 8


@pytest.fixture
def empty_url(citus_databases: Databases) -> URL:
    """The database of the cluster, without tables."""
    return citus_databases.empty()


@pytest.fixture
def url(citus_databases: Databases) -> URL:
    """The database of the cluster at head, with distributed tables without rows."""
    return citus_databases.migrated()


@pytest.fixture(scope="class")
def heroes_url(citus_databases: Databases) -> URL:
    """Heroes with equal names and ages, without an age, and with negative ids, on all shards."""
    url = citus_databases.migrated()
    execute(
        url,
        "INSERT INTO hero (id, name, age, secret_name)"
        " SELECT i - 100, 'hero ' || i % 37, nullif(i % 23, 0), 'x' FROM generate_series(0, 999) AS i",
    )
    return url


def distribute(url: URL) -> tuple[int, str]:
    result = run(sys.executable, "-m", "migrations.distribute", changes={"DATABASE_URL": render_url(url)})
    return result.returncode, result.stdout


class TestDistribute:
    def test_it_distributes_the_tables_once(self, empty_url: URL) -> None:
        assert distribute(empty_url) == (
            1,
            f"The database is at revision none, not {HEAD}: run 'alembic upgrade head' first.\n",
        )
        migrate(empty_url)
        assert distribute(empty_url) == (0, "hero: distributed by id.\nidempotency_key: distributed by key.\n")
        assert distribute(empty_url) == (
            0,
            "hero: is distributed by id already.\nidempotency_key: is distributed by key already.\n",
        )

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_rows_are_moved_to_the_shards(self, empty_url: URL, *, interrupted: bool) -> None:
        migrate(empty_url)
        heroes = "INSERT INTO hero (name, secret_name) SELECT 'x', 'x' FROM generate_series(1, 1000)"
        execute(empty_url, heroes)
        if interrupted:  # before the copies on the coordinator are removed
            execute(empty_url, "SELECT create_distributed_table('hero', 'id')")
        assert distribute(empty_url)[0] == 0
        assert fetch_value(empty_url, "SELECT count(*) FROM hero") == 1000
        assert fetch_value(empty_url, "SELECT pg_relation_size('hero')") == 0  # on the coordinator

    def test_a_table_that_is_distributed_by_another_column_is_refused(self, empty_url: URL) -> None:
        migrate(empty_url)
        execute(empty_url, "SELECT create_distributed_table('idempotency_key', 'scope')")
        code, message = distribute(empty_url)
        assert code != 0
        assert "idempotency_key is distributed by scope, and its model says key" in message

    def test_the_models_and_the_schema_do_not_differ(self, url: URL) -> None:
        assert "No new upgrade operations detected." in alembic(url, "check")


class TestReads:
    @pytest.mark.parametrize("sort", SORTS)
    @pytest.mark.parametrize("filters", ["", "&name=hero 7", "&min_age=5&max_age=9"])
    async def test_a_walk_has_each_hero_once_in_order(self, heroes_url: URL, sort: str, filters: str) -> None:
        async with running(create_app(Settings(database_url=heroes_url))) as client:
            walked: list[dict[str, Any]] = []
            path = f"/heroes/?limit=70&sort={sort}{filters}&count=exact"
            while path:
                page = (await client.get(path)).raise_for_status()
                walked += page.json()
                path = page.links.get("next", {}).get("url", "")
            exported = (await client.get(f"/heroes/export?{filters[1:]}")).text.splitlines()
        assert len(walked) == int(page.headers["X-Total-Count"]) == len(exported)
        assert len({hero["id"] for hero in walked}) == len(walked) > 0
        assert [rank(hero, sort) for hero in walked] == sorted(rank(hero, sort) for hero in walked)


def rank(hero: dict[str, Any], sort: str) -> tuple[Any, ...]:
    """Return what sorts heroes as a list does: descending ones by negative numbers, and missing ages last."""
    sign = -1 if sort.startswith("-") else 1
    value = hero[sort.removeprefix("-")]
    if isinstance(value, str):
        value = int.from_bytes(value.encode().ljust(20, b"\0"))
    return (value is None, sign * (value or 0), sign * hero["id"])


class TestRaces:
    async def test_twins_of_a_key_run_once(self, url: URL, tmp_path: Path) -> None:
        with running_service(url, tmp_path / "log", "--workers", "2") as service:
            async with async_client(service.port) as client:
                for key in range(10):
                    headers = {"Idempotency-Key": f"{key}"}
                    twins = (client.post("/heroes/", json=DEADPOND, headers=headers) for _ in range(20))
                    responses = await asyncio.gather(*twins)
                    assert {response.status_code for response in responses} == {200}
                    assert len({response.content for response in responses}) == 1
        assert await asyncio.to_thread(fetch_value, url, "SELECT count(*) FROM hero") == 10

    async def test_one_of_several_patches_of_a_version_succeeds(self, url: URL, tmp_path: Path) -> None:
        with running_service(url, tmp_path / "log", "--workers", "2") as service:
            async with async_client(service.port) as client:
                path = (await client.post("/heroes/", json=DEADPOND)).headers["Location"]
                for version in range(1, 21):
                    headers = {"If-Match": f'"{version}"'}
                    patches = (client.patch(path, json={"age": age}, headers=headers) for age in range(10))
                    statuses = [response.status_code for response in await asyncio.gather(*patches)]
                    assert sorted(statuses) == [200, *[412] * 9]
                assert (await client.get(path)).headers["ETag"] == '"21"'

    async def test_purges_and_keys_that_take_over_expired_ones_do_not_disturb_each_other(
        self, url: URL, tmp_path: Path
    ) -> None:
        expired = (
            "INSERT INTO idempotency_key (scope, key, fingerprint, expires_at)"
            " SELECT 'POST /heroes', 'old' || i, 'x', now() - interval '1 hour' + i * interval '1 ms'"
            " FROM generate_series(0, 299) AS i"
        )
        await asyncio.to_thread(execute, url, expired)
        with running_service(url, tmp_path / "log", "--workers", "2") as service:
            async with async_client(service.port) as client:
                for round_ in range(5):
                    keys = [f"old{(60 * round_ + number) % 300}" for number in range(60)]
                    posts = (client.post("/heroes/", json=DEADPOND, headers={"Idempotency-Key": key}) for key in keys)
                    assert {response.status_code for response in await asyncio.gather(*posts)} == {200}
        assert await asyncio.to_thread(fetch_value, url, "SELECT count(*) FROM hero") == 300
        assert (
            await asyncio.to_thread(fetch_value, url, "SELECT count(*) FROM idempotency_key WHERE fingerprint = 'x'")
            == 0
        )
        assert "left to a later request" not in (tmp_path / "log").read_text()


class TestRestart:
    async def test_nothing_acknowledged_is_lost_while_a_worker_restarts(self, url: URL, tmp_path: Path) -> None:
        command = os.environ.get("TEST_CITUS_RESTART")
        if not command:
            pytest.skip("TEST_CITUS_RESTART names no command that restarts a worker")
        statuses: list[int] = []
        ages: dict[str, set[int]] = {}  # that a hero may have: of the last PATCH that succeeded, and of any after it
        stopped = asyncio.Event()
        numbers = itertools.count(1)

        async def load(client: httpx.AsyncClient) -> None:
            while not stopped.is_set():
                number = next(numbers)
                headers = {"Idempotency-Key": f"{number}"} if number % 2 else {}
                response = await client.post("/heroes/", json=DEADPOND | {"age": number}, headers=headers)
                statuses.append(response.status_code)
                if response.status_code == 200:
                    path = response.headers["Location"]
                    ages[path] = {number}
                    patched = await client.patch(path, json={"age": number + 1_000_000})
                    statuses.append(patched.status_code)
                    ages[path] = {number + 1_000_000} | (set() if patched.status_code == 200 else {number})
                statuses.append((await client.get("/heroes/?sort=-age&limit=10")).status_code)

        async def served(number: int) -> None:
            async def enough() -> bool:
                return statuses.count(200) >= number

            await wait_until_async(enough)

        with running_service(url, tmp_path / "log") as service:
            async with async_client(service.port) as client:
                tasks = [asyncio.create_task(load(client)) for _ in range(CLIENTS)]
                await served(100)
                await asyncio.to_thread(subprocess.run, command, shell=True, check=True, timeout=TIMEOUT)  # noqa: S604 - the command is the operator's
                await served(statuses.count(200) + 100)
                stopped.set()
                await asyncio.gather(*tasks)
                print(f"{statuses.count(200)} responses are 200, {statuses.count(503)} are 503")  # noqa: T201 - a figure
                assert set(statuses) <= {200, 503}, service.log.read_text()
                for path, possible in ages.items():
                    hero = await client.get(path)
                    assert hero.status_code == 200, f"{path} is lost"
                    assert hero.json()["age"] in possible


def async_client(port: int) -> httpx.AsyncClient:
    """Return a client without a limit on its connections."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=TIMEOUT)
