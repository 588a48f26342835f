"""The corpus: every hostile request gets its answer, on both databases, whatever has sent it."""

import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse

import httpx
import pytest
from sqlalchemy import URL

from tests.corpus import CASES, Case, hero
from tests.processes import PATIENCE, free_port, server, spell

VALIDATORS = {"etag", "link", "location"}
FIRST_HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


async def test_every_request_gets_its_answer(client: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    assert (await client.post("/heroes/", json=FIRST_HERO)).json() == hero()
    for case in CASES:
        request = httpx.Request(case.method, "http://heroes.test", content=case.body, headers=dict(case.headers))
        request.url = request.url.copy_with(raw_path=case.target.encode())
        response = await client.send(request)
        with subtests.test(case.name):
            assert (response.status_code, response.content) == (case.status, case.expected)


@pytest.fixture
def port(url: URL) -> Iterator[int]:
    """The port of a server of its own, with the first hero."""
    port = free_port()
    command = ("uvicorn", "app.main:app", "--port", str(port), "--no-access-log")
    with server(*command, port=port, changes={"DATABASE_URL": spell(url)}) as client:
        assert client.post("/heroes/", json=FIRST_HERO).json() == hero()
        yield port


def written(case: Case) -> bytes:
    """Write the request as it goes over the wire."""
    lines = [f"{case.method} {case.target} HTTP/1.1", "Host: heroes.test", "X-Request-ID: corpus"]
    lines += [f"{name}: {value}" for name, value in case.headers]
    lines += [f"Content-Length: {len(case.body)}"] if case.body or case.method in {"POST", "PATCH"} else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + case.body


def test_every_request_gets_its_answer_over_one_raw_socket(port: int, subtests: pytest.Subtests) -> None:
    """No client library tidies them up, and after each the connection serves the next."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) as connection:
        for case in CASES:
            connection.sendall(written(case))
            with closing(HTTPResponse(connection, method=case.method)) as response:
                response.begin()
                body = response.read()
            with subtests.test(case.name):
                assert (response.status, body) == (case.status, case.expected)
                headers = {name.lower(): value for name, value in response.headers.items()}
                assert headers.pop("date")
                assert bool(headers.pop("allow", "")) == (case.status == 405)
                assert set(headers) & VALIDATORS <= ({"link"} if isinstance(case.answer, list) else VALIDATORS)
                assert {name: value for name, value in headers.items() if name not in VALIDATORS} == {
                    "server": "uvicorn",
                    "content-length": str(len(body)),
                    "content-type": "application/json",
                    "x-request-id": "corpus",
                } | ({"vary": "Accept"} if case.status >= 400 else {})
