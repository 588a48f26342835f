"""What a database refuses becomes the status that says whose turn it is."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, Row, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from app.database import create_engine
from app.http import Router
from app.main import create_app
from app.refusals import describe, status_of
from app.sessions import SessionDep, transaction
from app.settings import Settings
from tests.conftest import execute, migrate, running
from tests.processes import PATIENCE

TABLES = [
    "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
    (
        "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES parent (id),"
        " name VARCHAR(9) NOT NULL, age INTEGER CHECK (age >= 0), UNIQUE (name))"
    ),
    "INSERT INTO parent VALUES (1), (2)",
    "INSERT INTO child VALUES (1, 1, 'taken', 1)",
]

router = Router(prefix="/statements")


@router.post("/")
async def run_statements(statements: Sequence[str], session: SessionDep) -> list[Any]:
    """Run plain SQL, in one transaction, and show the first row of the last statement."""
    async with transaction(session):
        connection = await session.connection()
        for statement in statements:
            result = await connection.execute(text(statement))
    row: Row[Any] | None = result.first() if result.returns_rows else None
    return list(row or ())


@asynccontextmanager
async def serving(url: URL, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app on these tables, with one operation more: it runs what it is told."""
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        for table in TABLES:
            await connection.execute(text(table))
    await engine.dispose()
    app = create_app(Settings(database_url=url, **settings))
    app.include_router(router)
    async with running(app) as client:
        yield client


async def status(client: httpx.AsyncClient, *statements: str) -> int:
    response = await client.post("/statements/", json=statements)
    if response.status_code != 200:
        assert isinstance(response.json()["detail"], str)
        assert response.headers.get("Retry-After") == ("1" if response.status_code == 503 else None)
    return response.status_code


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO child (id, name) VALUES (2, 'taken')", 409),
        ("INSERT INTO child (id, name) VALUES (1, 'other')", 409),
        ("INSERT INTO child (id, name, parent_id) VALUES (2, 'other', 99)", 409),
        ("DELETE FROM parent", 409),
        ("INSERT INTO child (id, name) VALUES (2, NULL)", 422),
        ("INSERT INTO child (id, name, age) VALUES (2, 'other', -1)", 422),
        ("SELECT * FROM nowhere", 500),
        ("nonsense", 500),
    ],
)
async def test_a_statement_is_refused_and_nothing_of_its_transaction_is_kept(
    url: URL, statement: str, expected: int
) -> None:
    async with serving(url) as client:
        assert await status(client, "INSERT INTO child (id, name) VALUES (7, 'kept')") == 200
        assert await status(client, "INSERT INTO child (id, name) VALUES (8, 'lost')", statement) == expected
        counted = await client.post("/statements/", json=["SELECT count(*) FROM child"])
        assert counted.json() == [2]


async def test_a_file_that_another_process_writes_to_is_a_matter_of_time(sqlite_url: URL) -> None:
    writer = create_engine(sqlite_url, {})
    async with serving(sqlite_url, lock_timeout=0.1) as client:
        async with writer.begin():
            assert await status(client, "INSERT INTO parent VALUES (3)") == 503
        assert await status(client, "INSERT INTO parent VALUES (3)") == 200
    await writer.dispose()


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["PRAGMA query_only = 1", "INSERT INTO parent VALUES (3)"], 503),
        (["PRAGMA max_page_count = 1", "INSERT INTO hero (name, secret_name) VALUES (hex(zeroblob(99999)), 'x')"], 503),
        (["SELECT zeroblob(2000000000)"], 422),
    ],
)
async def test_sqlite_refuses(sqlite_url: URL, statements: list[str], expected: int) -> None:
    async with serving(sqlite_url) as client:
        assert await status(client, *statements) == expected


async def test_a_folder_that_is_gone_is_a_matter_of_time(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / "data/database.db"))
    await asyncio.to_thread(migrate, url)
    async with running(create_app(Settings(database_url=url))) as client:
        shutil.rmtree(tmp_path / "data")
        assert (await client.get("/heroes/")).status_code == 503
    # The driver's thread tells the loop that it has given the connection up, so the loop must last as long.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, PATIENCE)


@pytest.mark.parametrize(
    ("name", "code"), [("sqlstate", "08006"), ("sqlstate", "28P01"), ("sqlite_errorname", "SQLITE_IOERR_WRITE")]
)
def test_what_a_test_can_not_provoke_is_a_matter_of_time_too(name: str, code: str) -> None:
    orig = Exception()
    setattr(orig, name, code)
    assert status_of(DBAPIError("SELECT 1", None, orig)) == 503


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT pg_sleep(9)", 503),
        ("SELECT pg_terminate_backend(pg_backend_pid())", 503),
        ("INSERT INTO child (id, name) VALUES (3000000000, 'x')", 422),
        ("INSERT INTO child (id, name) VALUES (2, 'longer than nine')", 422),
        ("SELECT chr(0)", 422),
        ("SELECT 1 LIMIT -1", 422),
        ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", 500),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$", 503),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53300'; END $$", 503),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '54000'; END $$", 422),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P03'; END $$", 503),
    ],
)
async def test_postgres_refuses(postgres_url: URL, statement: str, expected: int) -> None:
    async with serving(postgres_url, statement_timeout=0.5) as client:
        assert await status(client, statement) == expected
        assert await status(client, "SELECT 1") == 200


