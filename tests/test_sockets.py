"""Connections that are idle, slow or stalled, without a proxy.

uvicorn limits none of these: docs/proxy.md says what does, and tests/test_proxy.py tests it.
"""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening
from tests.support.heroes import DEADPOND_JSON
from tests.support.nginx import CONFIGURATION
from tests.support.raw_http import begin_post, connections, get_heroes, read_response, request_head, send_post
from tests.support.service import UVICORN


async def test_idle_slow_and_stalled_connections_delay_no_other_request(sqlite_url: URL) -> None:
    """With one database session: a request that held it would block all others."""
    async with listening(create_app(Settings(database_url=sqlite_url, pool_size=1))) as port:
        await asyncio.to_thread(use_connections, port)


def use_connections(port: int) -> None:
    """Send requests on some connections, while others send theirs slowly or nothing."""
    with ExitStack() as stack:
        idle, slow, stalled, normal = (stack.enter_context(connections(port, number)) for number in (200, 50, 20, 50))
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
