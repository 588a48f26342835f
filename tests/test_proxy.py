"""What docs/nginx.conf does for the service, with a real nginx: `make test-proxy`."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from app.bodies import MAX_BYTES
from tests.conftest import Databases
from tests.proxies import proxy
from tests.services import Service, answer, begin_post, connections, get, has_ended, head, launched, post

pytestmark = pytest.mark.proxy

HERO = json.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"}).encode()
IN_HASTE = {
    "client_header_timeout 10s": "client_header_timeout 1s",
    "client_body_timeout 10s": "client_body_timeout 1s",
}


@pytest.fixture(scope="module")
def service(sqlite_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, with one hero."""
    with launched(sqlite_databases.migrated(), tmp_path_factory.mktemp("service") / "log") as service:
        with connections(service.port, 1) as (connection,):
            post(connection, HERO)
            assert answer(connection)[0] == 200
        yield service


@pytest.fixture
def front(service: Service) -> Iterator[int]:
    """The port of nginx in front of it."""
    with proxy(service.port) as port:
        yield port


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def clients_of(service: Service) -> list[str]:
    """List the addresses in the service's access log."""
    return re.findall(r'^INFO: +([0-9.]+):[0-9]+ - "', service.log.read_text(), re.MULTILINE)


def test_a_page_that_ends_with_a_long_name_comes_through(service: Service, front: int) -> None:
    hero = {"name": "\N{SUPERHERO}" * 255, "secret_name": "x"}
    assert httpx.post(f"{url(service.port)}/heroes/batch", json=[hero, hero]).status_code == 200
    page = httpx.get(f"{url(front)}/heroes/", params={"sort": "-name", "name": hero["name"], "limit": 1})
    assert (page.status_code, page.json()[0]["name"]) == (200, hero["name"])
    assert len(httpx.get(f"{url(front)}{page.links['next']['url']}").json()) == 1


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
        ("GET", "/", b""),
        ("HEAD", "/heroes/", b""),
        ("PUT", "/heroes/", HERO),
        ("PATCH", "/heroes/1", b"{}"),
        ("PATCH", "/heroes/1", b"{"),
        ("POST", "/heroes/", b"{}"),
        ("POST", "/heroes/", HERO.ljust(MAX_BYTES + 1)),
    ],
    ids=lambda value: str(value[:20]),
)
def test_an_ordinary_request_and_its_answer_pass_as_they_are(
    service: Service, front: int, method: str, path: str, body: bytes
) -> None:
    for form in ("application/json", "application/problem+json"):
        headers = {"Accept": form, "Content-Type": "application/json", "X-Request-ID": "mine/1"}
        direct, proxied = (
            httpx.request(method, url(port) + path, content=body, headers=headers) for port in (service.port, front)
        )
        assert proxied.status_code == direct.status_code
        assert proxied.content == direct.content
        assert headers_of(proxied) == headers_of(direct)
        assert proxied.headers["X-Request-ID"] == "mine/1"
        assert proxied.headers["Server"] == "nginx"


def headers_of(response: httpx.Response) -> dict[str, str]:
    """Give those that only the service writes."""
    return {name: value for name, value in response.headers.items() if name not in {"connection", "date", "server"}}


def test_every_body_that_the_service_takes_gets_to_it(front: int) -> None:
    with httpx.Client(base_url=url(front), headers={"Content-Type": "application/json"}) as client:
        assert client.post("/heroes/", content=HERO.ljust(MAX_BYTES)).status_code == 200
        assert client.post("/heroes/", content=iter([HERO, b" " * 1000])).status_code == 200


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
def test_a_body_that_is_far_too_large_is_refused_in_the_form_of_the_service(
    service: Service, front: int, framing: str
) -> None:
    body = HERO.ljust(11 * 2**20)
    headers = {"Content-Type": "application/json", "X-Request-ID": "huge"}
    content = body if framing == "Content-Length" else iter([body[:100], body[100:]])
    response = httpx.post(f"{url(front)}/heroes/", content=content, headers=headers)
    assert response.status_code == 413
    assert response.json() == {"detail": "The body is too large."}
    assert (response.headers["Content-Type"], response.headers["X-Request-ID"]) == ("application/json", "huge")
    assert service.connected() == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(head("GET /heroes/", X_Long="a" * 5_000_000), 400, id="a header of 5 MB"),
        pytest.param(
            head("GET /heroes/", **{f"X-{number}": number for number in range(50_000)}), 400, id="50,000 headers"
        ),
        pytest.param(head(f"GET /{'a' * 70_000}"), 414, id="a path of 70 KB"),
    ],
)
def test_a_head_that_is_too_large_is_refused_and_the_service_never_sees_it(
    service: Service, front: int, request_: bytes, status: int
) -> None:
    with connections(front, 1) as (connection,):
        connection.sendall(request_)
        refused, page = answer(connection)
    assert refused == status
    assert b"nginx/" not in page
    assert service.connected() == 0


