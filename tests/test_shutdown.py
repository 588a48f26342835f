"""Requests in flight when SIGTERM or SIGHUP arrives, and readiness between SIGTERM and the shutdown."""

import asyncio
import json
import signal
import socket
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import URL

from tests.support.heroes import DEADPOND
from tests.support.locks import stored_names, write_lock
from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT
from tests.support.raw_http import (
    begin_post,
    connections,
    get_heroes,
    read_response,
    request_head,
    send_post,
    wait_for_close,
)
from tests.support.service import Service, running_service

# Shells and orchestrators report the exit by SIGTERM as 128 + 15 = 143.
BOTH_PROCESS_MODELS = pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param((), -signal.SIGTERM, id="one process", marks=pytest.mark.chaos),
        pytest.param(("--workers", "2"), 0, id="two workers", marks=pytest.mark.slow),
    ],
)


def hero(name: str) -> bytes:
    return json.dumps(DEADPOND | {"name": name}).encode()


def begin_writes(writing: list[socket.socket], names: list[str]) -> None:
    """Send a POST of a hero on each connection. All have reached the app when this returns."""
    for name, connection in zip(names, writing, strict=True):
        begin_post(connection, len(hero(name)))
        connection.sendall(hero(name))


def read_created_name(connection: socket.socket) -> str | None:
    """Return the name of the created hero, or None if there was no successful response."""
    try:
        status, body = read_response(connection)
    except (ConnectionError, HTTPException):
        return None
    return str(json.loads(body)["name"]) if status == 200 else None


def create_first_hero(service: Service) -> None:
    """Create one hero, so that the service has connected and SQLite's file is in WAL mode."""
    with connections(service.port, 1) as (connection,):
        send_post(connection, hero("first"))
        assert read_response(connection)[0] == 200


@BOTH_PROCESS_MODELS
def test_every_write_in_flight_gets_its_response_and_is_stored(
    url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    names = [f"hero {number}" for number in range(50)]
    # The stalled upload lasts until the limit, so this test shortens it.
    with (
        running_service(url, tmp_path / "log", *options, "--timeout-graceful-shutdown", "3") as service,
        ExitStack() as stack,
    ):
        writing, idle, (stalled,) = (
            stack.enter_context(connections(service.port, number)) for number in (len(names), 10, 1)
        )
        create_first_hero(service)
        assert [get_heroes(connection) for connection in idle] == [200] * len(idle)
        begin_post(stalled, len(hero("stalled")))
        stalled.sendall(hero("stalled")[:-1])
        with write_lock(url):
            begin_writes(writing, names)
            service.process.send_signal(signal.SIGTERM)
            assert all(wait_for_close(connection) for connection in idle)
            service.wait_for_log("Waiting for connections to close")
        assert [read_created_name(connection) for connection in writing] == names
        assert service.process.wait(TIMEOUT) == code
        assert read_created_name(stalled) is None
    assert "Application shutdown complete" in service.log.read_text()
    assert stored_names(url) == sorted(["first", *names])


@BOTH_PROCESS_MODELS
def test_writes_blocked_past_the_limit_do_not_delay_the_exit(
    url: URL, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    limits = ("--timeout-graceful-shutdown", "1")
    with (
        running_service(url, tmp_path / "log", *options, *limits, LOCK_TIMEOUT="2") as service,
        connections(service.port, 50) as writing,
    ):
        create_first_hero(service)
        with write_lock(url):
            begin_writes(writing, ["late"] * len(writing))
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(TIMEOUT) == code
        assert {read_created_name(connection) for connection in writing} == {None}
    assert stored_names(url) == ["first"]  # a lock that is left would block this


@pytest.mark.chaos
def test_every_acknowledged_write_is_stored_when_the_limit_cancels_the_others(url: URL, tmp_path: Path) -> None:
    names = [f"hero {number}" for number in range(50)]
    limits = ("--timeout-graceful-shutdown", "1")
    with (
        running_service(url, tmp_path / "log", *limits, POOL_SIZE="1", LOCK_TIMEOUT="10") as service,
        connections(service.port, len(names)) as writing,
    ):
        create_first_hero(service)
        with write_lock(url):
            begin_writes(writing, names)
            service.process.send_signal(signal.SIGTERM)
            service.wait_for_log("timeout graceful shutdown exceeded")
        acknowledged = [name for name in map(read_created_name, writing) if name]
        assert service.process.wait(TIMEOUT) == -signal.SIGTERM
    names_in_database = stored_names(url)
    assert set(acknowledged) <= set(names_in_database)
    assert len(names_in_database) == len(set(names_in_database))
    # The write that held the session may have been committed without a response.
    assert len(names_in_database) - len(["first", *acknowledged]) <= 1


def readiness(service: Service) -> int:
    """Request `/readyz` on a new connection, as a balancer does, and return the status."""
    with connections(service.port, 1) as (connection,):
        connection.sendall(request_head("GET /readyz"))
        return read_response(connection)[0]


class TestDelay:
    @BOTH_PROCESS_MODELS
    def test_readiness_ends_before_the_listener_closes_and_requests_are_served_until_then(
        self, sqlite_url: URL, options: tuple[str, ...], code: int, tmp_path: Path
    ) -> None:
        with running_service(sqlite_url, tmp_path / "log", *options, SHUTDOWN_DELAY="3") as service:
            assert readiness(service) == 200
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: readiness(service) == 503)
            create_first_hero(service)
            assert "Shutting down" not in service.log.read_text()
            assert service.process.wait(TIMEOUT) == code
        assert "Application shutdown complete" in service.log.read_text()
        assert stored_names(sqlite_url) == ["first"]

    @pytest.mark.chaos
    @pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_it(self, sqlite_url: URL, second: signal.Signals, tmp_path: Path) -> None:
        with running_service(sqlite_url, tmp_path / "log", SHUTDOWN_DELAY="600") as service:
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: readiness(service) == 503)
            service.process.send_signal(second)
            assert service.process.wait(TIMEOUT) in {-second, 0}

    async def test_a_lifespan_outside_of_the_main_thread_handles_no_signals(self, app: FastAPI) -> None:
        def serve() -> int:
            with TestClient(app) as client:
                return client.get("/readyz").status_code

        assert await asyncio.to_thread(serve) == 200


class TestHangUp:
    @pytest.mark.chaos
    def test_every_write_in_flight_gets_its_response_and_is_stored(self, url: URL, tmp_path: Path) -> None:
        names = [f"hero {number}" for number in range(20)]
        with (
            running_service(url, tmp_path / "log") as service,
            connections(service.port, len(names)) as writing,
        ):
            create_first_hero(service)
            with write_lock(url):
                begin_writes(writing, names)
                service.process.send_signal(signal.SIGHUP)
                service.wait_for_log("Waiting for connections to close")
            assert [read_created_name(connection) for connection in writing] == names
            assert service.process.wait(TIMEOUT) == -signal.SIGHUP
        assert stored_names(url) == sorted(["first", *names])

    @pytest.mark.slow
    def test_workers_are_replaced(self, sqlite_url: URL, tmp_path: Path) -> None:
        # By default uvicorn keeps a worker whose replacement is not ready within 5 s.
        options = ("--workers", "2", "--timeout-worker-healthcheck", str(TIMEOUT))
        with running_service(sqlite_url, tmp_path / "log", *options) as service:
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: service.log.read_text().count("Finished server process") == 2, service.log.read_text)
            create_first_hero(service)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(TIMEOUT) == 0
