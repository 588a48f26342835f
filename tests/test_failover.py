"""A primary fails, and its standby is promoted. `make test-replication`."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, func
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select

from app.main import open_sessionmaker
from app.schema import SchemaUnavailableError
from app.settings import Settings
from tests.support.load import running_load
from tests.support.polling import wait_until, wait_until_async
from tests.support.replicated import reads_from, send, serving
from tests.support.replication import Pair, running_pair

pytestmark = pytest.mark.replication

FULL_SERVICE = 5  # seconds after a promotion, within which everything is served again


@pytest.fixture(scope="module", autouse=True)
def _binaries(postgres: URL) -> None:
    """Let the package of Postgres prepare its binaries and their user, which it does for its first server."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary and an asynchronous standby."""
    with running_pair(synchronous=False) as pair:
        yield pair


async def test_a_statement_that_the_new_server_has_begun_is_not_terminated(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.replication")
    async with (
        open_sessionmaker(Settings(database_url=pair.url)) as sessionmaker,
        sessionmaker.watch_servers(),
        sessionmaker() as session,
    ):

        async def connects() -> bool:
            try:
                await session.connection()
            except (SchemaUnavailableError, SQLAlchemyError):
                await session.rollback()
                return False
            return True

        await wait_until_async(connects)
        await session.rollback()
        pair.primary.kill()
        await asyncio.to_thread(pair.primary.start)
        await wait_until_async(connects)
        assert "It was restarted" not in caplog.text  # yet
        await session.exec(select(func.pg_sleep(3)))
        assert "It was restarted" in caplog.text


@pytest.mark.parametrize("failure", ["kill", "freeze"])
def test_after_a_failover_everything_is_served_within_seconds_and_no_acknowledged_write_is_lost(
    failure: str, tmp_path: Path
) -> None:
    for name in ("plain", "replicated"):
        (tmp_path / name).mkdir()
    with (
        running_pair(synchronous=True) as pair,
        serving(pair.url, None, tmp_path / "plain") as plain,
        serving(pair.url, pair.standby, tmp_path / "replicated") as replicated,
    ):
        wait_until(lambda: reads_from(pair.standby, replicated))
        with running_load(plain.port) as plain_load, running_load(replicated.port) as replicated_load:
            loads = (plain_load, replicated_load)
            for load in loads:
                load.wait_for()
            getattr(pair.primary, failure)()
            for service in (plain, replicated):
                service.wait_for_log("The primary does not answer.")
            assert send(plain, "GET", "/readyz").status_code == 503
            assert send(replicated, "GET", "/readyz").status_code == 200
            pair.standby.promote()
            promoted_at = time.monotonic()
            wait_until(lambda: time.monotonic() > promoted_at + FULL_SERVICE)
            for load in loads:
                load.wait_for()
            pair.primary.thaw()  # if it is only frozen: nobody may use it
            for load in loads:
                load.wait_for()
        for load in loads:
            late = [seen for seen in (*load.reads, *load.writes) if seen.ended_at > promoted_at + FULL_SERVICE]
            assert {seen.status for seen in late} == {200}
            assert load.statuses() <= {200, 503}
            assert {seen.retry_after for seen in load.writes if seen.status == 503} == {"1"}
        assert {seen.status for seen in replicated_load.reads} == {200}
        export = send(plain, "GET", "/heroes/export").text
        names = [json.loads(line)["name"] for line in export.splitlines()]
        assert {*plain_load.created, *replicated_load.created} <= {*names}
        assert len(names) == len({*names})