def test_slow_heads_and_stalled_bodies_are_ended_and_the_service_never_sees_them(service: Service) -> None:
    with proxy(service.port, changes=IN_HASTE) as front, ExitStack() as stack:
        dribbling, stalled, silent = (stack.enter_context(connections(front, number)) for number in (50, 20, 200))
        for connection in stalled:
            begin_post(connection, len(HERO))
            connection.sendall(HERO[:10])
        with ThreadPoolExecutor(len(dribbling)) as pool:
            assert all(pool.map(dribbles_until_the_end, dribbling))
        assert all(has_ended(connection) for connection in (*stalled, *silent))
        assert service.connected() == 0


def dribbles_until_the_end(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    for byte in head("GET /heroes/", X_Long="a" * 600):
        try:
            connection.sendall(bytes([byte]))
            return connection.recv(1) == b""
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_idle_dribbling_and_stalled_connections_hold_nobody_up(service: Service, front: int) -> None:
    with ExitStack() as stack:
        silent, dribbling, stalled, swift = (
            stack.enter_context(connections(front, number)) for number in (200, 50, 20, 50)
        )
        for connection in stalled:
            begin_post(connection, len(HERO))
            connection.sendall(HERO[:10])
        for connection in dribbling:
            connection.sendall(head("GET /heroes/")[:10])
        assert get(swift[0]) == 200
        assert service.connected() == 1
        with ThreadPoolExecutor(len(swift)) as pool:
            assert list(pool.map(get, swift)) == [200] * len(swift)
        assert [get(connection) for connection in silent] == [200] * len(silent)
        for connection in stalled:
            connection.sendall(HERO[10:])
        assert [answer(connection)[0] for connection in stalled] == [200] * len(stalled)


def test_when_connections_run_out_those_that_are_idle_make_room(service: Service) -> None:
    with (
        proxy(service.port, changes={"worker_connections 4096;": "worker_connections 64;"}) as front,
        connections(front, 500),
        connections(front, 10) as late,
    ):
        assert [get(connection) for connection in late] == [200] * len(late)


def test_an_address_has_so_many_requests_at_a_time_and_the_others_are_not_its_business(service: Service) -> None:
    with (
        proxy(service.port, changes={"limit_conn addresses 100;": "limit_conn addresses 5;"}) as front,
        connections(front, 7, source="127.0.0.2") as (idle, late, *stalled),
        connections(front, 1) as (other,),
    ):
        for connection in stalled:
            begin_post(connection, len(HERO))
        assert get(late) == 429
        assert get(other) == 200
        for connection in stalled:
            connection.sendall(HERO)
            assert answer(connection)[0] == 200
        assert get(idle) == 200


def test_the_service_is_told_the_address_that_the_proxy_sees_and_not_the_one_that_the_client_claims(
    service: Service, front: int
) -> None:
    with connections(front, 1, source="127.0.0.2") as (connection,):
        connection.sendall(head("GET /heroes/", X_Forwarded_For="192.0.2.1"))
        assert answer(connection)[0] == 200
    assert clients_of(service)[-1] == "127.0.0.2"


@pytest.mark.parametrize("sent", [{}, {"X-Request-ID": "not one"}, {"X-Request-ID": "a" * 129}], ids=str)
def test_a_request_without_a_sane_id_gets_one_that_both_know(front: int, sent: dict[str, str]) -> None:
    response = httpx.get(f"{url(front)}/heroes/", headers=sent)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])  # nginx made it, and the service returned it


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz/", "/%72eadyz", "/./readyz", "/x/../readyz"])
def test_the_probes_are_not_there(service: Service, front: int, path: str) -> None:
    before = len(clients_of(service))
    with connections(front, 1) as (connection,):
        connection.sendall(head(f"GET {path}"))
        assert answer(connection) == (404, b'{"detail":"Not Found"}')
    assert len(clients_of(service)) == before
