"""A replica that is read from, as long as it is there and not too far behind. `make test-replication`."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from sqlalchemy import URL, UpdateBase, insert

from app.heroes.models import Hero
from app.heroes.queries import HEROES
from app.main import create_app
from app.sessions import ReadSessionDep
from app.settings import Settings
from tests.support.alembic_commands import migrate
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.load import running_load
from tests.support.polling import wait_until, wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.replicated import MAX_LAG, client_of, reads_from, send, serving
from tests.support.replication import Pair, running_pair
from tests.support.service import Service
from tests.support.sql import execute, execute_autocommit

pytestmark = pytest.mark.replication

LONGEST_READ = 3  # seconds, when the replica fails
STOP = 45  # seconds that a process may take to stop


@pytest.fixture(scope="module", autouse=True)
def _binaries(postgres: URL) -> None:
    """Let the package of Postgres prepare its binaries and their user, which it does for its first server."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and an asynchronous standby."""
    with running_pair(synchronous=False) as pair:
        yield pair


@pytest.fixture(scope="module")
def service(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that reads from the standby."""
    with serving(pair.primary.url, pair.standby, tmp_path_factory.mktemp("service")) as service:
        wait_until(lambda: reads_from(pair.standby, service))
        yield service


@pytest.mark.parametrize(("method", "path"), [("GET", "/heroes/"), ("GET", "/heroes/1"), ("HEAD", "/heroes/")])
def test_a_safe_request_reads_from_the_replica_alone(pair: Pair, service: Service, method: str, path: str) -> None:
    wait_until(lambda: reads_from(pair.standby, service))
    assert not reads_from(pair.primary, service, method, path)
    assert reads_from(pair.standby, service, method, path)


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/heroes/", {"json": DEADPOND}),
        ("PATCH", "/heroes/0", {"json": {"age": 1}}),
        ("DELETE", "/heroes/0", {}),
        ("GET", "/heroes/export", {}),
        ("GET", "/heroes/", {"headers": {"Cache-Control": "no-cache"}}),
        ("GET", "/heroes/", {"headers": {"Cache-Control": "no-transform, Max-Age=0"}}),
        ("GET", "/heroes/", {"headers": {"Cookie": "other=2; recent_write=1"}}),
        ("GET", "/heroes/", {"headers": {"Cookie": 'other="1\\0542"; recent_write=1'}}),
    ],
    ids=["post", "patch", "delete", "export", "no-cache", "max-age", "cookie", "cookie-beside-a-backslash"],
)
def test_every_other_request_goes_to_the_primary_alone(
    pair: Pair, service: Service, method: str, path: str, options: dict[str, Any]
) -> None:
    wait_until(lambda: reads_from(pair.standby, service))
    assert not reads_from(pair.standby, service, method, path, **options)
    assert reads_from(pair.primary, service, method, path, **options)


def test_a_client_reads_its_own_write_and_others_see_it_within_the_longest_lag(pair: Pair, service: Service) -> None:
    wait_until(lambda: reads_from(pair.standby, service))
    with pair.paused_replay(), client_of(service) as writer, client_of(service) as other:
        created = writer.post("/heroes/", json=DEADPOND)
        path = f"/heroes/{created.json()['id']}"
        assert other.get(path).status_code == 404
        while "cookie" in (response := writer.get(path)).request.headers:  # until it has expired
            assert response.status_code == 200
        assert response.status_code == 200
        assert other.get(path).status_code == 200
        assert not reads_from(pair.standby, service, path=path)
        service.wait_for_log(f"The replica is more than {MAX_LAG} s behind.")
    wait_until(lambda: reads_from(pair.standby, service, path=path))
    service.wait_for_log("The replica is up to date again.")


@pytest.mark.parametrize("failure", ["kill", "freeze"])
def test_when_the_replica_fails_under_load_every_request_succeeds(pair: Pair, failure: str, tmp_path: Path) -> None:
    with serving(pair.primary.url, pair.standby, tmp_path) as service:
        wait_until(lambda: reads_from(pair.standby, service))
        with running_load(service.port, readers=4) as load:
            load.wait_for()
            getattr(pair.standby, failure)()
            try:
                service.wait_for_log("The replica does not answer.")
                load.wait_for()
            finally:
                pair.standby.recover()
            wait_until(lambda: service.log.read_text().count("The replica answers.") == 2, service.log.read_text)
            wait_until(lambda: reads_from(pair.standby, service))
            load.wait_for()
    assert load.statuses() == {200}
    assert max(seen.seconds for seen in load.reads) < LONGEST_READ
    assert service.log.read_text().count("The replica does not answer.") == 1


@pytest.mark.parametrize("name", ["primary", "standby"])
def test_a_server_that_answers_on_a_new_connection_is_not_silent(pair: Pair, service: Service, name: str) -> None:
    node = getattr(pair, name)
    heartbeats = (
        "SELECT max(pid) FROM pg_stat_activity WHERE query LIKE '%pg_postmaster_start%' AND pid <> pg_backend_pid()"
        " AND pid <> {}"
    )
    wait_until(lambda: reads_from(pair.standby, service))
    before = service.log.read_text().count("does not answer")
    backend = psutil.Process(cast(int, execute_autocommit(node.url, heartbeats.format(0))))
    backend.suspend()
    try:
        wait_until(lambda: execute_autocommit(node.url, heartbeats.format(backend.pid)))
    finally:
        backend.resume()
    assert service.log.read_text().count("does not answer") == before


def test_a_read_that_the_replica_cancels_is_answered_by_the_primary(pair: Pair, service: Service) -> None:
    conflicts = "SELECT confl_lock FROM pg_stat_database_conflicts WHERE datname = 'postgres'"
    execute(
        pair.primary.url,
        "INSERT INTO hero (name, secret_name) SELECT 'x', 'x' FROM generate_series(1, 100000)",
    )
    pair.wait_for_replay()

    def cancel() -> object:
        execute(pair.primary.url, "LOCK TABLE hero IN ACCESS EXCLUSIVE MODE")
        return execute_autocommit(pair.standby.url, conflicts) != before

    before = execute_autocommit(pair.standby.url, conflicts)
    try:
        with running_load(service.port, writers=0, path="/heroes/?limit=1&count=exact") as load:
            wait_until(cancel)
    finally:
        execute(pair.primary.url, "DELETE FROM hero WHERE name = 'x'")
    assert load.statuses() == {200}


@pytest.mark.parametrize("statement", [insert(Hero), insert(HEROES)], ids=["orm", "core"])
async def test_a_write_that_the_replica_refuses_is_503_and_not_repeated_on_the_primary(
    pair: Pair, statement: UpdateBase
) -> None:
    app = create_app(Settings(database_url=pair.primary.url, database_replica_url=pair.standby.url))

    @app.get("/writes")
    async def write_by_a_read_session(session: ReadSessionDep) -> None:
        await session.exec(statement, params={"name": "misplaced", "secret_name": "x"})

    async with running(app) as client:

        async def is_refused() -> bool:
            return (await client.get("/writes")).status_code == 503

        await wait_until_async(is_refused)  # the primary answers until the first heartbeats have
    await asyncio.to_thread(execute, pair.primary.url, "DELETE FROM hero WHERE name = 'misplaced'")


def test_a_replica_that_is_missing_at_the_start_is_read_from_when_it_is_there(pair: Pair, tmp_path: Path) -> None:
    pair.standby.kill()
    try:
        with serving(pair.primary.url, pair.standby, tmp_path) as service:
            service.wait_for_log("The replica does not answer.")
            assert reads_from(pair.primary, service)
            pair.standby.start()
            wait_until(lambda: reads_from(pair.standby, service))
            for state in ("does not answer", "answers"):
                assert service.log.read_text().count(f"The replica {state}") == 1
    finally:
        pair.standby.recover()


def test_a_primary_is_not_accepted_as_a_replica(pair: Pair, tmp_path: Path) -> None:
    with serving(pair.primary.url, pair.primary, tmp_path) as service:
        service.wait_for_log("The replica does not answer.")
        assert "standby" in service.log.read_text()
        assert reads_from(pair.primary, service)


def test_a_replica_is_not_read_from_before_it_has_the_schema(pair: Pair, tmp_path: Path) -> None:
    execute_autocommit(pair.primary.url, "CREATE DATABASE behind")
    pair.wait_for_replay()
    url = pair.primary.url.set(database="behind")
    with pair.paused_replay(), serving(url, pair.standby, tmp_path, REPLICA_MAX_LAG="60") as service:
        service.wait_for_log("The replica answers.")
        assert send(service, "GET", "/heroes/").status_code == 503
        migrate(url)
        wait_until(lambda: send(service, "GET", "/readyz").status_code == 200)
        began_at = time.monotonic()
        while time.monotonic() < began_at + 2:  # some heartbeats
            assert send(service, "GET", "/heroes/").status_code == 200


def test_of_several_hosts_the_primary_is_migrated_and_served(pair: Pair, tmp_path: Path) -> None:
    execute_autocommit(pair.primary.url, "CREATE DATABASE other")
    pair.wait_for_replay()
    url = Pair(pair.standby, pair.primary).url.set(database="other")
    migrate(url)
    with serving(url, None, tmp_path) as service:
        assert send(service, "POST", "/heroes/", json=DEADPOND).status_code == 200


def test_a_service_stops_in_time_while_its_servers_hang(pair: Pair, tmp_path: Path) -> None:
    with serving(pair.primary.url, pair.standby, tmp_path) as service:
        wait_until(lambda: reads_from(pair.standby, service))
        for node in pair:
            node.freeze()
        try:
            began_at = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(TIMEOUT)
            assert time.monotonic() - began_at < STOP
        finally:
            for node in pair:
                node.thaw()
