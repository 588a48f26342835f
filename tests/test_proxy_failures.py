"""nginx in front of a service that stops, crashes or is slow: `make test-proxy`."""

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

from tests.support.heroes import DEADPOND_JSON
from tests.support.locks import write_lock
from tests.support.nginx import proxy
from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT, free_port, server
from tests.support.raw_http import connections, get_heroes, read_response, request_head, send_post, wait_for_close
from tests.support.service import UVICORN, running_service
from tests.support.sql import fetch_value
from tests.support.streaming_app import LINE

pytestmark = pytest.mark.proxy


def wait_until_blocked(url: URL) -> None:
    """Wait until a write is blocked by the lock: the service has read the request, and has not responded."""
    wait_until(lambda: fetch_value(url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))


def test_a_restart_completes_requests_in_flight_and_gives_new_ones_502(postgres_url: URL, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with proxy(port) as proxy_port, connections(proxy_port, 2) as (writing, other):
        with running_service(postgres_url, log, port=port) as service, connections(port, 1) as (direct,):
            assert get_heroes(other) == get_heroes(direct) == 200
            with write_lock(postgres_url):
                send_post(writing, DEADPOND_JSON)
                wait_until_blocked(postgres_url)
                service.process.send_signal(signal.SIGTERM)
                assert wait_for_close(direct)
                assert get_heroes(other) == 502
                service.wait_for_log("Waiting for connections to close")
            assert read_response(writing)[0] == 200
            assert service.process.wait(TIMEOUT) == -signal.SIGTERM
        response = httpx.post(
            f"http://127.0.0.1:{proxy_port}/heroes/", content=DEADPOND_JSON, headers={"X-Request-ID": "soon"}
        )
        assert (response.status_code, response.headers["X-Request-ID"]) == (502, "soon")
        assert response.json()["detail"].startswith("The service did not answer.")
        with running_service(postgres_url, log, port=port):
            assert get_heroes(other) == get_heroes(writing) == 200


def test_a_server_that_is_down_is_skipped(sqlite_url: URL, tmp_path: Path) -> None:
    with running_service(sqlite_url, tmp_path / "log") as service, proxy(free_port(), service.port) as proxy_port:
        for _ in range(10):
            with connections(proxy_port, 1) as (client,):
                send_post(client, DEADPOND_JSON)
                assert read_response(client)[0] == 200


def test_a_post_is_not_retried_on_another_server(postgres_url: URL, tmp_path: Path) -> None:
    with (
        running_service(postgres_url, tmp_path / "one") as one,
        running_service(postgres_url, tmp_path / "other") as other,
        proxy(one.port, other.port) as proxy_port,
        connections(proxy_port, 1) as (client,),
    ):
        with write_lock(postgres_url):
            send_post(client, DEADPOND_JSON)
            wait_until_blocked(postgres_url)
            busy, idle = (one, other) if one.count_connections() else (other, one)
            busy.process.kill()
            assert read_response(client)[0] == 502
        assert httpx.get(f"http://127.0.0.1:{idle.port}/heroes/").json() == []
        assert get_heroes(client) == 200


def test_a_write_that_gets_504_may_still_be_stored(postgres_url: URL, tmp_path: Path) -> None:
    with (
        running_service(postgres_url, tmp_path / "log") as service,
        proxy(service.port, changes={"proxy_read_timeout 60s": "proxy_read_timeout 1s"}) as proxy_port,
        connections(proxy_port, 1) as (client,),
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as direct,
    ):
        with write_lock(postgres_url):
            send_post(client, DEADPOND_JSON)
            status, body = read_response(client)
        assert status == 504
        assert json.loads(body)["detail"].startswith("The service took too long.")
        wait_until(lambda: direct.get("/heroes/").json())


def test_a_client_that_reuses_idle_connections_gets_no_reset(sqlite_url: URL, tmp_path: Path) -> None:
    # Both timeouts are shortened in the same proportion.
    keep_alive = int(UVICORN[UVICORN.index("--timeout-keep-alive") + 1])
    milliseconds = 60 * 2000 // keep_alive
    with (
        running_service(sqlite_url, tmp_path / "log", "--timeout-keep-alive", "2") as service,
        proxy(service.port, changes={"keepalive_timeout 60s": f"keepalive_timeout {milliseconds}ms"}) as proxy_port,
        connections(proxy_port, 20) as clients,
    ):
        for pause in (0, -0.02, 0.02, 1):  # the last exceeds the service's keep-alive timeout too
            for client in clients:
                send_post(client, DEADPOND_JSON)
            assert [read_response(client)[0] for client in clients] == [200] * len(clients)
            time.sleep(milliseconds / 1000 + pause)
        # The side that closes a connection first keeps it in TIME_WAIT.
        time_wait = [
            (connection.laddr.port, connection.raddr.port)
            for connection in psutil.net_connections("tcp4")
            if connection.status == psutil.CONN_TIME_WAIT and connection.laddr and connection.raddr
        ]
        assert service.port in {port for _, port in time_wait}
        assert service.port not in {port for port, _ in time_wait}


def test_an_endless_response_passes_line_by_line_and_stalls_with_its_client() -> None:
    port = free_port()
    command = ("uvicorn", "tests.support.streaming_app:app", "--port", str(port), "--timeout-graceful-shutdown", "1")
    with (
        server(*command, port=port, changes={}) as direct,
        proxy(port, changes={"proxy_read_timeout 60s": "proxy_read_timeout 1s"}) as proxy_port,
        connections(proxy_port, 2) as (client, slow),
    ):
        client.sendall(request_head("GET /one"))
        with closing(HTTPResponse(client)) as response:
            response.begin()
            assert response.readline() == LINE
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(request_head("GET /many"))
        sent = -1
        while sent != (sent := direct.get("/sent").json()):
            time.sleep(2)  # longer than the interval between two chunks
        assert 0 < sent < 50_000_000
        with closing(HTTPResponse(slow)) as response:
            response.begin()
            assert response.read(2 * sent // len(LINE) * len(LINE)) == LINE * (2 * sent // len(LINE))
