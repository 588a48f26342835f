"""Hostile requests get their expected responses, from the app on both databases, and over a socket."""

import asyncio
import sys
from contextlib import closing
from http.client import HTTPResponse

import httpx
import pytest
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND, DEADPOND_JSON
from tests.support.hostile_requests import CASES, JSON, Case, hero
from tests.support.raw_http import connections, read_response, send_post

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
async def test_no_depth_of_nesting_is_a_5xx(sqlite_url: URL, opening: str, closing: str) -> None:
    """Each depth around the one where Python's decoder gives up, so that no code behind the decoder gives up later."""
    limit = sys.getrecursionlimit()
    statuses = set()
    async with running(create_app(Settings(database_url=sqlite_url))) as client:
        for depth in [10, *range(limit - 150, limit + 10), 10 * limit, 50 * limit]:
            body = opening * depth + "1" + closing * depth
            response = await client.post("/heroes/", content=body, headers=JSON)
            statuses.add(response.status_code)
    assert statuses == {400, 422}


def to_bytes(case: Case) -> bytes:
    """Return the request as it is sent over a socket."""
    lines = [f"{case.method} {case.target} HTTP/1.1", "Host: heroes.test", "X-Request-ID: hostile"]
    lines += [f"{name}: {value}" for name, value in case.headers]
    lines += [f"Content-Length: {len(case.body)}"] if case.body or case.method in {"POST", "PATCH"} else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + case.body


def send_over_one_connection(port: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Create one hero, send every request, and return the status, the headers and the body of each response."""
    responses = []
    with connections(port, 1) as (connection,):
        send_post(connection, DEADPOND_JSON)
        assert read_response(connection)[0] == 200
        for case in CASES:
            connection.sendall(to_bytes(case))
            with closing(HTTPResponse(connection, method=case.method)) as response:
                response.begin()
                headers = {name.lower(): value for name, value in response.headers.items()}
                responses.append((response.status, headers, response.read()))
    return responses


async def test_every_request_gets_its_response_over_one_connection(sqlite_url: URL, subtests: pytest.Subtests) -> None:
    """No client library normalizes the requests, and the connection survives each of them."""
    async with listening(create_app(Settings(database_url=sqlite_url))) as port:
        responses = await asyncio.to_thread(send_over_one_connection, port)
    for case, (status, headers, body) in zip(CASES, responses, strict=True):
        with subtests.test(case.name):
            assert (status, body) in case.expected
            assert headers.pop("date")
            assert bool(headers.pop("allow", "")) == (status == 405)
            assert set(headers) & VALIDATORS <= ({"link"} if isinstance(case.response_body, list) else VALIDATORS)
            assert {name: value for name, value in headers.items() if name not in VALIDATORS} == {
                "server": "uvicorn",
                "content-length": str(len(body)),
                "content-type": "application/json",
                "x-request-id": "hostile",
                "x-content-type-options": "nosniff",
                "cache-control": "no-cache",
            } | ({"vary": "Accept"} if status >= 400 else {})