async def test_a_row_that_another_transaction_holds_is_a_matter_of_time(postgres_url: URL) -> None:
    holder = create_engine(postgres_url, {})
    async with serving(postgres_url, lock_timeout=0.1) as client:
        async with holder.begin() as connection:
            await connection.execute(text("SELECT * FROM parent FOR UPDATE"))
            assert await status(client, "DELETE FROM parent WHERE id = 2") == 503
        assert await status(client, "DELETE FROM parent WHERE id = 2") == 200
    await holder.dispose()


async def test_of_two_that_wait_for_each_other_one_is_told_to_come_back(postgres_url: URL) -> None:
    def crossing(first: int, second: int) -> list[str]:
        lock = "SELECT * FROM parent WHERE id = {} FOR UPDATE"
        return [lock.format(first), "SELECT pg_sleep(0.2)", lock.format(second)]

    async with serving(postgres_url) as client:
        statuses = await asyncio.gather(status(client, *crossing(1, 2)), status(client, *crossing(2, 1)))
        assert sorted(statuses) == [200, 503]


async def test_a_connection_that_the_server_closes_is_a_matter_of_time(postgres_url: URL, postgres: URL) -> None:
    async with serving(postgres_url, pool_size=1) as client:
        pid = (await client.post("/statements/", json=["SELECT pg_backend_pid()"])).json()[0]
        at_work = asyncio.create_task(status(client, "SELECT pg_sleep(20)"))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(execute, postgres, f"SELECT pg_terminate_backend({pid}, 5000)")
        assert await at_work == 503
        assert await status(client, "SELECT 1") == 200


async def test_a_server_that_only_reads_is_a_matter_of_time(postgres_url: URL) -> None:
    async with serving(postgres_url) as client:
        assert await status(client, "SET TRANSACTION READ ONLY", "DELETE FROM child") == 503


async def test_a_statement_that_a_migration_made_stale_is_a_matter_of_time(postgres_url: URL) -> None:
    engine = create_engine(postgres_url, {})
    async with serving(postgres_url, pool_size=1) as client:
        assert await status(client, "SELECT * FROM child") == 200
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE child ALTER COLUMN name TYPE text"))
        assert await status(client, "SELECT * FROM child") == 503
        assert await status(client, "SELECT * FROM child") == 200
    await engine.dispose()


@pytest.mark.parametrize(
    "wrong",
    [
        {"database": "nowhere"},
        {"username": "nobody"},
        {"host": "127.0.0.1", "port": 9, "query": {}},
    ],
)
async def test_a_server_that_lets_nobody_in_is_a_matter_of_time(postgres_url: URL, wrong: dict[str, Any]) -> None:
    await assert_unavailable(postgres_url.set(**wrong))


async def test_a_server_that_is_not_the_one_asked_for_is_a_matter_of_time(postgres_url: URL) -> None:
    await assert_unavailable(postgres_url.update_query_dict({"target_session_attrs": "standby"}))


async def assert_unavailable(url: URL) -> None:
    app = create_app(Settings(database_url=url))
    async with running(app) as client:
        app.state.schema._current = True  # noqa: SLF001 - as if it had been there a moment ago
        assert (await client.get("/heroes/")).status_code == 503


@pytest.mark.parametrize("value", [2**40, 10**30, "Dive Wilson"])
async def test_a_value_that_the_driver_can_not_send_is_the_clients(postgres_url: URL, value: object) -> None:
    engine = create_engine(postgres_url, {})
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as refusal:
            await connection.execute(text("SELECT CAST(:value AS INTEGER)"), {"value": value})
    await engine.dispose()
    assert status_of(refusal.value) == 422
    assert describe(refusal.value) == "DBAPIError 22000"


async def test_what_a_database_says_of_a_value_is_not_written_down(url: URL) -> None:
    engine = create_engine(url, {})
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as refusal:
            await connection.execute(text("INSERT INTO hero (secret_name) VALUES ('Dive Wilson')"))
    await engine.dispose()
    assert describe(refusal.value) in {"IntegrityError 23502", "IntegrityError SQLITE_CONSTRAINT_NOTNULL"}


def test_an_error_of_our_own_is_nobodys_refusal() -> None:
    assert status_of(ValueError()) is None
    assert status_of(InvalidRequestError()) is None
    assert describe(ValueError("Dive Wilson")) == "ValueError"
