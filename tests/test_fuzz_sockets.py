"""Random requests as bytes to the launch configuration: no request in a body is run, and none gets a 5xx."""

import json
import re
import socket
import time
from collections.abc import Iterator
from errno import ECONNRESET, ENOTCONN, EPIPE
from http.client import HTTPResponse
from io import BytesIO
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import MAX_HEAD
from tests.support.databases import Databases
from tests.support.fuzzing import EXAMPLES, fuzzed
from tests.support.heroes import DEADPOND_JSON
from tests.support.raw_http import connections, read_response, request_head, send_post
from tests.support.service import Service, running_service
from tests.support.sql import fetch_value

SMUGGLED = b'{"name":"smuggled","secret_name":"x"}'
PIPELINED = b'{"name":"pipelined","secret_name":"x"}'
HERO = "/heroes/1"  # what is smuggled would delete it
JSON = "Content-Type: application/json"
CLOSED = {EPIPE, ECONNRESET, ENOTCONN}  # by the server, before it has read everything
DEADLINE = 20  # seconds until a connection ends: it is a hang otherwise, which Hypothesis tries several times
LAST = ["Connection: close"]


class Message(NamedTuple):
    """A request, and the status of its response: None if it may be refused, and what follows it not run."""

    method: str
    data: bytes
    status: int | None
    creates: bool = False


def head(start: str, lines: list[str], version: str = "1.1", host: str = "Host: heroes\r\n") -> bytes:
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"{start} HTTP/{version}\r\n{host}{fields}\r\n".encode("latin-1")


def chunk(data: bytes, extension: str = "") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension.encode(), data)


# What a body contains: requests that no server may run.
smuggled = st.sampled_from(
    [
        head(f"DELETE {HERO}", []),
        head("POST /heroes/", [JSON, f"Content-Length: {len(SMUGGLED)}"]) + SMUGGLED,
        head("POST /heroes/", [JSON, "Transfer-Encoding: chunked"]) + chunk(SMUGGLED) + b"0\r\n\r\n",
    ]
)
garbage = st.builds(bytes.__add__, st.sampled_from([b"", b"\r\n", b"0\r\n\r\n", b"x=1\r\n\r\n"]), smuggled)

# Requests, and their statuses with any body that is not JSON.
TARGETS = {
    "GET /livez": 200,
    f"GET {HERO}": 200,
    f"HEAD {HERO}": 200,
    "GET /heroes/?name=nobody": 200,
    "HEAD /heroes/": 200,
    "GET /heroes/export?name=nobody": 200,
    "HEAD /heroes/export": 200,
    "GET /heroes/x": 422,
    "GET /nowhere": 404,
    "OPTIONS /heroes/": 204,
    "PUT /heroes/": 405,
    "TRACE /heroes/": 405,
    "PATCH /heroes/999999999": 422,
    "DELETE /heroes/999999999": 404,
    "POST /heroes/": 422,
    "POST /heroes/batch": 422,
}
starts = st.sampled_from([*TARGETS])
bodiless = st.sampled_from([start for start in TARGETS if not start.startswith(("POST", "PATCH"))])
extensions = st.sampled_from(["", ";a", ";a=b", ';a="b;c"', ";a=b;c=d"])
trailers = st.lists(st.sampled_from(["X-Trailer: a", "If-Match: x", "Idempotency-Key: a", "Host: other"]), max_size=3)
expects = st.sampled_from([[], ["Expect: 100-continue"]])
upgrades = st.sampled_from(["h2c", "websocket", "TLS/1.0", "h2c, websocket"])


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[list[str], bytes]:
    """Frame a body: its headers, and its bytes."""
    if draw(st.booleans()):
        return [f"Content-Length: {len(body)}"], body
    size = draw(st.integers(1, 40))
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    end = "".join(f"{trailer}\r\n" for trailer in draw(trailers))
    chunks = b"".join(chunk(piece, draw(extensions)) for piece in pieces)
    return ["Transfer-Encoding: chunked"], chunks + f"0\r\n{end}\r\n".encode()


@st.composite
def ordinary(draw: st.DrawFn) -> Message:
    """A request without a body."""
    start = draw(bodiless)
    return Message(start.split()[0], head(start, []), TARGETS[start])


