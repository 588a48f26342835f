"""The URLs that are understood, and what every connection is set up with."""

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, text
from sqlalchemy.exc import DBAPIError

from app.database import WAL_LIMIT, Database, build_engine, raise_if_failed, set_autocommit
from app.main import create_app
from app.settings import Settings
from app.urls import parse_url
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.processes import render_url, run
from tests.support.sql import execute_autocommit


def opened(url: URL, application_name: str = "") -> Database:
    return Database(
        url, lock_timeout=3, statement_timeout=7, sqlite_synchronous="FULL", application_name=application_name
    )


class TestPassword:
    PASSWORD = "p@ss%w/:#?&"

    @pytest.fixture
    def secured(self, postgres: URL) -> Iterator[URL]:
        """A database whose owner needs the password."""
        name = f"owner_{secrets.token_hex(4)}"
        execute_autocommit(postgres, f"CREATE ROLE {name} LOGIN PASSWORD '{self.PASSWORD}'")
        execute_autocommit(postgres, f"CREATE DATABASE {name} OWNER {name}")
        if "TEST_DATABASE_URL" not in os.environ:  # the tests' own server trusts everybody else
            hba = Path(str(execute_autocommit(postgres, "SHOW hba_file")))
            hba.write_text(f"local {name} {name} scram-sha-256\n{hba.read_text()}")
            execute_autocommit(postgres, "SELECT pg_reload_conf()")
        yield postgres.set(username=name, password=self.PASSWORD, database=name)
        execute_autocommit(postgres, f"DROP DATABASE {name} WITH (FORCE)")
        execute_autocommit(postgres, f"DROP ROLE {name}")

    @pytest.mark.slow
    async def test_it_may_hold_the_marks_of_a_url(self, secured: URL) -> None:
        written = render_url(secured)
        result = await asyncio.to_thread(run, "alembic", "upgrade", "head", changes={"DATABASE_URL": written})
        assert result.returncode == 0, result.stdout
        async with running(create_app(Settings(database_url=parse_url(written)))) as client:
            assert (await client.get("/heroes/")).status_code == 200

    @pytest.mark.slow
    async def test_a_wrong_one_is_refused_by_the_server(self, secured: URL) -> None:
        wrong = secured.set(password=self.PASSWORD.upper())
        result = await asyncio.to_thread(run, "alembic", "upgrade", "head", changes={"DATABASE_URL": render_url(wrong)})
        assert result.returncode != 0
        assert "password authentication failed" in result.stdout
        assert "P@SS" not in result.stdout
        assert "Traceback" not in result.stdout


