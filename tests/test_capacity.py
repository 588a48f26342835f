"""Capacity: the log warns when the connections of all processes can exceed what Postgres grants, and only then."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from app.capacity import check_capacity, name_process
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.databases import DISCONNECT_OTHERS, Databases
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until
from tests.support.postgres_server import unreachable_url
from tests.support.service import running_service
from tests.support.sql import execute, execute_autocommit, fetch_value

PROCESSES = 4
POOL_SIZE = 4
SIZE = POOL_SIZE + 2  # with those for exports and for probes
ASKED = (
    "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE datname = '{}'"
    " AND state = 'idle' AND query LIKE '%rolconnlimit%'"
)


@pytest.fixture
def role_url(postgres_url: URL, postgres: URL) -> Iterator[URL]:
    """The URL of a database for a role without privileges but those on its tables."""
    execute_autocommit(postgres_url, DISCONNECT_OTHERS)  # the one that empties it would count
    role = f"role_{secrets.token_hex(6)}"
    execute_autocommit(postgres, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    execute(
        postgres_url,
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    yield postgres_url.set(username=role, password="x")
    execute(postgres_url, f"DROP OWNED BY {role}")
    execute_autocommit(postgres, f"DROP ROLE {role}")


def asked(server: URL, url: URL) -> int:
    """Count the processes on a database that have read the limits."""
    return int(fetch_value(server, ASKED.format(url.database)))


async def warnings_at_start(
    url: URL, server: URL, caplog: pytest.LogCaptureFixture, pool_size: int = POOL_SIZE
) -> list[str]:
    """Start the app, which reads the limits, and return the warnings in the log."""
    with caplog.at_level(logging.WARNING):
        async with running(create_app(Settings(database_url=url, pool_size=pool_size))):
            assert await asyncio.to_thread(asked, server, url)
    return messages_of(caplog, "app.capacity")


@pytest.mark.parametrize("limit", [SIZE - 1, SIZE])
@pytest.mark.parametrize("subject", ["role", "database"])
async def test_a_limit_of_the_role_or_the_database_that_is_too_low_is_a_warning(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture, subject: str, limit: int
) -> None:
    name = role_url.username if subject == "role" else role_url.database
    await asyncio.to_thread(execute_autocommit, postgres, f"ALTER {subject.upper()} {name} CONNECTION LIMIT {limit}")
    logged = await warnings_at_start(role_url, postgres, caplog)
    expected = (
        f"Requests may get 503: 1 processes x {SIZE} connections + 0 of others = {SIZE}, but the {subject} grants"
        f" {limit}. Lower POOL_SIZE, raise the limit, or use a connection pooler: docs/scaling.md."
    )
    assert logged == ([expected] if limit < SIZE else [])


async def test_connections_of_others_count_towards_a_limit(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(execute_autocommit, postgres, f"ALTER DATABASE {role_url.database} CONNECTION LIMIT {SIZE}")
    reports = role_url.update_query_dict({"application_name": "reports"})
    other = create_app(Settings(database_url=reports, pool_size=1))
    async with running(other):
        (logged,) = await warnings_at_start(role_url, postgres, caplog)
    assert f"+ 1 of others = {SIZE + 1}" in logged


async def test_a_process_on_another_database_counts_with_the_connections_that_it_has(
    role_url: URL, postgres: URL, postgres_databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = await asyncio.to_thread(postgres_databases.migrated)
    async with running(create_app(Settings(database_url=elsewhere, pool_size=1))):
        (logged,) = await warnings_at_start(role_url, postgres, caplog, pool_size=1000)
    await asyncio.to_thread(postgres_databases.drop, elsewhere)
    assert "1 processes x 1002 connections" in logged
    assert "+ 0 of others" not in logged


async def test_the_limit_of_the_server_is_without_what_it_reserves(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    reserved = "current_setting('superuser_reserved_connections')::int + current_setting('reserved_connections')::int"
    granted = await asyncio.to_thread(
        fetch_value, postgres, f"SELECT current_setting('max_connections')::int - {reserved}"
    )
    (logged,) = await warnings_at_start(role_url, postgres, caplog, pool_size=granted)
    assert f"but the server grants {granted}." in logged


async def test_a_name_in_the_url_is_kept_and_its_process_is_counted_as_one(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(execute_autocommit, postgres, f"ALTER ROLE {role_url.username} CONNECTION LIMIT {SIZE - 1}")
    for query in ({"application_name": "ours"}, {"options": "-c application_name=ours"}):
        caplog.clear()
        (logged,) = await warnings_at_start(role_url.update_query_dict(query), postgres, caplog)
        assert f"1 processes x {SIZE} connections + 0 of others" in logged


async def test_a_process_opens_at_most_its_pool_and_two_connections(postgres_url: URL, postgres: URL) -> None:
    app = create_app(Settings(database_url=postgres_url, pool_size=POOL_SIZE))
    named = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name_process('heroes-api')}'"
    named += f" AND datname = '{postgres_url.database}'"
    async with running(app) as client, AsyncExitStack() as stack:
        maker = app.state.sessionmaker
        held = [maker(read=read) for read in (True, False) for _ in range(POOL_SIZE // 2)]
        for session in [*held, maker.streaming()()]:
            await (await stack.enter_async_context(session)).exec(text("SELECT 1"))
            # It is in a transaction, so that it keeps its connection.
        assert (await client.get("/livez")).status_code == 200
        assert await asyncio.to_thread(fetch_value, postgres, named) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "warns"), [(PROCESSES * SIZE - 1, True), (PROCESSES * SIZE, False)])
def test_the_last_of_four_processes_warns_if_they_do_not_fit(
    role_url: URL, postgres: URL, tmp_path: Path, limit: int, *, warns: bool
) -> None:
    execute_autocommit(postgres, f"ALTER ROLE {role_url.username} CONNECTION LIMIT {limit}")
    options = ("--workers", str(PROCESSES))
    with running_service(role_url, tmp_path / "log", *options, POOL_SIZE=str(POOL_SIZE)) as service:
        wait_until(lambda: asked(postgres, role_url) == PROCESSES)
        if warns:
            service.wait_for_log(f"{PROCESSES} processes x {SIZE} connections + 0 of others = {PROCESSES * SIZE}, but")
    assert ("WARNING" in service.log.read_text()) is warns


async def test_a_server_that_does_not_tell_its_limits_is_no_warning_and_no_error(
    role_url: URL, postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(execute, postgres_url, "REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
    async with running(create_app(Settings(database_url=role_url, pool_size=1000))) as client:
        assert (await client.get("/readyz")).status_code == 200
    assert {record.name for record in caplog.records} <= {"app.access"}


async def test_a_server_that_does_not_answer_in_time_is_no_warning_and_no_error(
    postgres_url: URL, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.capacity.TIME_LIMIT", 0)
    async with running(create_app(Settings(database_url=postgres_url, pool_size=1000))) as client:
        assert (await client.get("/readyz")).status_code == 200
    assert {record.name for record in caplog.records} <= {"app.access"}


async def test_a_queue_that_is_full_is_no_warning_and_no_error(
    postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(database_url=postgres_url, pool_size=2, queue_size=0))
    async with running(app):
        pool = app.state.sessionmaker.reads
        async with pool.connection():
            await check_capacity(pool.connection, "heroes-api", 1000)
    assert not [record for record in caplog.records if record.name == "app.capacity"]


async def test_two_limits_that_are_too_low_are_one_warning(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    for subject, name in (("ROLE", role_url.username), ("DATABASE", role_url.database)):
        await asyncio.to_thread(execute_autocommit, postgres, f"ALTER {subject} {name} CONNECTION LIMIT {SIZE - 1}")
    assert len(await warnings_at_start(role_url, postgres, caplog)) == 1


async def test_a_connection_has_the_name_of_the_service_its_process_and_its_host(postgres_url: URL) -> None:
    app = create_app(Settings(database_url=postgres_url))
    async with running(app), app.state.sessionmaker() as session:
        name = await session.scalar(text("SHOW application_name"))
    assert name == f"heroes-api/{os.getpid()}@{socket.gethostname()}"[:63]


async def test_of_a_replica_only_the_connection_that_watches_its_primary_counts(
    role_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(execute_autocommit, postgres, f"ALTER ROLE {role_url.username} CONNECTION LIMIT {SIZE}")
    replica_url = unreachable_url()
    async with running(
        create_app(Settings(database_url=role_url, database_replica_url=replica_url, pool_size=POOL_SIZE))
    ):
        (logged,) = messages_of(caplog, "app.capacity")
    assert f"1 processes x {SIZE + 1} connections + 0 of others" in logged
