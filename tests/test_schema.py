"""What happens while the database has not the schema that this release needs."""

import asyncio
import logging

import httpx
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, event, text

from app.database import create_engine
from app.main import create_app
from app.schema import INTERVAL
from app.settings import Settings
from tests.conftest import ROOT, migrate, running

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}
OPERATIONS = [
    ("POST", "/heroes/"),
    ("GET", "/heroes/"),
    ("GET", "/heroes/1"),
    ("PATCH", "/heroes/1"),
    ("DELETE", "/heroes/1"),
]


async def set_revision(url: URL, revision: str) -> None:
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    await engine.dispose()


async def becomes_ready(client: httpx.AsyncClient) -> bool:
    for _ in range(100):
        if (await client.get("/heroes/")).status_code == 200:
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.parametrize(("revision", "have"), [(None, "none"), ("0001", "0001")])
class TestBehind:
    async def test_every_operation_is_unavailable_and_says_what_is_there_and_what_is_needed(
        self, empty_url: URL, revision: str | None, have: str
    ) -> None:
        if revision:
            await asyncio.to_thread(migrate, empty_url, revision)
        head = ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).get_current_head()
        detail = f"The database is at revision {have}, this release needs {head}: run 'alembic upgrade head'."
        async with running(create_app(Settings(database_url=empty_url))) as client:
            for method, path in [*OPERATIONS, ("GET", "/readyz")]:
                response = await client.request(method, path, json=HERO)
                assert (response.status_code, response.json()) == (503, {"detail": detail})
                assert response.headers["Retry-After"] == "1"
            assert (await client.get("/livez")).status_code == 200

    async def test_the_log_says_so_once_with_the_command_to_run(
        self, empty_url: URL, revision: str | None, have: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if revision:
            await asyncio.to_thread(migrate, empty_url, revision)
        caplog.set_level(logging.INFO, "app")
        caplog.clear()
        async with running(create_app(Settings(database_url=empty_url))) as client:
            await client.get("/readyz")
            await client.get("/readyz")
        messages = [record.getMessage() for record in caplog.records if record.name == "app.schema"]
        assert len(messages) == 1
        assert have in messages[0]
        assert "alembic upgrade head" in messages[0]

    async def test_an_upgrade_is_noticed_without_a_restart(
        self, empty_url: URL, revision: str | None, have: str
    ) -> None:
        if revision:
            await asyncio.to_thread(migrate, empty_url, revision)
        async with running(create_app(Settings(database_url=empty_url))) as client:
            assert have in (await client.post("/heroes/", json=HERO)).text
            await asyncio.to_thread(migrate, empty_url)
            assert await becomes_ready(client)
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.post("/heroes/", json=HERO)).status_code == 200


async def test_a_thousand_refused_requests_ask_the_database_once_a_second(empty_url: URL) -> None:
    app = create_app(Settings(database_url=empty_url))
    async with running(app) as client:
        looks: list[float] = []
        loop = asyncio.get_running_loop()
        event.listen(app.state.database.probes.sync_engine, "engine_connect", lambda _: looks.append(loop.time()))
        started = loop.time()
        for _ in range(10):
            answers = await asyncio.gather(*(client.get("/heroes/") for _ in range(100)))
            assert {answer.status_code for answer in answers} == {503}
        assert len(looks) <= 1 + (loop.time() - started)


async def test_once_at_head_operations_ask_for_the_revision_no_more(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app) as client:
        looks: list[Connection] = []
        event.listen(app.state.database.probes.sync_engine, "engine_connect", looks.append)
        for _ in range(3):
            await asyncio.sleep(INTERVAL / 2)
            assert (await client.get("/heroes/")).status_code == 200
        assert not looks


async def test_a_downgrade_under_a_running_service_is_noticed_by_the_next_probe(url: URL) -> None:
    async with running(create_app(Settings(database_url=url))) as client:
        assert (await client.get("/heroes/")).status_code == 200
        await set_revision(url, "0001")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/heroes/")).status_code == 503


async def test_a_look_that_one_caller_gives_up_is_finished_for_the_others(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app) as client:
        impatient = asyncio.create_task(app.state.schema.check())
        patient = asyncio.create_task(client.get("/readyz"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).status_code == 200
        assert impatient.cancelled()


async def test_a_look_does_not_outlive_the_service(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app):
        impatient = asyncio.create_task(app.state.schema.check())
        await asyncio.sleep(0)
        impatient.cancel()
    assert {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()} <= {
        impatient.get_name()
    }


async def test_a_database_that_is_ahead_is_served(url: URL) -> None:
    await set_revision(url, "from_a_newer_release")
    async with running(create_app(Settings(database_url=url))) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/heroes/", json=HERO)).status_code == 200
