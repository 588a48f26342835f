"""The SQL log: each statement with its duration, and never a value."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from app.database import build_engine
from app.log_config import JSONFormatter
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.sql import execute

pytestmark = pytest.mark.usefixtures("request_ids")

MARK, NUMBER = "tvqzxkwj", 1_987_654_321
HERO: dict[str, str | int] = {"name": f"{MARK} name", "age": NUMBER, "secret_name": f"{MARK} secret"}


@pytest.fixture
async def client(url: URL, caplog: pytest.LogCaptureFixture) -> AsyncIterator[httpx.AsyncClient]:
    """A client for an app with the SQL log."""
    caplog.set_level(logging.DEBUG, "app.sql")
    async with running(create_app(Settings(database_url=url))) as client:
        yield client


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Read the log so far as a service writes it."""
    formatter = JSONFormatter()
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name == "app.sql"]


async def send_values(client: httpx.AsyncClient, url: URL) -> None:
    """Send values in every way that reaches a statement, and provoke a refusal."""
    created = (await client.post("/heroes/", json=HERO, headers={"X-Request-ID": "create"})).json()
    for _ in range(2):
        assert (await client.post("/heroes/", json=HERO, headers={"Idempotency-Key": MARK})).status_code == 200
    assert (await client.post("/heroes/batch", json=[HERO] * 2)).status_code == 200
    path = f"/heroes/{created['id']}"
    assert (await client.patch(path, json=HERO, headers={"If-Match": '"1"'})).status_code == 200
    assert (await client.get(path)).status_code == 200
    filters = {"name": HERO["name"], "min_age": NUMBER, "max_age": NUMBER, "count": "exact", "limit": 2}
    for sort in ("name", "-age", "id"):
        page = await client.get("/heroes/", params=filters | {"sort": sort})
        assert len(page.json()) == 2
        assert (await client.get(page.links["next"]["url"])).status_code == 200
    assert (await client.get("/heroes/export", params={"min_age": NUMBER})).status_code == 200
    assert (await client.get("/heroes/", params={"offset": NUMBER})).status_code == 200
    unique = ("DELETE FROM hero WHERE id > 1", "CREATE UNIQUE INDEX one_secret ON hero (secret_name)")
    await asyncio.to_thread(execute, url, *unique)
    assert (await client.post("/heroes/", json=HERO)).status_code == 409
    assert (await client.delete(path)).status_code == 200


async def test_each_statement_is_a_line_with_its_duration_its_request_and_no_value(
    client: httpx.AsyncClient, url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    await send_values(client, url)
    logged = lines(caplog)
    text = json.dumps(logged)
    assert MARK not in text
    assert str(NUMBER) not in text
    assert not any("\n" in line["message"] for line in logged)
    (created,) = [line for line in logged if line.get("request_id") == "create"]
    assert created["message"].startswith(f"{created['duration_ms']} ms, rows 1: INSERT INTO hero (")
    assert created["duration_ms"] > 0
    for words in ("SELECT ", "UPDATE hero SET ", "DELETE FROM hero ", "INSERT INTO idempotency_key"):
        assert words in text
    (refused,) = [line for line in logged if "error" in line]
    assert refused["error"] in {"IntegrityError", "UniqueViolationError"}
    assert f" ms, error {refused['error']}: INSERT INTO hero (" in refused["message"]


async def test_a_long_statement_is_cut(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    assert (await client.post("/heroes/batch", json=[HERO] * 500)).status_code == 200
    (long,) = [line["message"] for line in lines(caplog) if " characters)" in line["message"]]
    assert len(long) < 1_200


@pytest.mark.parametrize(("level", "listeners"), [(logging.INFO, 0), (logging.DEBUG, 1)])
async def test_an_engine_has_a_listener_only_if_the_level_asks_for_it(
    sqlite_url: URL, caplog: pytest.LogCaptureFixture, level: int, listeners: int
) -> None:
    caplog.set_level(level, "app.sql")
    engine = build_engine(sqlite_url, {})
    assert len(list(engine.sync_engine.dispatch.before_cursor_execute)) == listeners
    await engine.dispose()
