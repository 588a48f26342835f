"""The SQL log: each statement with its duration, and never a value."""

import json
import logging
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from app.database import build_engine
from tests.support.service import running_service
from tests.support.sql import execute

MARK, NUMBER = "tvqzxkwj", 1_987_654_321
HERO: dict[str, str | int] = {"name": f"{MARK} name", "age": NUMBER, "secret_name": f"{MARK} secret"}


def send_values(client: httpx.Client, url: URL) -> None:
    """Send values in every way that reaches a statement, and provoke a refusal."""
    created = client.post("/heroes/", json=HERO, headers={"X-Request-ID": "create"}).json()
    keyed = {"Idempotency-Key": MARK}
    for _ in range(2):
        assert client.post("/heroes/", json=HERO, headers=keyed).status_code == 200
    assert client.post("/heroes/batch", json=[HERO] * 500).status_code == 200
    path = f"/heroes/{created['id']}"
    assert client.patch(path, json=HERO, headers={"If-Match": '"1"'}).status_code == 200
    assert client.get(path).status_code == 200
    filters = {
        "name": HERO["name"],
        "min_age": NUMBER,
        "max_age": NUMBER,
        "count": "exact",
        "limit": 2,
    }
    for sort in ("name", "-age", "id"):
        page = client.get("/heroes/", params=filters | {"sort": sort})
        assert len(page.json()) == 2
        assert client.get(page.links["next"]["url"]).status_code == 200
    assert client.get("/heroes/export", params={"min_age": NUMBER}).status_code == 200
    assert client.get("/heroes/", params={"offset": NUMBER}).status_code == 200
    execute(url, "DELETE FROM hero WHERE id > 1", "CREATE UNIQUE INDEX one_secret ON hero (secret_name)")
    assert client.post("/heroes/", json=HERO).status_code == 409
    assert client.delete(path).status_code == 200


@pytest.fixture(scope="module")
def records(module_url: URL, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the service has logged of statements with values."""
    log = tmp_path_factory.mktemp("service") / "log"
    with (
        running_service(module_url, log, LOG_FORMAT="json", LOG_LEVEL="DEBUG") as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client,
    ):
        send_values(client, module_url)
    return [record for line in log.read_text().splitlines() if (record := json.loads(line))["logger"] == "app.sql"]


def test_each_statement_is_logged_with_its_duration_its_request_and_no_value(records: list[dict[str, Any]]) -> None:
    text = json.dumps(records)
    assert MARK not in text
    assert str(NUMBER) not in text
    (created,) = [record for record in records if record.get("request_id") == "create"]
    assert created["message"].startswith(f"{created['duration_ms']} ms, rows 1: INSERT INTO hero (")
    assert created["duration_ms"] > 0
    for words in ("SELECT ", "UPDATE hero SET ", "DELETE FROM hero ", "INSERT INTO idempotency_key"):
        assert words in text
    (refused,) = [record for record in records if "error" in record]
    assert refused["error"] in {"IntegrityError", "UniqueViolationError"}
    assert f" ms, error {refused['error']}: INSERT INTO hero (" in refused["message"]


def test_a_long_statement_is_cut(records: list[dict[str, Any]]) -> None:
    assert all(len(record["message"]) < 1_200 for record in records)
    assert not any("\n" in record["message"] for record in records)


@pytest.mark.parametrize(("level", "listeners"), [(logging.INFO, 0), (logging.DEBUG, 1)])
async def test_an_engine_has_a_listener_only_if_the_level_asks_for_it(
    url: URL, caplog: pytest.LogCaptureFixture, level: int, listeners: int
) -> None:
    caplog.set_level(level, "app.sql")
    engine = build_engine(url, {})
    assert len(list(engine.sync_engine.dispatch.before_cursor_execute)) == listeners
    await engine.dispose()
