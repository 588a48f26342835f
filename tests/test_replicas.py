"""Whether a replica can be read from, by what heartbeats say of it and of the primary."""

import logging
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL
from sqlmodel import select

from app.main import open_sessionmaker
from app.replication import Replica
from app.sessions import SessionMaker
from app.settings import Settings

MAX_LAG = 3
LONG_AGO = 60.0  # seconds


@pytest.fixture
async def sessionmaker(url: URL) -> AsyncIterator[SessionMaker]:
    """Sessions of the primary, whose schema is known."""
    async with open_sessionmaker(Settings(database_url=url)) as sessionmaker:
        await sessionmaker.schema.check()
        yield sessionmaker


@pytest.fixture
def replica(sessionmaker: SessionMaker) -> Replica:
    """A replica of it. It has no connections of its own."""
    return Replica(sessionmaker.reads, sessionmaker.writes, sessionmaker.schema, MAX_LAG)


def answer(replica: Replica, primary: int, own: int, asked_at: float | None = None) -> None:
    """Let both servers tell their positions."""
    asked_at = time.monotonic() if asked_at is None else asked_at
    replica.on_primary_heartbeat(asked_at, primary)
    replica.on_replica_heartbeat(asked_at, own)


async def test_a_replica_that_is_complete_is_read_from_for_as_long_as_the_primary_is_silent(replica: Replica) -> None:
    asked_at = time.monotonic() - LONG_AGO
    answer(replica, 100, 100, asked_at)
    assert not replica.is_usable
    replica.on_primary_heartbeat(asked_at, None)
    assert replica.is_usable


async def test_a_primary_that_ends_a_write_is_not_silent(replica: Replica, sessionmaker: SessionMaker) -> None:
    asked_at = time.monotonic() - LONG_AGO
    answer(replica, 100, 100, asked_at)
    replica.on_primary_heartbeat(asked_at, None)
    async with sessionmaker(autocommit=True) as session:
        await session.exec(select(1))
    assert not replica.is_usable


async def test_a_replica_that_has_more_than_its_primary_is_not_read_from(replica: Replica) -> None:
    answer(replica, 200, 200)
    assert replica.is_usable
    replica.on_primary_heartbeat(time.monotonic(), None)  # it fails, and a standby that had less is promoted
    answer(replica, 100, 200)
    assert not replica.is_usable
    answer(replica, 300, 200)
    assert not replica.is_usable
    answer(replica, 300, 300)  # it follows the new one
    assert replica.is_usable


async def test_a_replica_is_not_read_from_while_the_schema_is_not_the_one_of_this_release(
    replica: Replica, sessionmaker: SessionMaker
) -> None:
    answer(replica, 100, 100)
    await sessionmaker.schema.suspend("It is behind.")
    assert not replica.is_usable


async def test_a_replica_has_the_schema_when_it_has_a_position_that_the_primary_had_with_it(
    replica: Replica, sessionmaker: SessionMaker
) -> None:
    await sessionmaker.schema.suspend("It is behind.")
    answer(replica, 100, 100)
    sessionmaker.schema.resume()
    await sessionmaker.schema.check()
    assert not replica.is_usable
    answer(replica, 200, 100)
    assert not replica.is_usable
    answer(replica, 200, 200)
    assert replica.is_usable


async def test_a_replica_is_not_read_from_while_it_is_silent(replica: Replica) -> None:
    answer(replica, 100, 100)
    replica.on_replica_heartbeat(time.monotonic(), None)
    assert not replica.is_usable
    answer(replica, 100, 100)
    assert replica.is_usable


async def test_a_primary_that_answers_again_counts_by_the_present(replica: Replica) -> None:
    asked_at = time.monotonic() - LONG_AGO
    answer(replica, 100, 100, asked_at)
    replica.on_primary_heartbeat(asked_at, None)
    assert replica.is_usable
    replica.on_primary_heartbeat(time.monotonic(), 200)
    assert not replica.is_usable


async def test_a_replica_needs_nothing_that_only_the_last_primary_had(replica: Replica) -> None:
    answer(replica, 300, 200)
    replica.on_primary_heartbeat(time.monotonic(), None)  # a standby that had as much as the replica is promoted
    answer(replica, 200, 200)
    assert replica.is_usable


async def test_a_position_of_the_last_primary_does_not_count_on_the_log_of_the_next(replica: Replica) -> None:
    answer(replica, 300, 200)
    answer(replica, 100, 300)  # the next one has another log, and had answered before anybody missed the last
    assert not replica.is_usable


async def test_a_replica_that_replaces_a_silent_one_may_have_less(replica: Replica) -> None:
    answer(replica, 200, 200)
    replica.on_replica_heartbeat(time.monotonic(), None)
    answer(replica, 100, 100)
    assert replica.is_usable


async def test_a_primary_that_was_asked_before_its_replica_may_have_less(replica: Replica) -> None:
    answer(replica, 100, 100)
    asked_at = time.monotonic()
    replica.on_replica_heartbeat(time.monotonic(), 200)
    replica.on_primary_heartbeat(asked_at, 150)
    assert replica.is_usable


async def test_a_primary_that_writes_nothing_keeps_its_replica(replica: Replica) -> None:
    for _ in range(3):
        answer(replica, 100, 100)
        assert replica.is_usable
        replica.on_primary_heartbeat(time.monotonic(), 100)
        assert replica.is_usable


async def test_a_replica_that_falls_behind_and_catches_up_is_logged_once_each(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app.replication")
    replica.on_primary_heartbeat(time.monotonic() - LONG_AGO, 200)
    for own in (100, 100, 200, 200):
        replica.on_replica_heartbeat(time.monotonic(), own)
    replica.on_primary_heartbeat(time.monotonic(), 300)
    replica.on_replica_heartbeat(time.monotonic(), 200)
    assert [record.getMessage() for record in caplog.records] == [
        f"The replica is more than {MAX_LAG} s behind.",
        "The replica is up to date again.",
    ]
