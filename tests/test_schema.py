"""The service on a database whose revision is not the one that it needs."""

import asyncio
import gc
import logging

import pytest
from fastapi import FastAPI
from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPICursor

from app.main import create_app
from app.schema import INTERVAL
from app.settings import Settings
from tests.support.alembic_commands import BASE, HEAD, migrate
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until_async
from tests.support.sql import execute

OPERATIONS = [
    ("POST", "/heroes/"),
    ("GET", "/heroes/"),
    ("GET", "/heroes/1"),
    ("PATCH", "/heroes/1"),
    ("DELETE", "/heroes/1"),
]


def count_statements(app: FastAPI) -> list[str]:
    """Return a list that gets every statement from now on."""
    statements: list[str] = []
    engine = app.state.sessionmaker.database.reads.sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Connection, _cursor: DBAPICursor, statement: str, *_: object) -> None:
        statements.append(statement)

    return statements


@pytest.mark.parametrize("have", ["none", *{BASE} - {HEAD}])
class TestDatabaseBehindHead:
    @pytest.fixture
    def url(self, empty_url: URL, have: str) -> URL:
        """A database at this revision."""
        if have != "none":
            migrate(empty_url, have)
        return empty_url

    async def test_every_operation_is_503_and_names_the_current_and_the_required_revision(
        self, url: URL, have: str
    ) -> None:
        detail = f"The database is at revision {have}, but this release needs {HEAD}: run 'alembic upgrade head'."
        async with running(create_app(Settings(database_url=url))) as client:
            for method, path in [*OPERATIONS, ("GET", "/readyz")]:
                response = await client.request(method, path, json=DEADPOND)
                assert (response.status_code, response.json()) == (503, {"detail": detail})
                assert response.headers["Retry-After"] == "1"
            assert (await client.get("/livez")).status_code == 200

    async def test_the_log_has_one_line_with_the_command_to_run(
        self, url: URL, have: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        async with running(create_app(Settings(database_url=url))) as client:
            await client.get("/readyz")
            await client.get("/readyz")
        (message,) = messages_of(caplog, "app.schema")
        assert have in message
        assert "alembic upgrade head" in message

    async def test_an_upgrade_makes_the_service_ready_without_a_restart(
        self, url: URL, have: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        async with running(create_app(Settings(database_url=url))) as client:
            assert have in (await client.post("/heroes/", json=DEADPOND)).text
            await asyncio.to_thread(migrate, url)
            assert (await client.get("/readyz")).status_code == 200  # it queries the database now
            for method, path in OPERATIONS:
                assert (await client.request(method, path, json=DEADPOND)).status_code == 200
        assert "The database is ready." in caplog.text


async def test_requests_notice_an_upgrade_without_a_probe(empty_url: URL) -> None:
    async with running(create_app(Settings(database_url=empty_url))) as client:
        assert (await client.get("/heroes/")).status_code == 503
        await asyncio.to_thread(migrate, empty_url)

        async def is_served() -> bool:
            return (await client.get("/heroes/")).status_code == 200

        await wait_until_async(is_served)


@pytest.mark.slow
async def test_a_thousand_refused_requests_check_the_revision_once_a_second(empty_url: URL) -> None:
    app = create_app(Settings(database_url=empty_url))
    async with running(app) as client:
        statements = count_statements(app)
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(10):
            responses = await asyncio.gather(*(client.get("/heroes/") for _ in range(100)))
            assert {response.status_code for response in responses} == {503}
        checks = [statement for statement in statements if "FROM alembic_version" in statement]
        assert len(checks) <= 1 + (loop.time() - started)


async def test_operations_at_head_do_not_check_the_revision_again(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app) as client:
        statements = count_statements(app)
        for _ in range(3):
            await asyncio.sleep(INTERVAL / 2)
            assert (await client.get("/heroes/")).status_code == 200
        assert len(statements) == 3


async def test_the_next_probe_notices_a_downgrade_under_a_running_service(url: URL) -> None:
    async with running(create_app(Settings(database_url=url))) as client:
        assert (await client.get("/heroes/")).status_code == 200
        await asyncio.to_thread(execute, url, "DELETE FROM alembic_version")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/heroes/")).status_code == 503


async def test_a_check_that_one_caller_cancels_continues_for_the_others(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app) as client:
        first = asyncio.create_task(app.state.sessionmaker.schema.check())
        second = asyncio.create_task(client.get("/readyz"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).status_code == 200
        assert first.cancelled()


async def test_a_check_does_not_outlive_the_service(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app):
        first = asyncio.create_task(app.state.sessionmaker.schema.check())
        await asyncio.sleep(0)
        first.cancel()
    assert {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()} <= {first.get_name()}


async def test_a_check_that_waits_while_the_service_stops_is_logged_as_no_error(
    url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app):
        (probes,) = [pool for pool in app.state.sessionmaker.pools if pool.usage.name == "probes"]
        held = await probes.acquire()
        checking = asyncio.create_task(app.state.sessionmaker.schema.check())
        await asyncio.sleep(0)
        checking.cancel()
        monkeypatch.setattr("app.pool.CLOSE_TIMEOUT", 0)
        asyncio.get_running_loop().call_later(0.1, probes.release, held)
    del checking
    gc.collect()
    assert messages_of(caplog, "asyncio") == []


async def test_a_database_ahead_of_head_is_served(url: URL) -> None:
    await asyncio.to_thread(execute, url, "UPDATE alembic_version SET version_num = 'from_a_newer_release'")
    async with running(create_app(Settings(database_url=url))) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
