"""Random requests: none gets a 5xx, and both databases give the same response.

`test_fuzz_state.py` has sequences of requests, `test_fuzz_sockets.py` the framing of requests. FUZZ_EXAMPLES sets how
many there are: a few in `make test`, many in `make fuzz`.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import URL

from tests.support.databases import Databases
from tests.support.fuzzing import EXAMPLES, SEED, fuzzed
from tests.support.heroes import DEADPOND
from tests.support.processes import TIMEOUT, run
from tests.support.service import running_service

FRAMING = {"connection", "content-length", "expect", "host", "transfer-encoding", "upgrade", "x-request-id"}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs", "Cc"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
fields = st.sampled_from(["name", "age", "secret_name", "id"]) | st.text()
heroes = st.fixed_dictionaries({"name": st.text(min_size=1), "secret_name": st.text(min_size=1)})
changed_heroes = st.builds(lambda hero, changes: hero | changes, heroes, st.dictionaries(fields, values))
documents = (changed_heroes | values).map(lambda value: json.dumps(value).encode())
cut_documents = st.builds(
    lambda document, start, end: document[start:-end], documents, st.integers(0, 9), st.integers(1, 9)
)
bodies = documents | cut_documents | st.binary() | st.text().map(str.encode)
path_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)
percents = st.binary(max_size=20).map(lambda garbage: "".join(f"%{byte:02x}" for byte in garbage))
segments = path_text | percents | st.integers().map(str) | st.just("1")
targets = st.builds(
    "{}{}".format, st.sampled_from(["/heroes/", "/heroes", "/", "/heroes/?limit=", "/heroes/?"]), segments
)
header_names = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz-_!#$%&'*+.^`|~0123456789"), min_size=1, max_size=20)
header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60)
known_names = st.sampled_from(["accept", "content-type", "content-encoding", "cookie", "origin", "range", "te", "via"])
known_values = st.sampled_from(
    ["application/json", "application/problem+json;q=0.5", "*/*", "application/json; charset=\xff", "text/plain", ""]
)
header_lists = st.lists(
    st.tuples(known_names | header_names, known_values | header_values).filter(lambda pair: pair[0] not in FRAMING)
)


def write(method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: heroes.test", "Connection: close", "X-Request-ID: fuzz"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


requests = st.builds(write, st.sampled_from(["GET", "POST", "PATCH", "DELETE", "PUT"]), targets, header_lists, bodies)
written_heroes = bodies.map(lambda body: write("POST", "/heroes/", [("Content-Type", "application/json")], body))
changes = bodies.map(lambda body: write("PATCH", "/heroes/1", [("Content-Type", "application/json")], body))


@pytest.fixture(scope="module")
def ports(
    sqlite_databases: Databases, postgres_databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, int]]:
    """The ports of two services with the same hero, one on each database."""
    urls = [sqlite_databases.migrated(), postgres_databases.migrated()]
    log = tmp_path_factory.mktemp("services") / "log"
    with ExitStack() as stack:
        ports = [stack.enter_context(running_service(url, log)).port for url in urls]
        for port in ports:
            assert httpx.post(f"http://127.0.0.1:{port}/heroes/", json=DEADPOND).json()["id"] == 1
        yield ports[0], ports[1]
    postgres_databases.drop(urls[1])
    assert "Traceback" not in log.read_text()


def send(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read the response: its status, its headers without Date, and its body."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)) as connection:
        connection.sendall(request)
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.headers.items() if name.lower() != "date"}
            return response.status, headers, response.read()


def check(ports: tuple[int, int], request: bytes) -> None:
    on_sqlite, on_postgres = (send(port, request) for port in ports)
    assert on_sqlite == on_postgres
    status, headers, body = on_sqlite
    assert status < 500
    if status >= 400 and headers["content-type"] == "application/json":
        assert json.loads(body).keys() == {"detail"}


@pytest.mark.slow
@fuzzed(10 * EXAMPLES)
@given(request=requests)
def test_any_request_gets_the_same_response_on_both_databases(ports: tuple[int, int], request: bytes) -> None:
    check(ports, request)


@pytest.mark.slow
@fuzzed(10 * EXAMPLES)
@given(request=written_heroes | changes)
def test_any_body_gets_the_same_response_on_both_databases(ports: tuple[int, int], request: bytes) -> None:
    check(ports, request)


@pytest.mark.slow
@fuzzed(5 * EXAMPLES)
@given(request=st.binary())
@example(request=b"\0" * 70_000)
def test_any_bytes_get_400_or_a_closed_connection(ports: tuple[int, int], request: bytes) -> None:
    for port in ports:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            response = connection.recv(100)
            assert response == b"" or response.startswith(b"HTTP/1.1 400 ")


@pytest.mark.slow
def test_responses_conform_to_the_schema(url: URL, tmp_path: Path) -> None:
    """Run all checks of Schemathesis, including its stateful ones."""
    with running_service(url, tmp_path / "log") as service:
        seed = [] if SEED == "random" else ["--seed", SEED]
        options = ["--checks", "all", "--max-examples", str(max(10, EXAMPLES // 5)), "--no-color", *seed]
        check = ("schemathesis", "--config-file", "tests/schemathesis.toml", "run")
        result = run(*check, f"http://127.0.0.1:{service.port}/openapi.json", *options, changes={}, timeout=3600)
    print(result.stdout)  # noqa: T201 - the number of requests, shown by `pytest -s`
    assert result.returncode == 0, result.stdout
