"""What docs/nginx.conf makes of a service that stops, dies or takes long, with a real nginx: `make test-proxy`."""

import json
import signal
import socket
import time
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import URL

from tests.conftest import execute
from tests.endless import LINE
from tests.locks import writes_waiting
from tests.processes import PATIENCE, free_port, server
from tests.proxies import proxy
from tests.services import LAUNCH, answer, connections, get, has_ended, head, launched, post

pytestmark = pytest.mark.proxy

HERO = json.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"}).encode()


def wait_until_it_waits(url: URL) -> None:
    """Return when a write waits for the lock: then the service has read the request, and has not answered it."""
    deadline = time.monotonic() + PATIENCE
    while not execute(url, "SELECT count(*) FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < deadline


def test_a_restart_ends_what_is_in_flight_and_refuses_what_comes(postgres_url: URL, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with proxy(port) as front, connections(front, 2) as (writing, other):
        with launched(postgres_url, log, port=port) as service, connections(port, 1) as (direct,):
            assert get(other) == get(direct) == 200
            with writes_waiting(postgres_url):
                post(writing, HERO)
                wait_until_it_waits(postgres_url)
                service.process.send_signal(signal.SIGTERM)
                assert has_ended(direct)
                assert get(other) == 502
                time.sleep(0.5)  # the service is ending, and the write waits
            assert answer(writing)[0] == 200
            assert service.process.wait(PATIENCE) == -signal.SIGTERM
        response = httpx.post(f"http://127.0.0.1:{front}/heroes/", content=HERO, headers={"X-Request-ID": "soon"})
        assert (response.status_code, response.headers["X-Request-ID"]) == (502, "soon")
        assert response.json()["detail"].startswith("The service did not answer.")
        with launched(postgres_url, log, port=port):
            assert get(other) == get(writing) == 200


def test_a_server_that_is_not_there_is_passed_over(sqlite_url: URL, tmp_path: Path) -> None:
    with launched(sqlite_url, tmp_path / "log") as service, proxy(free_port(), service.port) as front:
        for _ in range(10):
            with connections(front, 1) as (client,):
                post(client, HERO)
                assert answer(client)[0] == 200


def test_a_post_is_not_repeated_by_the_other_server(postgres_url: URL, tmp_path: Path) -> None:
    with (
        launched(postgres_url, tmp_path / "one") as one,
        launched(postgres_url, tmp_path / "other") as other,
        proxy(one.port, other.port) as front,
        connections(front, 1) as (client,),
    ):
        with writes_waiting(postgres_url):
            post(client, HERO)
            wait_until_it_waits(postgres_url)
            busy, idle = (one, other) if one.connected() else (other, one)
            busy.process.kill()
            assert answer(client)[0] == 502
        assert httpx.get(f"http://127.0.0.1:{idle.port}/heroes/").json() == []
        assert get(client) == 200


def test_a_write_that_is_answered_504_may_yet_be_done(postgres_url: URL, tmp_path: Path) -> None:
    with (
        launched(postgres_url, tmp_path / "log") as service,
        proxy(service.port, changes={"proxy_read_timeout 60s": "proxy_read_timeout 1s"}) as front,
        connections(front, 1) as (client,),
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as direct,
    ):
        with writes_waiting(postgres_url):
            post(client, HERO)
            status, body = answer(client)
        assert status == 504
        assert json.loads(body)["detail"].startswith("The service took too long.")
        deadline = time.monotonic() + PATIENCE
        while not direct.get("/heroes/").json():
            assert time.monotonic() < deadline


def test_a_pool_whose_connections_are_idle_as_long_as_the_proxy_keeps_them_sees_no_reset(
    sqlite_url: URL, tmp_path: Path
) -> None:
    # Both limits are shorter here than they are, and in the same proportion.
    kept = int(LAUNCH[LAUNCH.index("--timeout-keep-alive") + 1])
    milliseconds = 60 * 2000 // kept
    with (
        launched(sqlite_url, tmp_path / "log", "--timeout-keep-alive", "2") as service,
        proxy(service.port, changes={"keepalive_timeout 60s": f"keepalive_timeout {milliseconds}ms"}) as front,
        connections(front, 20) as clients,
    ):
        for pause in (0, -0.02, 0.02, 1):  # with the last one, also longer than the service would keep them
            for client in clients:
                post(client, HERO)
            assert [answer(client)[0] for client in clients] == [200] * len(clients)
            time.sleep(milliseconds / 1000 + pause)
        # Who closes a connection first is the one who remembers it.
        old = [
            (connection.laddr.port, connection.raddr.port)
            for connection in psutil.net_connections("tcp4")
            if connection.status == psutil.CONN_TIME_WAIT and connection.laddr and connection.raddr
        ]
        assert service.port in {port for _, port in old}
        assert service.port not in {port for port, _ in old}


def test_an_answer_without_end_comes_line_by_line_and_waits_for_a_client_that_stops_reading() -> None:
    port = free_port()
    command = ("uvicorn", "tests.endless:app", "--port", str(port), "--timeout-graceful-shutdown", "1")
    with (
        server(*command, port=port, changes={}) as direct,
        proxy(port, changes={"proxy_read_timeout 60s": "proxy_read_timeout 1s"}) as front,
        connections(front, 2) as (client, slow),
    ):
        client.sendall(head("GET /one"))
        with closing(HTTPResponse(client)) as response:
            response.begin()
            assert response.readline() == LINE
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(head("GET /many"))
        sent = -1
        while sent != (sent := direct.get("/sent").json()):
            time.sleep(2)  # longer than the time between two pieces
        assert 0 < sent < 50_000_000
        with closing(HTTPResponse(slow)) as response:
            response.begin()
            assert response.read(2 * sent // len(LINE) * len(LINE)) == LINE * (2 * sent // len(LINE))
