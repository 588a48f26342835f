"""Hostile requests get their expected responses, from the app and over a socket, on both databases."""

import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse

import httpx
import pytest
from sqlalchemy import URL

from tests.support.heroes import DEADPOND
from tests.support.hostile_requests import CASES, JSON, Case, hero
from tests.support.processes import TIMEOUT, free_port, render_url, server

VALIDATORS = {"etag", "link", "location"}


def test_the_names_of_the_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


async def test_every_request_gets_its_response(client: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    assert (await client.post("/heroes/", json=DEADPOND)).json() == hero()
    for case in CASES:
        request = httpx.Request(case.method, "http://heroes.test", content=case.body, headers=dict(case.headers))
        request.url = request.url.copy_with(raw_path=case.target.encode())
        response = await client.send(request)
        with subtests.test(case.name):
            assert (response.status_code, response.content) in case.expected


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"x":', "}")])
async def test_no_depth_of_nesting_is_a_5xx(client: httpx.AsyncClient, opening: str, closing: str) -> None:
    """Each depth around the one where Python's decoder gives up, so that no code behind the decoder gives up later."""
    limit = sys.getrecursionlimit()
    statuses = set()
    for depth in [10, *range(limit - 150, limit + 10), 10 * limit, 50 * limit]:
        body = opening * depth + "1" + closing * depth
        response = await client.post("/heroes/", content=body, headers=JSON)
        statuses.add(response.status_code)
    assert statuses == {400, 422}


@pytest.fixture
def port(sqlite_url: URL) -> Iterator[int]:
    """The port of a server with one hero."""
    port = free_port()
    command = ("uvicorn", "app.main:app", "--port", str(port), "--no-access-log")
    with server(*command, port=port, changes={"DATABASE_URL": render_url(sqlite_url)}) as client:
        assert client.post("/heroes/", json=DEADPOND).json() == hero()
        yield port


def to_bytes(case: Case) -> bytes:
    """Return the request as it is sent over a socket."""
    lines = [f"{case.method} {case.target} HTTP/1.1", "Host: heroes.test", "X-Request-ID: hostile"]
    lines += [f"{name}: {value}" for name, value in case.headers]
    lines += [f"Content-Length: {len(case.body)}"] if case.body or case.method in {"POST", "PATCH"} else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + case.body


def test_every_request_gets_its_response_over_one_connection(port: int, subtests: pytest.Subtests) -> None:
    """No client library normalizes the requests, and the connection survives each of them."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)) as connection:
        for case in CASES:
            connection.sendall(to_bytes(case))
            with closing(HTTPResponse(connection, method=case.method)) as response:
                response.begin()
                body = response.read()
            with subtests.test(case.name):
                assert (response.status, body) in case.expected
                headers = {name.lower(): value for name, value in response.headers.items()}
                assert headers.pop("date")
                assert bool(headers.pop("allow", "")) == (response.status == 405)
                assert set(headers) & VALIDATORS <= ({"link"} if isinstance(case.response_body, list) else VALIDATORS)
                assert {name: value for name, value in headers.items() if name not in VALIDATORS} == {
                    "server": "uvicorn",
                    "content-length": str(len(body)),
                    "content-type": "application/json",
                    "x-request-id": "hostile",
                    "x-content-type-options": "nosniff",
                    "cache-control": "no-cache",
                } | ({"vary": "Accept"} if response.status >= 400 else {})