class TestConnection:
    async def test_postgres_limits_every_statement_in_the_database_itself(self, postgres: URL) -> None:
        database = opened(postgres)
        for engine in (database.writes, database.reads):
            async with engine.connect() as connection:
                assert await connection.scalar(text("SHOW lock_timeout")) == "3s"
                assert await connection.scalar(text("SHOW statement_timeout")) == "7s"

    async def test_what_the_url_says_to_postgres_counts(self, postgres: URL) -> None:
        query = {
            "application_name": "ours",
            "channel_binding": "require",
            "options": "-c statement_timeout=9000",
            "sslmode": "prefer",
        }
        async with opened(postgres.update_query_dict(query)).writes.connect() as connection:
            assert await connection.scalar(text("SHOW statement_timeout")) == "9s"
            assert await connection.scalar(text("SHOW application_name")) == "ours"

    @pytest.mark.parametrize("name", ["service/7@host", r"a host\with  spaces", ""])
    async def test_postgres_shows_the_name_of_the_application(self, postgres: URL, name: str) -> None:
        async with opened(postgres, application_name=name).writes.connect() as connection:
            assert await connection.scalar(text("SHOW application_name")) == name

    async def test_sqlite_is_set_up_for_many_readers_beside_a_writer(self, tmp_path: Path) -> None:
        database = opened(parse_url(f"sqlite:///{tmp_path}/x.db"))
        async with database.writes.connect() as connection:
            assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert await connection.scalar(text("PRAGMA synchronous")) == 2
            assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
            assert await connection.scalar(text("PRAGMA wal_autocheckpoint")) == 10_000
            assert await connection.scalar(text("PRAGMA journal_size_limit")) == WAL_LIMIT
        for engine in (database.writes, database.reads):
            async with engine.connect() as connection:
                assert await connection.scalar(text("PRAGMA busy_timeout")) == 3000

    async def test_to_look_at_a_sqlite_file_does_not_change_it(self, tmp_path: Path) -> None:
        path = tmp_path / "x.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("CREATE TABLE somebody_elses (x)")
        before = path.read_bytes()
        async with running(create_app(Settings(database_url=parse_url(f"sqlite:///{path}")))) as client:
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/heroes/")).status_code == 503
        assert path.read_bytes() == before

    async def test_a_reader_on_sqlite_waits_for_no_writer_and_can_not_write(self, tmp_path: Path) -> None:
        database = opened(parse_url(f"sqlite:///{tmp_path}/x.db"))
        async with (
            database.writes.connect() as writer,
            database.reads.connect() as reader,
        ):
            await writer.execute(text("CREATE TABLE t (x)"))
            await writer.commit()
            await writer.execute(text("INSERT INTO t VALUES (1)"))
            assert await reader.scalar(text("SELECT count(*) FROM t")) == 0
            with pytest.raises(DBAPIError, match="readonly"):
                await reader.execute(text("INSERT INTO t VALUES (2)"))

    async def test_the_text_of_a_database_error_holds_no_parameters(self, url: URL) -> None:
        database = opened(url)
        for engine in (database.writes, database.reads):
            async with engine.connect() as connection:
                with pytest.raises(DBAPIError) as failure:
                    await connection.execute(text("SELECT no_such_function(:secret)"), {"secret": "Dive Wilson"})
                assert "Dive Wilson" not in str(failure.value)

    async def test_in_autocommit_a_statement_is_all_that_is_sent(self, url: URL) -> None:
        statements: list[str] = []
        database = opened(url)
        for engine in (database.writes, database.reads):
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await connection.run_sync(set_autocommit, autocommit=True)
                await connection.execute(text("SELECT 1"))
                assert not driver.is_closed()
                assert not driver.is_in_transaction()
                await connection.execute(text("BEGIN"))
                assert driver.is_in_transaction()
                await connection.invalidate()
                assert driver.is_closed()
        assert {*statements} == {"SELECT 1", "BEGIN"}

    async def test_a_connection_can_be_switched_from_autocommit_to_transactions_and_back(self, url: URL) -> None:
        async with opened(url).writes.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            for autocommit in (True, False, True):
                await connection.run_sync(set_autocommit, autocommit=autocommit)
                await connection.execute(text("UPDATE hero SET age = 1"))
                assert driver.is_in_transaction() is not autocommit
                await connection.rollback()

    async def test_a_transaction_on_sqlite_has_the_write_lock_from_its_beginning(self, sqlite_url: URL) -> None:
        begun: list[str] = []
        database = opened(sqlite_url)
        for engine in (database.writes, database.reads):
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: begun.append(args[2]))
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        assert begun == ["BEGIN IMMEDIATE", "SELECT 1", "BEGIN", "SELECT 1"]

    @pytest.mark.parametrize("mode", [None, "transaction"])
    async def test_a_first_connection_that_fails_raises_the_error_of_the_database(
        self, postgres_databases: Databases, mode: str | None
    ) -> None:
        """SQLAlchemy asks for the version then, and takes a NotImplementedError for a database that has none."""
        url = await asyncio.to_thread(postgres_databases.empty)
        await asyncio.to_thread(execute_autocommit, url, "ALTER FUNCTION pg_catalog.version() RENAME TO hidden")
        with pytest.raises(DBAPIError, match=r"function pg_catalog\.version\(\) does not exist"):
            await build_engine(url, {}, pooler=mode).connect()
        await asyncio.to_thread(postgres_databases.drop, url)

    async def test_a_failed_transaction_raises_before_its_commit(self, postgres_url: URL) -> None:
        async with opened(postgres_url).writes.connect() as connection:
            await connection.run_sync(raise_if_failed)
            with pytest.raises(DBAPIError):
                await connection.execute(text("nonsense"))
            with pytest.raises(DBAPIError, match="current transaction is aborted"):
                await connection.run_sync(raise_if_failed)


def test_build_engine_opens_nothing(tmp_path: Path) -> None:
    build_engine(parse_url(f"sqlite:///{tmp_path}/x.db"), {})
    assert not list(tmp_path.iterdir())