@st.composite
def with_a_request_as_body(draw: st.DrawFn) -> Message:
    start = draw(starts)
    lines, body = draw(framed(draw(garbage)))
    return Message(start.split()[0], head(start, [JSON, *lines, *draw(expects)]) + body, TARGETS[start])


@st.composite
def creating(draw: st.DrawFn) -> Message:
    lines, body = draw(framed(PIPELINED))
    return Message("POST", head("POST /heroes/", [JSON, *lines, *draw(expects)]) + body, 200, creates=True)


# Framings that are refused, or that another server on the way could read in another way.
CONFLICTS = [
    ["Content-Length: {length}", "Content-Length: {length}"],
    ["Content-Length: 0", "Content-Length: {length}"],
    ["Content-Length: {length}", "Content-Length: 0"],
    ["Content-Length: {length}, {length}"],
    ["Content-Length: 0, {length}"],
    ["Content-Length: +{length}"],
    ["Content-Length: -{length}"],
    ["Content-Length: 0x{length}"],
    ["Content-Length: {length} 0"],
    ["Content-Length: 99999999999999999999"],
    ["Content-Length:"],
    ["Content-Length : {length}"],
    ["Content-Length: {length}", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Content-Length: {length}"],
    ["Transfer-Encoding: identity", "Content-Length: {length}"],
    ["Transfer-Encoding: chunked, identity"],
    ["Transfer-Encoding: identity"],
    ["Transfer-Encoding: xchunked"],
    ["Transfer-Encoding: \x0bchunked"],
    ["Transfer-Encoding : chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    ["X: a\r Transfer-Encoding: chunked"],
    ["X: a\rTransfer-Encoding: chunked"],
    ["X: \0", "Content-Length: {length}"],
    ["X y: a", "Content-Length: {length}"],
    [": a", "Content-Length: {length}"],
    ["Host: other", "Content-Length: {length}"],
    ["X-Long: " + "a" * 3 * MAX_HEAD, "Content-Length: {length}"],
    [*["X: a"] * MAX_HEAD, "Content-Length: {length}"],
]
BAD_CHUNKS = [
    b"g\r\n",
    b"-1\r\n",
    b"0x5\r\n",
    b"f" * 17 + b"\r\n",
    b"5\r\nabcdefg\r\n",
    b"\r\n",
    b"5 \r\n",
    b"5;\n\r\n",
]


@st.composite
def conflicting(draw: st.DrawFn) -> Message:
    """A request whose framing is refused, with a request after it or in it."""
    body = draw(garbage)
    lines = [line.format(length=len(body)) for line in draw(st.sampled_from(CONFLICTS))]
    return Message("", head(draw(starts), [JSON, *lines]) + body, None)


@st.composite
def with_bad_chunks(draw: st.DrawFn) -> Message:
    lines = [JSON, "Transfer-Encoding: chunked"]
    return Message("", head(draw(starts), lines) + draw(st.sampled_from(BAD_CHUNKS)) + draw(garbage), None)


@st.composite
def upgrading(draw: st.DrawFn) -> Message:
    """A request with a body, which its Upgrade would let the parser skip."""
    lines, body = draw(framed(draw(garbage)))
    return Message("", head(draw(starts), ["Connection: Upgrade", f"Upgrade: {draw(upgrades)}", *lines]) + body, None)


@st.composite
def closing(draw: st.DrawFn) -> Message:
    """A request that is the last of its connection, and a request after it."""
    start = draw(bodiless)
    data = draw(
        st.sampled_from(
            [
                head(start, LAST),
                head(start, [], "1.0"),
                head(start, [], "1.0", ""),
                head(start, [], host=""),
                head("CONNECT heroes:80", []),
            ]
        )
        | upgrades.map(lambda protocol: head(start, ["Connection: Upgrade", f"Upgrade: {protocol}"]))
    )
    return Message("", data + draw(garbage), None)


accepted = st.lists(ordinary() | with_a_request_as_body() | creating(), max_size=5)
LIVEZ = Message("GET", head("GET /livez", LAST), 200)
complete = accepted.map(lambda messages: [*messages, LIVEZ])
lasts = conflicting() | with_bad_chunks() | upgrading() | closing()
refused = st.builds(lambda messages, last: [*messages, last], accepted, lasts)
cuts = st.lists(st.integers(0, 2**16), max_size=9)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split bytes into packets: half of the cuts are behind the head of a request, in a body or not."""
    ends = [found.end() for found in re.finditer(rb"\r\n\r\n", data)]
    places = (ends[cut // 2 % len(ends)] if cut % 2 and ends else cut // 2 % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in pairwise(sorted({0, len(data), *places}))]


def exchange(service: Service, packets: list[bytes], *, half_close: bool = False) -> bytes:
    """Send packets on a connection, and read up to its end."""
    received = b""
    with connections(service.port, 1) as (connection,):
        connection.settimeout(DEADLINE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for packet in packets:
                connection.sendall(packet)
                time.sleep(0)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                received += data
        except OSError as error:
            if error.errno not in CLOSED:
                raise
    assert not re.search(rb"^HTTP/1\.1 5", received, re.MULTILINE)
    return received


class Stream(BytesIO):
    """What a connection has received, for the responses that are read from it one after the other."""

    def makefile(self, mode: str) -> "Stream":
        del mode
        return self

    def close(self) -> None:
        """Stay open for the next response."""


class Response(NamedTuple):
    status: int
    body: bytes


def responses(received: bytes, methods: list[str]) -> list[Response]:
    """Read the responses to requests with these methods: there is nothing else."""
    stream, found = Stream(received), []
    for method in methods:
        response = HTTPResponse(stream, method=method)  # type: ignore[arg-type]  # it only calls makefile
        response.begin()
        found.append(Response(response.status, response.read()))
    assert stream.read() == b""
    return found


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as `make run` starts it, with the hero that nothing may delete."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    url = databases.migrated()
    with running_service(url, tmp_path_factory.mktemp("service") / "log") as service:
        with connections(service.port, 1) as (connection,):
            send_post(connection, DEADPOND_JSON)
            assert json.loads(read_response(connection)[1])["id"] == 1
        yield service
    log = service.log.read_text()
    print(f"{log.count(' HTTP/1.')} requests on {request.param}")  # noqa: T201 - for `pytest -s`
    assert "Traceback" not in log
    assert fetch_value(url, "SELECT count(*) FROM hero WHERE name = 'smuggled'") == 0
    databases.drop(url)


def newest(service: Service) -> dict[int, str]:
    """Return the names of the newest heroes, by their ids, from a new connection."""
    with connections(service.port, 1) as (connection,):
        connection.sendall(request_head("GET /heroes/?sort=-id&limit=20") + head(f"GET {HERO}", LAST))
        listed, read = responses(b"".join(iter(lambda: connection.recv(65536), b"")), ["GET", "GET"])
    assert (listed.status, read.status) == (200, 200)
    return {row["id"]: row["name"] for row in json.loads(listed.body)}


@fuzzed(max(20, EXAMPLES))
@given(messages=complete, cuts=cuts)
def test_each_of_several_requests_runs_once_and_no_body_does(
    service: Service, messages: list[Message], cuts: list[int]
) -> None:
    before = newest(service)
    received = exchange(service, split(b"".join(message.data for message in messages), cuts))
    found = responses(received, [message.method for message in messages])
    assert [response.status for response in found] == [message.status for message in messages]
    created = [json.loads(response.body)["id"] for response in found if b'"name":"pipelined"' in response.body]
    assert len(created) == sum(message.creates for message in messages)
    after = newest(service)
    assert dict.fromkeys(created, "pipelined") == {key: after[key] for key in created}
    assert "smuggled" not in after.values()
    assert {key for key in after if key > max(before)} == {*created}
    assert len({*created}) == len(created)


@fuzzed(max(20, EXAMPLES))
@given(messages=refused, cuts=cuts)
def test_nothing_runs_after_a_request_that_is_refused_or_the_last(
    service: Service, messages: list[Message], cuts: list[int]
) -> None:
    exchange(service, split(b"".join(message.data for message in messages), cuts))
    assert "smuggled" not in newest(service).values()


@fuzzed(max(20, EXAMPLES))
@given(messages=complete | refused, end=st.integers(0, 2**16), cuts=cuts)
@pytest.mark.slow
def test_nothing_runs_of_a_body_that_is_cut_off(
    service: Service, messages: list[Message], end: int, cuts: list[int]
) -> None:
    data = b"".join(message.data for message in messages)
    exchange(service, split(data[: end % len(data)], cuts), half_close=True)
    assert "smuggled" not in newest(service).values()
