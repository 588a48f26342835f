"""Each error of a database becomes the status that tells the client what to do about it."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy import URL, Row, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from app.database import build_engine
from app.db_errors import Refusal, classify, is_too_many_connections, may_succeed_elsewhere
from app.errors import PROBLEMS
from app.inputs import INT64
from app.main import create_app
from app.schema import Schema
from app.sessions import SessionDep
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.alembic_commands import migrate
from tests.support.app_client import running
from tests.support.backends import wait_until_asleep
from tests.support.heroes import DEADPOND
from tests.support.processes import TIMEOUT
from tests.support.sql import execute, execute_autocommit

TABLES = [
    "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
    (
        "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES parent (id),"
        " name VARCHAR(9) NOT NULL, age INTEGER CHECK (age >= 0), UNIQUE (name))"
    ),
    "INSERT INTO parent VALUES (1), (2)",
    "INSERT INTO child VALUES (1, 1, 'taken', 1)",
]

router = APIRouter(prefix="/statements")


@router.post("/")
async def run_statements(statements: Sequence[str], session: SessionDep) -> list[Any]:
    """Run plain SQL in one transaction, and return the first row of the last statement."""
    async with session.begin():
        connection = await session.connection()
        for statement in statements:
            result = await connection.execute(text(statement))
    row: Row[Any] | None = result.first() if result.returns_rows else None
    return list(row or ())


@asynccontextmanager
async def serving(url: URL, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Create the tables, run the app with one more operation that executes statements, and yield a client for it."""
    engine = build_engine(url, {})
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


async def test_a_failed_statement_rolls_its_transaction_back(url: URL) -> None:
    async with serving(url) as client:
        for statement, expected in [
            ("INSERT INTO child (id, name) VALUES (2, 'taken')", 409),
            ("INSERT INTO child (id, name) VALUES (1, 'other')", 409),
            ("INSERT INTO child (id, name, parent_id) VALUES (2, 'other', 99)", 409),
            ("DELETE FROM parent", 409),
            ("INSERT INTO child (id, name) VALUES (2, NULL)", 422),
            ("INSERT INTO child (id, name, age) VALUES (2, 'other', -1)", 422),
            ("SELECT * FROM nowhere", 500),
            ("nonsense", 500),
        ]:
            inserted = await status(client, "INSERT INTO child (id, name) VALUES (8, 'lost')", statement)
            assert inserted == expected, statement
            counted = await client.post("/statements/", json=["SELECT count(*) FROM child"])
            assert counted.json() == [1], statement


async def test_a_file_that_another_process_writes_to_is_503(sqlite_url: URL) -> None:
    writer = build_engine(sqlite_url, {})
    async with serving(sqlite_url, lock_timeout=0.1) as client:
        async with writer.begin():
            assert await status(client, "INSERT INTO parent VALUES (3)") == 503
        assert await status(client, "INSERT INTO parent VALUES (3)") == 200
    await writer.dispose()


async def test_an_error_of_sqlite_gets_its_status(sqlite_url: URL) -> None:
    insert = "INSERT INTO hero (name, secret_name) VALUES (hex(zeroblob(99999)), 'x')"
    async with serving(sqlite_url) as client:
        assert await status(client, "SELECT zeroblob(2000000000)") == 422
        assert await status(client, "PRAGMA max_page_count = 1", insert) == 503
        assert await status(client, "PRAGMA query_only = 1", "INSERT INTO parent VALUES (3)") == 503


@pytest.mark.parametrize(("path", "body"), [("/heroes/", DEADPOND), ("/heroes/batch", [DEADPOND, DEADPOND])])
async def test_an_exhausted_sequence_of_ids_is_the_same_503_on_both_databases(
    client: httpx.AsyncClient, url: URL, caplog: pytest.LogCaptureFixture, path: str, body: Any
) -> None:
    await asyncio.to_thread(
        execute,
        url,
        f"INSERT INTO hero (id, name, secret_name) VALUES ({INT64}, 'Last', 'x')"
        if is_sqlite(url)
        else f"SELECT setval('hero_id_seq', {INT64})",
    )
    response = await client.post(path, json=body)
    detail = "The database has no room left: its disk is full, or the sequence of ids is exhausted."
    assert (response.status_code, response.json()) == (503, {"detail": detail})
    assert response.headers["Retry-After"] == "1"
    assert detail in caplog.text


async def test_a_folder_that_is_gone_is_503(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / "data/database.db"))
    await asyncio.to_thread(migrate, url)
    async with running(create_app(Settings(database_url=url))) as client:
        shutil.rmtree(tmp_path / "data")
        assert (await client.get("/heroes/")).status_code == 503
    # The driver's thread tells the loop that it has given the connection up, so the loop must last as long.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, TIMEOUT)


async def test_a_worker_that_citus_has_lost_is_503_though_its_error_has_the_code_of_an_internal_one(
    postgres_url: URL,
) -> None:
    async with serving(postgres_url) as client:
        for message, expected in [
            ("could not commit transaction for shard 102414 on at least one active node", 503),
            ("failed to prepare transaction 'citus_0_1_2_3' on host 127.0.0.1:9701", 503),
            ("failure on connection marked as essential: 127.0.0.1:9701", 503),
            ("an unexpected error", 500),
        ]:
            statement = f"DO $$ BEGIN RAISE USING ERRCODE = 'XX000', MESSAGE = $m${message}$m$; END $$"
            assert await status(client, statement) == expected, message


def error_with(code: str, message: str = "", *, name: str = "sqlstate") -> DBAPIError:
    """Return SQLAlchemy's error for one of a driver with this code."""
    orig = Exception(message)
    setattr(orig, name, code)
    return DBAPIError("SELECT 1", None, orig)


