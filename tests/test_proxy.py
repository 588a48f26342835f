"""nginx in front of the service, configured by docs/nginx.conf: `make test-proxy`."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from app.heroes.routes import MAX_BODY_SIZE
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND_JSON
from tests.support.nginx import proxy
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

pytestmark = pytest.mark.proxy

SHORT_TIMEOUTS = {
    "client_header_timeout 10s": "client_header_timeout 1s",
    "client_body_timeout 10s": "client_body_timeout 1s",
}


@pytest.fixture(scope="module")
def service(sqlite_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, with one hero."""
    with running_service(sqlite_databases.migrated(), tmp_path_factory.mktemp("service") / "log") as service:
        with connections(service.port, 1) as (connection,):
            send_post(connection, DEADPOND_JSON)
            assert read_response(connection)[0] == 200
        yield service


@pytest.fixture
def proxy_port(service: Service) -> Iterator[int]:
    """The port of nginx in front of the service."""
    with proxy(service.port) as port:
        yield port


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def clients_of(service: Service) -> list[str]:
    """List the addresses in the service's access log."""
    return re.findall(r" INFO app.access \[.*?\]: ([0-9.]+) ", service.log.read_text())


def test_a_link_header_with_a_long_name_passes(service: Service, proxy_port: int) -> None:
    hero = {"name": "\N{ROCKET}" * 255, "secret_name": "x"}
    assert httpx.post(f"{url(service.port)}/heroes/batch", json=[hero, hero]).status_code == 200
    page = httpx.get(f"{url(proxy_port)}/heroes/", params={"sort": "-name", "name": hero["name"], "limit": 1})
    assert (page.status_code, page.json()[0]["name"]) == (200, hero["name"])
    assert len(httpx.get(f"{url(proxy_port)}{page.links['next']['url']}").json()) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/heroes", b""),
        ("GET", "/heroes/?offset=0&limit=1", b""),
        ("GET", "/heroes/%31?x=%20", b""),
        ("GET", "/heroes/1/", b""),
        ("GET", "/heroes//", b""),
        ("GET", "/heroes/2", b""),
        ("GET", "/heroes/x", b""),
        ("GET", "/docs", b""),
        ("GET", "/docs/swagger-ui-bundle.js", b""),
        ("GET", "/openapi.json", b""),
        ("GET", "/", b""),
        ("HEAD", "/heroes/", b""),
        ("PUT", "/heroes/", DEADPOND_JSON),
        ("PATCH", "/heroes/1", b"{}"),
        ("PATCH", "/heroes/1", b"{"),
        ("POST", "/heroes/", b"{}"),
        ("POST", "/heroes/", DEADPOND_JSON.ljust(MAX_BODY_SIZE + 1)),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_request_and_its_response_pass_unchanged(
    service: Service, proxy_port: int, method: str, path: str, body: bytes
) -> None:
    for form in ("application/json", "application/problem+json"):
        headers = {"Accept": form, "Content-Type": "application/json", "X-Request-ID": "mine/1"}
        direct, proxied = (
            httpx.request(method, url(port) + path, content=body, headers=headers)
            for port in (service.port, proxy_port)
        )
        assert proxied.status_code == direct.status_code
        assert proxied.content == direct.content
        assert headers_of(proxied) == headers_of(direct)
        assert proxied.headers["X-Request-ID"] == "mine/1"
        assert proxied.headers["Server"] == "nginx"


def headers_of(response: httpx.Response) -> dict[str, str]:
    """Return the headers that the service alone sets."""
    return {name: value for name, value in response.headers.items() if name not in {"connection", "date", "server"}}


def test_every_body_that_the_service_accepts_passes(proxy_port: int) -> None:
    with httpx.Client(base_url=url(proxy_port), headers={"Content-Type": "application/json"}) as client:
        assert client.post("/heroes/", content=DEADPOND_JSON.ljust(MAX_BODY_SIZE)).status_code == 200
        assert client.post("/heroes/", content=iter([DEADPOND_JSON, b" " * 1000])).status_code == 200


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
def test_a_body_over_the_proxys_limit_is_413_in_the_services_format(
    service: Service, proxy_port: int, framing: str
) -> None:
    body = DEADPOND_JSON.ljust(11 * 2**20)
    headers = {"Content-Type": "application/json", "X-Request-ID": "huge"}
    content = body if framing == "Content-Length" else iter([body[:100], body[100:]])
    response = httpx.post(f"{url(proxy_port)}/heroes/", content=content, headers=headers)
    assert response.status_code == 413
    assert response.json() == {"detail": "The body is too large."}
    assert (response.headers["Content-Type"], response.headers["X-Request-ID"]) == ("application/json", "huge")
    assert service.count_connections() == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(request_head("GET /heroes/", X_Long="a" * 5_000_000), 400, id="a header of 5 MB"),
        pytest.param(
            request_head("GET /heroes/", **{f"X-{number}": number for number in range(50_000)}),
            400,
            id="50,000 headers",
        ),
        pytest.param(request_head(f"GET /{'a' * 70_000}"), 414, id="a path of 70 KB"),
    ],
)
def test_a_request_head_over_the_limit_never_reaches_the_service(
    service: Service, proxy_port: int, request_: bytes, status: int
) -> None:
    with connections(proxy_port, 1) as (connection,):
        connection.sendall(request_)
        refused, page = read_response(connection)
    assert refused == status
    assert b"nginx/" not in page
    assert service.count_connections() == 0


