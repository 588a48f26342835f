"""Behind PgBouncer: the whole service, and never another statement than was asked for. `make test-pooler`."""

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.main import create_app, open_sessionmaker
from app.pooler import NO_TRANSACTION, POOLER
from app.sessions import SessionMaker
from app.settings import Settings
from tests.support.alembic_commands import HEAD, alembic, try_alembic
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.pgbouncer import pgbouncer
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT, free_port, render_url, run
from tests.support.replication import Pair, running_pair
from tests.support.service import running_service
from tests.support.sql import execute, fetch_value, run_in_transaction

pytestmark = pytest.mark.pooler

UNTOUCHED = 1000  # rows that the storm only reads
CLIENTS = 32
ROUNDS = 25  # of each client


@pytest.fixture(scope="module")
def pgbouncer_url(postgres: URL) -> Iterator[URL]:
    """PgBouncer with its defaults, in transaction mode, on four connections for each database."""
    with pgbouncer(postgres) as url:
        yield url


@pytest.fixture
def pooled_url(pgbouncer_url: URL, postgres_url: URL) -> URL:
    """A database at head, without rows, through PgBouncer."""
    return pgbouncer_url.set(database=postgres_url.database)


@asynccontextmanager
async def serving(url: URL, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app behind a pooler that it is told of."""
    async with running(
        create_app(Settings(database_url=url, **{"database_pooler": "transaction", **settings}))
    ) as client:
        yield client


@pytest.fixture
async def sessionmaker(pooled_url: URL) -> AsyncIterator[SessionMaker]:
    """What opens sessions behind PgBouncer."""
    async with open_sessionmaker(Settings(database_url=pooled_url, database_pooler="transaction")) as sessionmaker:
        yield sessionmaker


@pytest.fixture
def pair(postgres: URL) -> Iterator[Pair]:
    """A primary and its standby."""
    assert postgres  # the package of Postgres prepares its binaries for its first server
    with running_pair(synchronous=False) as pair:
        yield pair


async def connect(url: URL) -> asyncpg.Connection:
    """Connect as a client that knows nothing of poolers."""
    return await asyncpg.connect(render_url(url.set(drivername="postgresql")), statement_cache_size=0)


@dataclass
class Storm:
    """Clients of every operation, and what the service has acknowledged to them."""

    services: tuple[httpx.Client, ...]
    statuses: Counter[int] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)  # responses to something else than was asked for
    names: dict[str, int | None] = field(default_factory=dict)  # of heroes created, and their ages
    deleted: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Send requests from many threads."""
        with ThreadPoolExecutor(CLIENTS) as executor:
            list(executor.map(self._send, range(CLIENTS)))

    def _send(self, number: int) -> None:
        choices = random.Random(number)  # noqa: S311 - a load
        work = (self._change, self._change, self._read, self._read, self._retry, self._batch)
        for turn in range(ROUNDS):
            client = self.services[(number + turn) % len(self.services)]
            choices.choice(work)(client, choices)
        if number < 4 and (exported := self._request(client, "GET", "/heroes/export")):
            self._expect(sum('"name":"untouched ' in line for line in exported.splitlines()), UNTOUCHED)

    def _request(self, client: httpx.Client, method: str, path: str, **options: Any) -> str:
        response = client.request(method, path, **options)
        self.statuses[response.status_code] += 1
        return response.text if response.is_success else ""

    def _expect(self, found: object, wanted: object) -> None:
        if found != wanted:
            self.surprises.append(f"{found!r:.200} instead of {wanted!r:.200}")

    def _change(self, client: httpx.Client, choices: random.Random) -> None:
        name, age = secrets.token_hex(8), choices.randrange(100)
        if not (created := self._request(client, "POST", "/heroes/", json={**DEADPOND, "name": name})):
            return
        self.names[name] = None
        hero = json.loads(created)
        self._expect(hero["name"], name)
        if changed := self._request(client, "PATCH", f"/heroes/{hero['id']}", json={"age": age}):
            self.names[name] = age
            self._expect(json.loads(changed), {**hero, "age": age})
        if choices.random() < 0.5 and (answer := self._request(client, "DELETE", f"/heroes/{hero['id']}")):
            self.deleted.add(name)
            self._expect(json.loads(answer), {"ok": True})

    def _retry(self, client: httpx.Client, _: random.Random) -> None:
        name = secrets.token_hex(8)
        request = {"json": {**DEADPOND, "name": name}, "headers": {"Idempotency-Key": name}}
        first, second = (self._request(client, "POST", "/heroes/", **request) for _ in range(2))
        if first or second:
            self.names[name] = None
            self._expect(second, first)

    def _batch(self, client: httpx.Client, _: random.Random) -> None:
        names = [secrets.token_hex(8) for _ in range(5)]
        created = self._request(client, "POST", "/heroes/batch", json=[{**DEADPOND, "name": name} for name in names])
        if created:
            self.names.update(dict.fromkeys(names))
            self._expect([hero["name"] for hero in json.loads(created)], names)

    def _read(self, client: httpx.Client, choices: random.Random) -> None:
        number = choices.randint(100, UNTOUCHED)  # the heroes of the storm are younger
        hero = {"name": f"untouched {number}", "age": number, "id": number}
        if found := self._request(client, "GET", f"/heroes/{number}"):
            self._expect(json.loads(found), hero)
        query = choices.choice((f"name=untouched {number}", f"min_age={number}&max_age={number}&sort=-age"))
        if found := self._request(client, "GET", f"/heroes/?{query}"):
            self._expect(json.loads(found), [hero])


def test_two_processes_never_run_another_statement_than_was_asked_for(
    pooled_url: URL, postgres_url: URL, tmp_path: Path
) -> None:
    untouched = (
        "SELECT md5(string_agg(concat_ws('|', id, name, age, secret_name, version), ',' ORDER BY id)), count(*)"
        f" FROM hero WHERE id <= {UNTOUCHED}"
    )
    execute(
        postgres_url,
        "INSERT INTO hero (name, age, secret_name)"
        f" SELECT 'untouched ' || i, i, 'x' FROM generate_series(1, {UNTOUCHED}) i",
    )
    before = run_in_transaction(postgres_url, lambda connection: connection.execute(text(untouched)).one())
    settings: dict[str, Any] = {"DATABASE_POOLER": "transaction"}
    with (
        running_service(pooled_url, tmp_path / "one", **settings) as one,
        running_service(pooled_url, tmp_path / "other", **settings) as other,
        httpx.Client(base_url=f"http://127.0.0.1:{one.port}", timeout=TIMEOUT) as one_client,
        httpx.Client(base_url=f"http://127.0.0.1:{other.port}", timeout=TIMEOUT) as other_client,
    ):
        storm = Storm((one_client, other_client))
        storm.run()
    found = run_in_transaction(
        postgres_url,
        lambda connection: connection.execute(text(f"SELECT name, age FROM hero WHERE id > {UNTOUCHED}")).all(),
    )
    kept = {name: age for name, age in storm.names.items() if name not in storm.deleted}
    facts = {
        "statuses": dict(storm.statuses),
        "responses to something else": len(storm.surprises),
        "deleted heroes that are there": len(storm.deleted & {name for name, _ in found}),
        "created heroes that are not there": len(kept.keys() - {name for name, _ in found}),
        "rows beyond those": len(found) - len(kept),
        "other ages": sum(kept.get(name) != age for name, age in found if name in kept),
        "untouched": run_in_transaction(postgres_url, lambda connection: connection.execute(text(untouched)).one())
        == before,
        "untouched rows": fetch_value(postgres_url, f"SELECT count(*) FROM hero WHERE id <= {UNTOUCHED}"),
    }
    assert facts == {
        "statuses": {200: storm.statuses[200]},
        "responses to something else": 0,
        "deleted heroes that are there": 0,
        "created heroes that are not there": 0,
        "rows beyond those": 0,
        "other ages": 0,
        "untouched": True,
        "untouched rows": UNTOUCHED,
    }, storm.surprises[:5]
    assert min(len(storm.deleted), len(kept)) > CLIENTS


class TestLimits:
    async def test_a_change_of_a_locked_row_is_503_after_the_lock_timeout(
        self, pooled_url: URL, postgres_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(pooled_url, lock_timeout=0.2, statement_timeout=TIMEOUT) as client:
            hero = (await client.post("/heroes/", json=DEADPOND)).json()
            holder = await connect(postgres_url)
            async with holder.transaction():
                await holder.execute("UPDATE hero SET age = 1")
                assert (await client.patch(f"/heroes/{hero['id']}", json={"age": 2})).status_code == 503
            await holder.close()
            assert "lock timeout" in caplog.text
            assert (await client.patch(f"/heroes/{hero['id']}", json={"age": 2})).status_code == 200

    @pytest.mark.parametrize("autocommit", [False, True])
    async def test_a_session_has_both_limits(self, sessionmaker: SessionMaker, *, autocommit: bool) -> None:
        async with sessionmaker(autocommit=autocommit) as session:
            limits = [
                (await session.connection()).exec_driver_sql(f"SHOW {name}")
                for name in ("lock_timeout", "statement_timeout")
            ]
            assert [(await limit).scalar_one() for limit in limits] == ["5s", "10s"]

    async def test_the_next_client_of_a_server_connection_does_not_inherit_them(self, postgres_url: URL) -> None:
        with pgbouncer(postgres_url, default_pool_size="1") as url:
            async with serving(url, pool_size=1) as client:
                assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
                other = await connect(url)
                assert await other.fetchval("SHOW lock_timeout") == "0"
                assert await other.fetchval("SHOW statement_timeout") == "0"
                await other.close()


class TestRefusal:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"ignore_startup_parameters": "options,extra_float_digits"},
            {"ignore_startup_parameters": "options", "pool_mode": "session"},
        ],
        ids=["defaults", "options ignored", "session mode"],
    )
    async def test_a_pooler_that_the_service_was_not_told_of_is_503_and_the_log_names_the_setting(
        self, postgres_url: URL, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with pgbouncer(postgres_url, **settings) as url:
            async with serving(url, database_pooler=None) as client:
                for path in ("/heroes/", "/readyz"):
                    response = await client.get(path)
                    assert response.status_code == 503
                    assert response.headers["Retry-After"] == "1"
        assert POOLER in caplog.text

    async def test_statement_mode_is_503_and_the_log_names_it(
        self, postgres_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pgbouncer(postgres_url, pool_mode="statement") as url:
            async with serving(url) as client:
                for path in ("/heroes/", "/readyz"):
                    assert (await client.get(path)).status_code == 503
        assert "not allowed in statement pooling mode" in caplog.text

    async def test_options_in_the_url_are_503_and_the_log_names_them(
        self, pooled_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(pooled_url.update_query_dict({"options": "-c lock_timeout=1s"})) as client:
            assert (await client.get("/heroes/")).status_code == 503
        assert "unsupported startup parameter" in caplog.text
        assert POOLER not in caplog.text

    @pytest.mark.parametrize("heroes", [DEADPOND, [DEADPOND, DEADPOND]], ids=["execute", "executemany"])
    async def test_autocommit_of_the_driver_is_refused(self, sessionmaker: SessionMaker, heroes: Any) -> None:
        insert = text("INSERT INTO hero (name, secret_name) VALUES (:name, :secret_name)")
        async with sessionmaker() as session:
            connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            with pytest.raises(DBAPIError, match=NO_TRANSACTION.replace("'", ".")):
                await connection.execute(insert, heroes)
        async with sessionmaker() as session:
            assert await (await session.connection()).scalar(text("SELECT count(*) FROM hero")) == 0


async def test_of_several_poolers_the_one_in_front_of_the_primary_is_used(pair: Pair) -> None:
    with pgbouncer(pair.standby.url) as standby, pgbouncer(pair.primary.url) as primary:
        async with serving(pair.url.update_query_dict({"port": f"{standby.port},{primary.port}"})) as client:

            async def can_write() -> bool:
                return (await client.post("/heroes/", json=DEADPOND)).status_code == 200

            assert await can_write()
            await asyncio.to_thread(pair.wait_for_replay)
            await asyncio.to_thread(pair.primary.kill)
            assert not await can_write()
            await asyncio.to_thread(pair.standby.promote)
            await wait_until_async(can_write)


async def test_a_pooler_in_front_of_a_server_in_another_role_than_asked_for_is_503(
    pooled_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(pooled_url.update_query_dict({"target_session_attrs": "standby"})) as client:
        assert (await client.get("/heroes/")).status_code == 503
    assert "TargetServerAttributeNotMatched" in caplog.text


class TestMigrations:
    @pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["defaults", "ignored"])
    def test_an_upgrade_through_a_pooler_fails_with_one_sentence(
        self, postgres_url: URL, settings: dict[str, Any]
    ) -> None:
        with pgbouncer(postgres_url, **settings) as url:
            result = try_alembic(url, "upgrade", "head", DATABASE_POOLER="transaction")
        assert result.returncode != 0
        assert [line for line in result.stdout.splitlines() if POOLER in line] == result.stdout.splitlines()
        assert "Nothing was changed." in result.stdout

    def test_the_service_is_deployed_with_one_url_for_itself_and_one_for_alembic(
        self, pgbouncer_url: URL, postgres_databases: Databases, tmp_path: Path
    ) -> None:
        direct = postgres_databases.empty()
        url = pgbouncer_url.set(database=direct.database)
        settings: dict[str, Any] = {"DATABASE_POOLER": "transaction", "MIGRATION_DATABASE_URL": render_url(direct)}
        alembic(url, "upgrade", "head", **settings)
        assert HEAD in alembic(url, "current", **settings)
        status = run("python", "-m", "migrations.status", changes={"DATABASE_URL": render_url(url), **settings})
        assert f"current: {HEAD}\n" in status.stdout
        with running_service(url, tmp_path / "log", **settings) as service:
            response = httpx.post(f"http://127.0.0.1:{service.port}/heroes/", json=DEADPOND)
            assert response.status_code == 200
        postgres_databases.drop(direct)


async def test_a_statement_that_fails_in_autocommit_leaves_the_session_usable(sessionmaker: SessionMaker) -> None:
    async with sessionmaker(autocommit=True) as session:
        connection = await session.connection()
        with pytest.raises(IntegrityError):
            await connection.execute(text("INSERT INTO hero (name, secret_name) VALUES (NULL, 'x')"))
        await connection.execute(text("INSERT INTO hero (name, secret_name) VALUES ('x', 'x')"))
    async with sessionmaker(read=True, autocommit=True) as session:
        assert await (await session.connection()).scalar(text("SELECT count(*) FROM hero")) == 1


class TestFailures:
    async def test_a_request_that_is_cancelled_leaves_no_transaction(self, pooled_url: URL, postgres_url: URL) -> None:
        async with serving(pooled_url) as client:
            hero = (await client.post("/heroes/", json=DEADPOND)).json()
            path = f"/heroes/{hero['id']}"
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
            holder, observer = await connect(postgres_url), await connect(postgres_url)
            async with holder.transaction():
                await holder.execute("UPDATE hero SET name = name")
                changes = [asyncio.create_task(client.patch(path, json={"age": 2})) for _ in range(3)]

                async def are_blocked() -> bool:
                    return bool(await observer.fetchval(waiting, postgres_url.database) == len(changes))

                await wait_until_async(are_blocked)
                for change in changes:
                    change.cancel()
                await asyncio.gather(*changes, return_exceptions=True)
            await holder.close()
            await observer.close()
            assert (await client.get(path)).json() == hero
            assert (await client.patch(path, json={"age": 3})).status_code == 200

    async def test_server_connections_that_are_lost_are_503_at_most(self, pooled_url: URL, postgres_url: URL) -> None:
        statuses: Counter[int] = Counter()
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
        server = await connect(postgres_url.set(database="postgres"))
        async with serving(pooled_url) as client, sending(client, statuses):
            for _ in range(20):
                await server.execute(kill.replace("$1", f"'{postgres_url.database}'"))
                await wait_for_more(statuses, 200)
        await server.close()
        assert set(statuses) == {200, 503}

    async def test_a_restart_of_the_pooler_is_503_until_it_is_back(self, postgres_url: URL) -> None:
        port = free_port()
        statuses: Counter[int] = Counter()
        with ExitStack() as first, ExitStack() as second:
            url = first.enter_context(pgbouncer(postgres_url, port))
            async with serving(url) as client:
                async with sending(client, statuses):
                    await wait_for_more(statuses, 200)
                    await asyncio.to_thread(first.close)
                    await wait_for_more(statuses, 503)
                    await asyncio.to_thread(second.enter_context, pgbouncer(postgres_url, port))
                    await wait_for_more(statuses, 200)
                assert (await client.get("/readyz")).status_code == 200
        assert set(statuses) == {200, 503}


@asynccontextmanager
async def sending(client: httpx.AsyncClient, statuses: Counter[int]) -> AsyncIterator[None]:
    """Let many clients create, read and change heroes for a block."""
    ended = asyncio.Event()

    async def send() -> None:
        while not ended.is_set():
            response = await client.post("/heroes/", json=DEADPOND)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                path = f"/heroes/{response.json()['id']}"
                statuses[(await client.get(path)).status_code] += 1
                statuses[(await client.patch(path, json={"age": 1})).status_code] += 1
            else:
                await asyncio.sleep(0.01)  # as a client that retries

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(send())
        try:
            yield
        finally:
            ended.set()


async def wait_for_more(statuses: Counter[int], status: int) -> None:
    """Wait until each client can have had another response with the status."""
    before = statuses[status]

    async def are_there() -> bool:
        return statuses[status] > before + CLIENTS

    await wait_until_async(are_there)
