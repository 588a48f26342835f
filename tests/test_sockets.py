"""What the service does with connections that are idle, slow or stalled, and with heads that are huge.

uvicorn limits none of these: docs/proxy.md says what does, and tests/test_proxy.py shows it.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.proxies import CONFIGURATION
from tests.services import LAUNCH, Service, answer, begin_post, connections, get, head, launched, post

HERO = json.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"}).encode()


@pytest.fixture
def service(url: URL, tmp_path: Path) -> Iterator[Service]:
    """The service with one connection to its database, so that nobody can hold a second one."""
    with launched(url, tmp_path / "log", POOL_SIZE="1") as service:
        yield service


def test_idle_dribbling_and_stalled_connections_hold_nobody_up(service: Service) -> None:
    with ExitStack() as stack:
        idle, dribbling, stalled, swift = (
            stack.enter_context(connections(service.port, number)) for number in (200, 50, 20, 50)
        )
        for connection in stalled:
            begin_post(connection, len(HERO))
            connection.sendall(HERO[:10])
        request = head("GET /heroes/")
        for byte in request[:10]:
            for connection in dribbling:
                connection.sendall(bytes([byte]))
            assert get(swift[0]) == 200
        with ThreadPoolExecutor(len(swift)) as pool:
            assert list(pool.map(get, swift)) == [200] * len(swift)
        post(swift[0], HERO)
        assert answer(swift[0])[0] == 200

        # None of the others has been answered meanwhile, and none is lost.
        for connection in dribbling:
            connection.sendall(request[10:])
        assert [json.loads(answer(connection)[1]) for connection in dribbling] == [
            [{"name": "Deadpond", "age": None, "id": 1}]
        ] * len(dribbling)
        for connection in stalled:
            connection.sendall(HERO[10:])
        assert [answer(connection)[0] for connection in stalled] == [200] * len(stalled)
        assert [get(connection) for connection in idle] == [200] * len(idle)


def test_the_service_itself_takes_a_head_of_any_length(sqlite_url: URL, tmp_path: Path) -> None:
    heads = {
        head("GET /livez", X_Long="a" * 5_000_000): 200,
        head("GET /livez", **{f"X-{number}": number for number in range(50_000)}): 200,
        head(f"GET /{'a' * 70_000}"): 400,
    }
    with launched(sqlite_url, tmp_path / "log") as service:
        for request, status in heads.items():
            with connections(service.port, 2) as (huge, ordinary):
                huge.sendall(request)
                assert answer(huge)[0] == status
                assert get(ordinary) == 200


def test_each_hop_keeps_an_idle_connection_for_a_shorter_time_than_the_next_one() -> None:
    service = int(LAUNCH[LAUNCH.index("--timeout-keep-alive") + 1])
    clients, upstream = re.findall(r"^ +keepalive_timeout (\d+)s;", CONFIGURATION.read_text(), re.MULTILINE)
    assert int(upstream) < service
    assert 60 < int(clients) < service  # 60 is what load balancers have
