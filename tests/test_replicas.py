"""Whether a replica can be read from, by what heartbeats say of it and of the primary."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
from sqlalchemy import URL
from sqlmodel import select

from app.main import open_sessionmaker
from app.pool import ConnectionPool
from app.replication import Heartbeat, Replica
from app.sessions import SessionMaker
from app.settings import Settings
from app.urls import parse_url
from tests.support.backends import count_backends, terminate_backends
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until_async
from tests.support.postgres_server import unreachable_url
from tests.support.processes import TIMEOUT
from tests.support.relay import relay

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


async def test_requests_read_from_a_usable_replica_unless_they_write_or_ask_for_the_primary(postgres_url: URL) -> None:
    settings = Settings(database_url=postgres_url, database_replica_url=unreachable_url())
    async with open_sessionmaker(settings) as sessionmaker:
        await sessionmaker.schema.check()
        replica = sessionmaker.replica
        assert replica
        get = {"method": "GET", "headers": []}
        assert sessionmaker.reads_of(get) is sessionmaker.reads
        answer(replica, 100, 100)
        assert sessionmaker.reads_of(get) is replica.pool
        assert sessionmaker.reads_of(get | {"method": "POST"}) is sessionmaker.reads
        assert sessionmaker.reads_of(get | {"headers": [(b"cache-control", b"no-cache")]}) is sessionmaker.reads


Beats = list[tuple[float, int | None]]


@asynccontextmanager
async def beating(
    url: URL, *, interval: float = 0.01, answer_time: float = TIMEOUT, then: Callable[[], object] = bool
) -> AsyncIterator[Beats]:
    """Run the heartbeat of a server for a block, and call something after each beat."""
    beats: Beats = []

    def note(asked_at: float, position: int | None) -> None:
        beats.append((asked_at, position))
        then()

    async with open_sessionmaker(Settings(database_url=url)) as sessionmaker:
        pool = ConnectionPool(sessionmaker.database.writes, size=1, queue_size=0, queue_timeout=60)
        heartbeat = Heartbeat("primary", pool, set(), note)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.replication.INTERVAL", interval)
            patch.setattr("app.replication.ANSWER_TIME", answer_time)
            task = asyncio.create_task(heartbeat.run())
            try:
                yield beats
            finally:
                task.cancel()
                await asyncio.wait({task}, timeout=TIMEOUT)
                assert task.cancelled()

        async def is_free() -> bool:
            return pool.free == 1

        await wait_until_async(is_free)
        await pool.close()


async def wait_for(beats: Beats, number: int) -> None:
    """Wait until a server was asked so many times more."""
    until = len(beats) + number

    async def are_there() -> bool:
        return len(beats) >= until

    await wait_until_async(are_there)


async def test_a_heartbeat_tells_positions_and_a_connection_that_is_lost_is_no_silence(
    postgres_url: URL, postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.replication")
    async with beating(postgres_url) as beats:
        await wait_for(beats, 3)
        assert await count_backends(postgres, postgres_url) == 1
        assert await count_backends(postgres, postgres_url, "state = 'idle in transaction'") == 0
        await terminate_backends(postgres, postgres_url)
        await wait_for(beats, 3)
    times, positions = zip(*beats, strict=True)
    assert list(times) == sorted(times)
    assert None not in positions
    assert list(positions) == sorted(positions)
    assert positions[0] > 0
    assert messages_of(caplog, "app.replication") == ["The primary answers."]


async def test_a_server_that_can_not_be_connected_to_is_silent_since_it_was_asked_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = time.monotonic()
    async with beating(unreachable_url()) as beats:
        await wait_for(beats, 3)
    assert {position for _, position in beats} == {None}
    assert len({since for since, _ in beats}) == 1
    assert beats[0][0] >= before
    (record,) = caplog.records
    assert record.getMessage().startswith("The primary does not answer. ")
    assert record.exc_info is None


async def test_a_server_that_accepts_a_connection_and_says_nothing_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with beating(
        parse_url(f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"), answer_time=0.1
    ) as beats:
        await wait_for(beats, 1)
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
    assert beats[0][1] is None
    assert messages_of(caplog, "app.replication") == [
        "The primary does not answer. TimeoutError: no connection within 0.1 s"
    ]


@pytest.mark.parametrize("answers", [True, False])
async def test_a_server_is_asked_at_intervals_whether_it_answers_or_not(postgres_url: URL, *, answers: bool) -> None:
    interval = 0.2
    before = time.monotonic()
    async with beating(postgres_url if answers else unreachable_url(), interval=interval) as beats:
        await wait_for(beats, 3)
        assert time.monotonic() - before >= 2 * interval


async def test_after_an_unexpected_error_the_server_is_asked_on_a_new_connection(
    postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: list[int] = []
    with relay(postgres_url) as opened:

        def fail_once() -> None:
            accepted.append(opened.accepted)
            if len(accepted) == 1:
                raise ValueError("broken")

        async with beating(opened.url, then=fail_once) as beats:
            await wait_for(beats, 3)
    assert accepted[0] < accepted[1] == accepted[2]
    (record,) = [record for record in caplog.records if record.name == "app.replication" and record.exc_info]
    assert record.getMessage() == "The primary does not answer. ValueError: broken"


async def test_a_server_that_closes_its_connections_is_silent_since_its_last_answer(postgres_url: URL) -> None:
    with ExitStack() as stack:
        opened = stack.enter_context(relay(postgres_url))
        async with beating(opened.url, interval=1) as beats:
            await wait_for(beats, 1)
            stack.close()
            await wait_for(beats, 1)
    (asked_at, position), (silent_since, silence) = beats[-2:]
    assert position is not None
    assert (silent_since, silence) == (asked_at, None)


async def test_a_stop_does_not_wait_for_an_answer(postgres_url: URL) -> None:
    with relay(postgres_url) as opened:
        async with beating(opened.url) as beats:
            await wait_for(beats, 1)
            opened.silence()

            async def is_asked() -> bool:
                return bool(opened.withheld)

            await wait_until_async(is_asked)
