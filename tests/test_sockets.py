"""Connections that are idle, slow or stalled, without a proxy.

uvicorn limits none of these: docs/proxy.md says what does, and tests/test_proxy.py tests it.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.support.heroes import DEADPOND_JSON
from tests.support.nginx import CONFIGURATION
from tests.support.raw_http import begin_post, connections, get_heroes, read_response, request_head, send_post
from tests.support.service import UVICORN, Service, running_service


@pytest.fixture
def service(sqlite_url: URL, tmp_path: Path) -> Iterator[Service]:
    """The service with one database session, so that a request that held it would block all others."""
    with running_service(sqlite_url, tmp_path / "log", POOL_SIZE="1") as service:
        yield service


def test_idle_slow_and_stalled_connections_delay_no_other_request(service: Service) -> None:
    with ExitStack() as stack:
        idle, slow, stalled, normal = (
            stack.enter_context(connections(service.port, number)) for number in (200, 50, 20, 50)
        )
        for connection in stalled:
            begin_post(connection, len(DEADPOND_JSON))
            connection.sendall(DEADPOND_JSON[:10])
        request = request_head("GET /heroes/")
        for byte in request[:10]:
            for connection in slow:
                connection.sendall(bytes([byte]))
            assert get_heroes(normal[0]) == 200
        with ThreadPoolExecutor(len(normal)) as pool:
            assert list(pool.map(get_heroes, normal)) == [200] * len(normal)
        send_post(normal[0], DEADPOND_JSON)
        assert read_response(normal[0])[0] == 200

        # The others have got no response yet, and none is lost.
        for connection in slow:
            connection.sendall(request[10:])
        assert [json.loads(read_response(connection)[1]) for connection in slow] == [
            [{"name": "Deadpond", "age": None, "id": 1}]
        ] * len(slow)
        for connection in stalled:
            connection.sendall(DEADPOND_JSON[10:])
        assert [read_response(connection)[0] for connection in stalled] == [200] * len(stalled)
        assert [get_heroes(connection) for connection in idle] == [200] * len(idle)


def test_each_hop_keeps_idle_connections_for_a_shorter_time_than_the_next() -> None:
    service = int(UVICORN[UVICORN.index("--timeout-keep-alive") + 1])
    clients, upstream = re.findall(r"^ +keepalive_timeout (\d+)s;", CONFIGURATION.read_text(), re.MULTILINE)
    assert int(upstream) < service
    assert 60 < int(clients) < service  # 60 s is the usual idle timeout of load balancers