@pytest.mark.parametrize(
    ("name", "code"), [("sqlstate", "08006"), ("sqlstate", "28P01"), ("sqlite_errorname", "SQLITE_IOERR_WRITE")]
)
def test_a_code_that_no_test_provokes_is_unavailable(name: str, code: str) -> None:
    assert classify(error_with(code, name=name)) is Refusal.UNAVAILABLE


def test_the_message_of_a_lost_worker_means_nothing_with_another_code() -> None:
    assert classify(error_with("23505", "could not commit transaction for shard 1")) is Refusal.CONFLICT


@pytest.mark.parametrize("code", ["08006", "40001", "53300", "57P01"])
def test_another_server_may_answer_what_this_one_can_not(code: str) -> None:
    assert may_succeed_elsewhere(error_with(code))


@pytest.mark.parametrize("code", ["57014", "25006", "23505", "42P01"])
def test_no_other_server_is_asked_after_a_timeout_a_write_or_an_error_of_the_statement(code: str) -> None:
    assert not may_succeed_elsewhere(error_with(code))


def test_a_server_that_grants_no_more_connections_has_a_code_of_its_own() -> None:
    refusal = error_with("53300")
    assert is_too_many_connections(refusal)
    assert not is_too_many_connections(error_with("53200"))
    assert not is_too_many_connections(refusal.orig)  # SQLAlchemy has not seen it
    assert not is_too_many_connections(None)


async def test_an_error_of_postgres_gets_its_status(postgres_url: URL) -> None:
    async with serving(postgres_url, statement_timeout=0.5) as client:
        for statement, expected in [
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
        ]:
            assert await status(client, statement) == expected, statement
            assert await status(client, "SELECT 1") == 200, statement


async def test_a_row_that_another_transaction_locks_is_503(postgres_url: URL) -> None:
    holder = build_engine(postgres_url, {})
    async with serving(postgres_url, lock_timeout=0.1) as client:
        async with holder.begin() as connection:
            await connection.execute(text("SELECT * FROM parent FOR UPDATE"))
            assert await status(client, "DELETE FROM parent WHERE id = 2") == 503
        assert await status(client, "DELETE FROM parent WHERE id = 2") == 200
    await holder.dispose()


async def test_one_of_two_transactions_in_a_deadlock_is_503(postgres_url: URL) -> None:
    """Each locks its first row, waits until the other has done so too, and then asks for the row of the other."""
    wait_for_the_other = """
        DO $$ BEGIN
            WHILE (
                SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
                WHERE locktype = 'advisory' AND datname = current_database()
            ) < 2 LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
        END $$
    """

    def crossing(first: int, second: int) -> list[str]:
        lock = "SELECT * FROM parent WHERE id = {} FOR UPDATE"
        announce = f"SELECT pg_advisory_xact_lock({first})"
        return [lock.format(first), announce, wait_for_the_other, lock.format(second)]

    async with serving(postgres_url) as client:
        statuses = await asyncio.gather(status(client, *crossing(1, 2)), status(client, *crossing(2, 1)))
        assert sorted(statuses) == [200, 503]


async def test_a_connection_that_the_server_closes_is_503(postgres_url: URL, postgres: URL) -> None:
    async with serving(postgres_url, pool_size=1) as client:
        pid = (await client.post("/statements/", json=["SELECT pg_backend_pid()"])).json()[0]
        at_work = asyncio.create_task(status(client, "SELECT pg_sleep(20)"))
        await wait_until_asleep(postgres, postgres_url)
        await asyncio.to_thread(execute_autocommit, postgres, f"SELECT pg_terminate_backend({pid}, 5000)")
        assert await at_work == 503
        assert await status(client, "SELECT 1") == 200


async def test_a_read_only_server_is_503(postgres_url: URL) -> None:
    async with serving(postgres_url) as client:
        assert await status(client, "SET TRANSACTION READ ONLY", "DELETE FROM child") == 503


async def test_a_prepared_statement_that_a_migration_invalidates_is_503_at_most_once(postgres_url: URL) -> None:
    engine = build_engine(postgres_url, {})
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
async def test_a_server_that_can_not_be_connected_to_is_503(postgres_url: URL, wrong: dict[str, Any]) -> None:
    await assert_unavailable(postgres_url.set(**wrong))


async def test_a_server_without_the_required_session_attributes_is_503(postgres_url: URL) -> None:
    await assert_unavailable(postgres_url.update_query_dict({"target_session_attrs": "standby"}))


async def assert_unavailable(url: URL) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schema, "require", AsyncMock())  # as if the schema had been current a moment ago
        async with running(create_app(Settings(database_url=url))) as client:
            response = await client.get("/heroes/")
    assert (response.status_code, response.json()) == (503, {"detail": PROBLEMS[503][1]})


async def test_a_value_that_the_driver_can_not_encode_is_invalid(postgres_url: URL) -> None:
    engine = build_engine(postgres_url, {})
    async with engine.connect() as connection:
        for value in (2**40, 10**30, DEADPOND["secret_name"]):
            with pytest.raises(DBAPIError) as refusal:
                await connection.execute(text("SELECT CAST(:value AS INTEGER)"), {"value": value})
            assert classify(refusal.value) is Refusal.INVALID, value
            await connection.rollback()
    await engine.dispose()


def test_an_error_that_is_not_of_the_database_is_no_refusal() -> None:
    assert classify(ValueError()) is None
    assert classify(InvalidRequestError()) is None


async def test_an_error_of_the_services_own_sql_is_logged_by_its_name(
    url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(url) as client:
        assert await status(client, "SELECT * FROM nowhere") == 500
    name = "OperationalError" if is_sqlite(url) else "ProgrammingError"
    assert f"POST /statements/: unhandled {name}" in caplog.text