def test_slow_heads_and_stalled_bodies_are_closed_and_never_reach_the_service(service: Service) -> None:
    with proxy(service.port, changes=SHORT_TIMEOUTS) as proxy_port, ExitStack() as stack:
        slow, stalled, silent = (stack.enter_context(connections(proxy_port, number)) for number in (50, 20, 200))
        for connection in stalled:
            begin_post(connection, len(DEADPOND_JSON))
            connection.sendall(DEADPOND_JSON[:10])
        with ThreadPoolExecutor(len(slow)) as pool:
            assert all(pool.map(send_slowly_until_closed, slow))
        assert all(wait_for_close(connection) for connection in (*stalled, *silent))
        assert service.count_connections() == 0


def send_slowly_until_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    for byte in request_head("GET /heroes/", X_Long="a" * 600):
        try:
            connection.sendall(bytes([byte]))
            return connection.recv(1) == b""
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_idle_slow_and_stalled_connections_delay_no_other_request(service: Service, proxy_port: int) -> None:
    with ExitStack() as stack:
        silent, slow, stalled, normal = (
            stack.enter_context(connections(proxy_port, number)) for number in (200, 50, 20, 50)
        )
        for connection in stalled:
            begin_post(connection, len(DEADPOND_JSON))
            connection.sendall(DEADPOND_JSON[:10])
        for connection in slow:
            connection.sendall(request_head("GET /heroes/")[:10])
        assert get_heroes(normal[0]) == 200
        assert service.count_connections() == 1
        with ThreadPoolExecutor(len(normal)) as pool:
            assert list(pool.map(get_heroes, normal)) == [200] * len(normal)
        assert [get_heroes(connection) for connection in silent] == [200] * len(silent)
        for connection in stalled:
            connection.sendall(DEADPOND_JSON[10:])
        assert [read_response(connection)[0] for connection in stalled] == [200] * len(stalled)


def test_idle_connections_are_closed_when_connections_run_out(service: Service) -> None:
    with (
        proxy(service.port, changes={"worker_connections 4096;": "worker_connections 64;"}) as proxy_port,
        connections(proxy_port, 500),
        connections(proxy_port, 10) as late,
    ):
        assert [get_heroes(connection) for connection in late] == [200] * len(late)


def test_concurrent_requests_are_limited_for_each_address(service: Service) -> None:
    with (
        proxy(service.port, changes={"limit_conn addresses 100;": "limit_conn addresses 5;"}) as proxy_port,
        connections(proxy_port, 7, source="127.0.0.2") as (idle, late, *stalled),
        connections(proxy_port, 1) as (other,),
    ):
        for connection in stalled:
            begin_post(connection, len(DEADPOND_JSON))
        assert get_heroes(late) == 429
        assert get_heroes(other) == 200
        for connection in stalled:
            connection.sendall(DEADPOND_JSON)
            assert read_response(connection)[0] == 200
        assert get_heroes(idle) == 200


def test_the_service_logs_the_address_of_the_connection_and_not_a_forged_one(service: Service, proxy_port: int) -> None:
    with connections(proxy_port, 1, source="127.0.0.2") as (connection,):
        connection.sendall(request_head("GET /heroes/", X_Forwarded_For="192.0.2.1"))
        assert read_response(connection)[0] == 200
    assert clients_of(service)[-1] == "127.0.0.2"


@pytest.mark.parametrize("sent", [{}, {"X-Request-ID": "not one"}, {"X-Request-ID": "a" * 129}], ids=str)
def test_a_request_without_a_valid_request_id_gets_one_from_the_proxy(proxy_port: int, sent: dict[str, str]) -> None:
    response = httpx.get(f"{url(proxy_port)}/heroes/", headers=sent)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])  # the format of nginx's own ids


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz/", "/%72eadyz", "/./readyz", "/x/../readyz"])
def test_the_probes_are_404(service: Service, proxy_port: int, path: str) -> None:
    before = len(clients_of(service))
    with connections(proxy_port, 1) as (connection,):
        connection.sendall(request_head(f"GET {path}"))
        assert read_response(connection) == (404, b'{"detail":"Not Found"}')
    assert len(clients_of(service)) == before
