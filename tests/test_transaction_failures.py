"""Serialization failures and deadlocks: each operation is 503 with Retry-After, and the same request succeeds later.

The service does not retry by itself. A distributed database raises these errors under contention; Postgres raises them
for deadlocks, and at isolation levels that the service does not use.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, text

from app.database import build_engine
from app.errors import PROBLEMS
from app.keyset import CHUNK
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND, RUSTY_MAN
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.raw_http import request_head
from tests.support.sql import execute, fetch_value

HEROES = CHUNK + 10
# Every statement fails that reads a row from the id `first` on, or writes one.
FAILURE = [
    "CREATE TABLE failure (code text, first bigint)",
    """
    CREATE FUNCTION fail(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE failure record;
        BEGIN
            SELECT * INTO failure FROM failure WHERE first <= id;
            IF FOUND THEN RAISE EXCEPTION 'forced' USING ERRCODE = failure.code; END IF;
            RETURN true;
        END
    $$
    """,
    """
    CREATE FUNCTION fail_insert() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM fail(NEW.id); RETURN NEW; END
    $$
    """,
    "ALTER TABLE hero RENAME TO stored_hero",
    "CREATE VIEW hero AS SELECT * FROM stored_hero WHERE fail(id)",
    "ALTER VIEW hero ALTER version SET DEFAULT 1, ALTER id SET DEFAULT nextval('hero_id_seq')",
    "CREATE TRIGGER fail AFTER INSERT ON stored_hero FOR EACH ROW EXECUTE FUNCTION fail_insert()",
    (
        "INSERT INTO stored_hero (name, age, secret_name)"
        f" SELECT 'Hero ' || n, n % 90, 'x' FROM generate_series(1, {HEROES}) AS n"
    ),
]
KEY = {"Idempotency-Key": "k"}
BATCH = [DEADPOND, RUSTY_MAN]
OPERATIONS: list[tuple[str, str, Any, dict[str, str]]] = [
    ("GET", "/heroes/1", None, {}),
    ("GET", "/heroes/?sort=-age", None, {}),
    ("GET", "/heroes/?limit=0&count=exact", None, {}),
    ("GET", "/heroes/export", None, {}),
    ("POST", "/heroes/", DEADPOND, {}),
    ("POST", "/heroes/", DEADPOND, KEY),
    ("POST", "/heroes/batch", BATCH, {}),
    ("POST", "/heroes/batch", BATCH, KEY),
    ("PATCH", "/heroes/1", {"age": 7}, {}),
    ("PATCH", "/heroes/2", {"age": 7}, {"If-Match": '"1"'}),
    ("DELETE", "/heroes/1", None, {}),
]
STORED = (
    "SELECT (SELECT count(*) FROM stored_hero) + (SELECT count(*) FROM idempotency_key)"
    " + (SELECT sum(version) FROM stored_hero)"
)


@pytest.fixture
def failing_url(postgres_url: URL) -> URL:
    """A database whose statements fail once `failure` has a row."""
    execute(postgres_url, *FAILURE)
    return postgres_url


@pytest.fixture
async def client(failing_url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the app on it."""
    async with running(create_app(Settings(database_url=failing_url))) as client:
        yield client


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_each_operation_is_503_stores_nothing_and_succeeds_later(
    client: httpx.AsyncClient, failing_url: URL, code: str
) -> None:
    for method, path, body, headers in OPERATIONS:
        before = await asyncio.to_thread(fetch_value, failing_url, STORED)
        await asyncio.to_thread(execute, failing_url, f"INSERT INTO failure VALUES ('{code}', 1)")
        refused = await client.request(method, path, json=body, headers=headers)
        assert (refused.status_code, refused.json()) == (503, {"detail": PROBLEMS[503][1]}), (method, path)
        assert refused.headers["Retry-After"] == "1"
        assert await asyncio.to_thread(fetch_value, failing_url, STORED) == before
        await asyncio.to_thread(execute, failing_url, "DELETE FROM failure")
        assert (await client.request(method, path, json=body, headers=headers)).status_code == 200, (method, path)


async def test_a_batch_whose_last_row_fails_stores_no_row(client: httpx.AsyncClient, failing_url: URL) -> None:
    before = await asyncio.to_thread(fetch_value, failing_url, STORED)
    last = HEROES + len(BATCH)
    await asyncio.to_thread(execute, failing_url, f"INSERT INTO failure VALUES ('40001', {last})")
    assert (await client.post("/heroes/batch", json=BATCH, headers=KEY)).status_code == 503
    assert await asyncio.to_thread(fetch_value, failing_url, STORED) == before


async def test_a_failure_in_a_later_chunk_truncates_an_export(failing_url: URL) -> None:
    await asyncio.to_thread(execute, failing_url, f"INSERT INTO failure VALUES ('40001', {CHUNK + 5})")
    # Rows are read in the order of the index then, as from a larger table: no further than a chunk needs.
    in_order = failing_url.update_query_dict({"options": "-c enable_sort=off"})
    async with listening(create_app(Settings(database_url=in_order))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head("GET /heroes/export"))
        async with asyncio.timeout(TIMEOUT):
            received = await reader.read()
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert b'"id":1000}' in body
    assert b'"id":1001}' not in body
    assert not body.endswith(b"0\r\n\r\n")


async def test_an_idempotent_post_in_a_real_deadlock_is_503_and_runs_once_later(
    postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds its key and waits for a row of another transaction, which waits for the key."""
    impatient = postgres_url.update_query_dict({"options": "-c deadlock_timeout=3s"})
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    engine = build_engine(postgres_url, {"deadlock_timeout": "1h"})  # so that the service's transaction is the victim
    async with running(create_app(Settings(database_url=impatient))) as client, engine.connect() as other:
        await other.execute(text("INSERT INTO hero (id, name, secret_name) VALUES (1, 'Other', 'x')"))
        posting = asyncio.create_task(client.post("/heroes/", json=DEADPOND, headers=KEY))
        await wait_until_async(lambda: asyncio.to_thread(fetch_value, postgres_url, waiting))
        await other.execute(
            text(
                "INSERT INTO idempotency_key (scope, key, fingerprint, expires_at)"
                " VALUES ('POST /heroes', 'k', 'x', now())"
            )
        )
        refused = await posting
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "40P01" in caplog.text
        await other.rollback()
        created = await client.post("/heroes/", json=DEADPOND, headers=KEY)
        assert created.status_code == 200
        assert (await client.post("/heroes/", json=DEADPOND, headers=KEY)).content == created.content
        assert json.loads((await client.get("/heroes/")).content) == [created.json()]
    await engine.dispose()
