"""The HTTP protocol of the launch configuration, on bare sockets: heads, upgrades, trailers and HTTP/1.0."""

import gzip
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import psutil
import pytest
from sqlalchemy import URL

from app.protocol import MAX_HEAD
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND_JSON
from tests.support.processes import TIMEOUT
from tests.support.raw_http import (
    begin_request,
    connections,
    get_heroes,
    read_response,
    request_head,
    send_post,
    wait_for_close,
)
from tests.support.service import Service, running_service

CHUNKED = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}
CPU_LIMIT = 0.5  # seconds for three requests: some times what they take, and a fraction of what they took


@pytest.fixture(scope="module")
def service(sqlite_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as `make run` starts it. No request here depends on the database."""
    with running_service(sqlite_databases.migrated(), tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture
def connection(service: Service) -> Iterator[socket.socket]:
    with connections(service.port, 1) as (connection,):
        yield connection


@pytest.fixture
def hero(connection: socket.socket) -> int:
    """The id of a hero whose ETag is "1"."""
    send_post(connection, DEADPOND_JSON)
    return int(json.loads(read_response(connection)[1])["id"])


def send(connection: socket.socket, *parts: bytes) -> None:
    """Send each part as a packet, as far as the server reads them."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in parts:
        try:
            connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return


def status_of(service: Service, *parts: bytes) -> int:
    """Return the status of the response to a request on a connection of its own."""
    with connections(service.port, 1) as (connection,):
        send(connection, *parts)
        return read_response(connection)[0]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class TestUpgrade:
    @pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0", "h2c, websocket"])
    @pytest.mark.parametrize("framing", [{"Content_Length": 0}, {}])
    def test_without_a_body_it_is_ignored_and_the_connection_is_closed(
        self, connection: socket.socket, protocol: str, framing: dict[str, object]
    ) -> None:
        connection.sendall(request_head("GET /heroes/", Connection="Upgrade", Upgrade=protocol, **framing))
        assert read_response(connection)[0] == 200
        assert wait_for_close(connection)

    @pytest.mark.parametrize("protocol", ["h2c", "websocket"])
    @pytest.mark.parametrize("framing", [{"Content_Length": 40}, {"Transfer_Encoding": "chunked"}], ids=str)
    def test_with_a_body_it_is_400_and_the_body_is_not_run_as_a_request(
        self, service: Service, connection: socket.socket, hero: int, protocol: str, framing: dict[str, object]
    ) -> None:
        head = request_head(
            "POST /heroes/", Content_Type="application/json", Connection="Upgrade", Upgrade=protocol, **framing
        )
        send(connection, head, request_head(f"DELETE /heroes/{hero}"))
        assert read_response(connection)[0] == 400
        assert wait_for_close(connection)
        assert status_of(service, request_head(f"GET /heroes/{hero}")) == 200

    def test_what_follows_one_without_a_body_is_not_run(self, service: Service, hero: int) -> None:
        delete = request_head(f"DELETE /heroes/{hero}")
        head = request_head("GET /heroes/export", Connection="Upgrade", Upgrade="h2c")
        for parts in ((head + delete,), (head, delete), (head[:-1], head[-1:] + delete, delete)):
            with connections(service.port, 1) as (connection,):
                send(connection, *parts)
                assert read_response(connection)[0] == 200
                assert wait_for_close(connection)
            assert status_of(service, request_head(f"GET /heroes/{hero}")) == 200

    def test_a_post_to_a_websocket_does_not_delay_the_stop_or_an_upload(self, sqlite_url: URL, tmp_path: Path) -> None:
        upgrade = request_head("POST /heroes/", Connection="Upgrade", Upgrade="websocket", Content_Length=2)
        with (
            running_service(sqlite_url, tmp_path / "log") as service,
            connections(service.port, 2) as (socket_, upload),
        ):
            begin_request(upload, "POST /heroes/", len(DEADPOND_JSON))
            send(socket_, upgrade + b"{}")
            assert read_response(socket_)[0] == 400
            service.process.terminate()
            service.wait_for_log("Waiting for")
            upload.sendall(DEADPOND_JSON)
            assert read_response(upload)[0] == 200
            assert service.process.wait(TIMEOUT) == -signal.SIGTERM


def x_headers(length: int) -> dict[str, object]:
    """Many short headers, of this length together."""
    return {f"X-{number:06}": "" for number in range(length // len("X-000000: \r\n"))}


class TestHead:
    def test_one_of_the_maximum_is_accepted(self, service: Service) -> None:
        assert status_of(service, request_head("GET /livez", X_Long="a" * (MAX_HEAD - 100))) == 200
        assert status_of(service, request_head("GET /livez", **x_headers(MAX_HEAD - 100))) == 200

    @pytest.mark.parametrize("length", [2 * MAX_HEAD, 5_000_000])
    def test_a_larger_one_is_400_and_the_connection_is_closed(self, service: Service, length: int) -> None:
        commas = dict.fromkeys(("If_None_Match", "X_Forwarded_For", "Connection", "X_Long"), "," * length)
        for head in (
            request_head(f"GET /{'a' * length}"),
            request_head("GET /livez", **x_headers(length)),
            b"\r\n" * (length // 2) + request_head("GET /livez"),
            *(request_head("GET /livez", **{name: value}) for name, value in commas.items()),
        ):
            with connections(service.port, 2) as (huge, ordinary):
                send(huge, head)
                try:
                    assert read_response(huge)[0] == 400
                except ConnectionResetError:  # with what it sent unread, a client may not see the response
                    assert length > 2 * MAX_HEAD
                assert get_heroes(ordinary) == 200

    def test_one_without_an_end_is_400(self, service: Service) -> None:
        parts = [b"GET /livez HTTP/1.1\r\nHost: heroes\r\nX-Long: ", *[b"a" * 1_000] * (MAX_HEAD // 500)]
        assert status_of(service, *parts) == 400

    def test_the_next_request_of_a_connection_has_a_head_of_its_own(self, connection: socket.socket) -> None:
        for _ in range(3):
            connection.sendall(request_head("GET /livez", X_Long="a" * (MAX_HEAD // 2)))
            assert read_response(connection)[0] == 200

    def test_a_body_may_be_larger(self, connection: socket.socket) -> None:
        body = DEADPOND_JSON + b" " * 500_000
        send_post(connection, body)
        assert read_response(connection)[0] == 200
        pieces = [chunk(body[start : start + 100]) for start in range(0, len(body), 100)]
        connection.sendall(request_head("POST /heroes/", **CHUNKED) + b"".join(pieces) + b"0\r\n\r\n")
        assert read_response(connection)[0] == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Cookie": 'a="' + "\\" * (MAX_HEAD - 200) + '"'},
            {"Cookie": "a;" * (MAX_HEAD // 2 - 100)},
            {"If_None_Match": "," * (MAX_HEAD - 200)},
            {"If_Match": '"1",' * (MAX_HEAD // 4 - 100)},
            {"X_Forwarded_For": "," * (MAX_HEAD - 200)},
            {"Accept": "," * (MAX_HEAD - 200)},
            {"Accept_Encoding": "," * (MAX_HEAD - 200)},
            {"Connection": "," * (MAX_HEAD - 200)},
            x_headers(MAX_HEAD - 200),
        ],
        ids=lambda headers: f"{min(headers)}-{headers[min(headers)][:3]}",
    )
    def test_none_takes_long(
        self, service: Service, connection: socket.socket, hero: int, headers: dict[str, object]
    ) -> None:
        process = psutil.Process(service.process.pid)
        before = sum(process.cpu_times()[:2])
        for path in (f"/heroes/{hero}", "/heroes/", "/heroes/export"):
            connection.sendall(request_head(f"GET {path}", **headers))
            assert read_response(connection)[0] in {200, 412}
        assert sum(process.cpu_times()[:2]) - before < CPU_LIMIT


class TestHost:
    @pytest.mark.parametrize("lines", ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nhost: a\r\n"])
    def test_http_1_1_with_none_or_two_is_400(self, service: Service, lines: str) -> None:
        assert status_of(service, f"GET /livez HTTP/1.1\r\n{lines}\r\n".encode()) == 400

    def test_http_1_0_needs_none(self, service: Service) -> None:
        assert status_of(service, b"GET /livez HTTP/1.0\r\n\r\n") == 200
        assert status_of(service, b"GET /livez HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n") == 400


class TestTrailers:
    def test_if_match_in_a_trailer_is_no_condition(self, connection: socket.socket, hero: int) -> None:
        head = request_head(f"PATCH /heroes/{hero}", **CHUNKED)
        parts = [head + chunk(b'{"age":5}'), b'0\r\nIf-Match: "999"\r\n\r\n']
        for packets in ([b"".join(parts)], parts):
            send(connection, *packets)
            assert read_response(connection)[0] == 200

    def test_a_key_in_a_trailer_is_none(self, connection: socket.socket) -> None:
        request = request_head("POST /heroes/", **CHUNKED) + chunk(DEADPOND_JSON)
        created = set()
        for _ in range(2):
            connection.sendall(request + b"0\r\nIdempotency-Key: trailer\r\n\r\n")
            status, body = read_response(connection)
            assert status == 200
            created.add(json.loads(body)["id"])
        assert len(created) == 2

    def test_they_are_limited_like_a_head(self, service: Service) -> None:
        request = request_head("POST /heroes/", **CHUNKED) + chunk(DEADPOND_JSON[:9]) + b"0\r\n"
        for trailers in (b"a: b\r\n" * MAX_HEAD, b"a: " + b"b" * 3 * MAX_HEAD):
            assert status_of(service, request + trailers) == 400


class TestHTTP10:
    def request(self, connection: socket.socket, start: str, *lines: str) -> tuple[bytes, bytes]:
        """Return the head and the body of the response, up to the end of the connection."""
        connection.sendall("\r\n".join([f"{start} HTTP/1.0", *lines, "", ""]).encode())
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        return head, body

    def test_an_export_has_no_chunks_and_ends_with_the_connection(self, connection: socket.socket, hero: int) -> None:
        head, body = self.request(connection, "GET /heroes/export", "Accept-Encoding: identity")
        assert head.startswith(b"HTTP/1.1 200")
        assert hero in [json.loads(line)["id"] for line in body.splitlines()]

    def test_an_export_can_be_compressed(self, connection: socket.socket, hero: int) -> None:
        _, body = self.request(connection, "GET /heroes/export", "Accept-Encoding: gzip")
        assert hero in [json.loads(line)["id"] for line in gzip.decompress(body).splitlines()]

    @pytest.mark.parametrize("start", ["GET /heroes/", "GET /nowhere", "OPTIONS /heroes/"])
    def test_other_responses_keep_their_length(self, connection: socket.socket, start: str) -> None:
        head, body = self.request(connection, start)
        with_length = f"content-length: {len(body)}".encode() in head
        assert with_length != start.startswith("OPTIONS")

    def test_an_upgrade_gets_no_chunks_either(self, connection: socket.socket, hero: int) -> None:
        head, body = self.request(connection, "GET /heroes/export", "Connection: Upgrade", "Upgrade: h2c")
        assert head.startswith(b"HTTP/1.1 200")
        assert hero in [json.loads(line)["id"] for line in body.splitlines()]

    @pytest.mark.parametrize("path", ["/heroes/", "/heroes/export"])
    def test_head_has_no_body(self, connection: socket.socket, path: str) -> None:
        head, body = self.request(connection, f"HEAD {path}")
        assert (head[:12], body) == (b"HTTP/1.1 200", b"")


def test_a_connection_stays_usable_after_a_head(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(request_head("HEAD /heroes/export"))
        with closing(HTTPResponse(connection, method="HEAD")) as response:
            response.begin()
            assert (response.status, response.read()) == (200, b"")
        assert get_heroes(connection) == 200


def test_http_1_1_still_gets_chunks(connection: socket.socket) -> None:
    connection.sendall(request_head("GET /heroes/export"))
    with closing(HTTPResponse(connection)) as response:
        response.begin()
        assert response.getheader("Transfer-Encoding") == "chunked"
        response.read()
