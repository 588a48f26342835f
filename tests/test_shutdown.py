"""What SIGTERM does to that which is in flight."""

import asyncio
import json
import signal
import socket
import time
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from app.database import create_engine
from tests.locks import writes_waiting
from tests.processes import PATIENCE
from tests.services import Service, answer, begin_post, connections, get, has_ended, launched, post

# In a shell, and to an orchestrator, the end by a signal is 128 + 15 = 143.
ENDS = pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param((), -signal.SIGTERM, id="one process"),
        pytest.param(("--workers", "2"), 0, id="two workers", marks=pytest.mark.slow),
    ],
)


def hero(name: str) -> bytes:
    return json.dumps({"name": name, "secret_name": "Dive Wilson"}).encode()


def stored(url: URL) -> list[str]:
    """List the heroes' names, now that nobody writes any more."""

    async def select() -> list[str]:
        engine = create_engine(url, {}, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            names = list(await connection.scalars(text("SELECT name FROM hero")))
        await engine.dispose()
        return sorted(names)

    with writes_waiting(url):
        return asyncio.run(select())


def told(connection: socket.socket) -> str | None:
    """Read the name of the hero that was created, as far as the client was told so."""
    try:
        status, body = answer(connection)
    except (ConnectionError, HTTPException):
        return None
    return str(json.loads(body)["name"]) if status == 200 else None


def write_first(service: Service) -> None:
    """Write one hero, so that the database has its form."""
    with connections(service.port, 1) as (connection,):
        post(connection, hero("first"))
        assert answer(connection)[0] == 200


def wait_for(service: Service, words: str) -> None:
    """Return when the log has the words."""
    deadline = time.monotonic() + PATIENCE
    while words not in service.log.read_text():
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.01)


@ENDS
def test_every_write_in_flight_is_answered_and_stored(
    url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    names = [f"hero {number}" for number in range(50)]
    # The stalled upload lasts until the limit, and so would this test with that of the launch options.
    with launched(url, tmp_path / "log", *options, "--timeout-graceful-shutdown", "3") as service, ExitStack() as stack:
        writing, idle, (stalled,) = (
            stack.enter_context(connections(service.port, number)) for number in (len(names), 10, 1)
        )
        write_first(service)
        assert [get(connection) for connection in idle] == [200] * len(idle)
        begin_post(stalled, len(hero("stalled")))
        stalled.sendall(hero("stalled")[:-1])
        with writes_waiting(url):
            for name, connection in zip(names, writing, strict=True):
                begin_post(connection, len(hero(name)))
                connection.sendall(hero(name))
            service.process.send_signal(signal.SIGTERM)
            assert all(has_ended(connection) for connection in idle)
            time.sleep(0.5)  # the service is ending, and all of them wait
        assert [told(connection) for connection in writing] == names
        assert service.process.wait(PATIENCE) == code
        assert told(stalled) is None
    assert "Application shutdown complete" in service.log.read_text()
    assert stored(url) == sorted(["first", *names])


@ENDS
def test_writes_that_wait_for_a_lock_past_the_limit_do_not_hold_the_end_up(
    url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    limits = ("--timeout-graceful-shutdown", "1")
    with (
        launched(url, tmp_path / "log", *options, *limits, LOCK_TIMEOUT="2") as service,
        connections(service.port, 50) as writing,
    ):
        write_first(service)
        with writes_waiting(url):
            for connection in writing:
                begin_post(connection, len(hero("late")))
                connection.sendall(hero("late"))
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE) == code
        assert {told(connection) for connection in writing} == {None}
    assert stored(url) == ["first"]  # and no lock is left, or this would wait


def test_of_the_writes_that_the_limit_breaks_off_all_that_are_acknowledged_are_stored(url: URL, tmp_path: Path) -> None:
    names = [f"hero {number}" for number in range(50)]
    limits = ("--timeout-graceful-shutdown", "1")
    with (
        launched(url, tmp_path / "log", *limits, POOL_SIZE="1", LOCK_TIMEOUT="10") as service,
        connections(service.port, len(names)) as writing,
    ):
        write_first(service)
        with writes_waiting(url):
            for name, connection in zip(names, writing, strict=True):
                begin_post(connection, len(hero(name)))
                connection.sendall(hero(name))
            service.process.send_signal(signal.SIGTERM)
            wait_for(service, "timeout graceful shutdown exceeded")
        acknowledged = [name for name in map(told, writing) if name]
        assert service.process.wait(PATIENCE) == -signal.SIGTERM
    there = stored(url)
    assert set(acknowledged) <= set(there)
    assert len(there) == len(set(there))
    assert len(there) - len(["first", *acknowledged]) <= 1  # the one that had the connection may have been too far
