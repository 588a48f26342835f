"""Whether a replica can be read from, by what heartbeats say of it and of the primary."""

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
