"""The access log: a line for each request, when its response has been sent."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND
from tests.support.locks import async_write_lock
from tests.support.polling import wait_until_async

SECRET = "tvqzxkwj"
FIELDS = ("client", "method", "route", "status")


@pytest.fixture
def url(sqlite_url: URL) -> URL:
    """A database of one kind: nothing here depends on it."""
    return sqlite_url


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.access")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """List the fields of the lines so far."""
    return [vars(record) for record in caplog.records if record.name == "app.access"]


async def test_every_request_has_a_line_with_its_method_its_route_and_its_status(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.post("/heroes/", json=DEADPOND)
    await client.post("/heroes", json={"name": SECRET})
    await client.get("/heroes/1/")
    await client.head("/heroes/1")
    await client.get(f"/heroes/{SECRET}?name={SECRET}")
    await client.get(f"/{SECRET}")
    await client.put("/heroes/")
    await client.get("/heroes/export")
    assert [tuple(line[name] for name in FIELDS[1:]) for line in lines(caplog)] == [
        ("POST", "/heroes/", 200),
        ("POST", "/heroes/", 422),
        ("GET", "/heroes/{hero_id}", 200),
        ("HEAD", "/heroes/{hero_id}", 200),
        ("GET", "/heroes/{hero_id}", 422),
        ("GET", None, 404),
        ("PUT", "/heroes/", 405),
        ("GET", "/heroes/export", 200),
    ]
    assert {line["client"] for line in lines(caplog)} == {"127.0.0.1"}
    assert all(0 < line["duration_ms"] < 60_000 for line in lines(caplog))
    assert SECRET not in caplog.text


async def test_the_message_has_the_fields_in_words(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await client.get("/heroes/1")
    (line,) = lines(caplog)
    duration, wait = line["duration_ms"], line["pool_wait_ms"]
    message = f"127.0.0.1 GET /heroes/{{hero_id}} 404 in {duration} ms, {wait} ms for a connection"
    assert line["message"] == message


async def test_the_wait_for_a_connection_is_none_if_one_is_idle(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await client.get("/heroes/1")
    first, second = lines(caplog)
    assert 0 < first["pool_wait_ms"] <= first["duration_ms"]  # it has opened one
    assert second["pool_wait_ms"] == 0


async def test_the_wait_of_a_request_that_gets_no_connection_in_time_is_counted(
    url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(database_url=url, lock_timeout=1, pool_size=1, queue_timeout=0.2))
    async with running(app) as client, async_write_lock(url):
        await asyncio.gather(*(client.post("/heroes/", json=DEADPOND) for _ in range(2)))
    refused, blocked = lines(caplog)
    assert (refused["status"], blocked["status"]) == (503, 503)
    assert 190 <= refused["pool_wait_ms"] <= refused["duration_ms"]
    assert blocked["duration_ms"] >= 900


async def test_an_unhandled_error_is_a_line_with_500(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/fail")
    async def fail() -> None:
        raise LookupError

    async with running(app) as client:
        await client.get("/fail")
    (line,) = lines(caplog)
    assert (line["route"], line["status"]) == ("/fail", 500)
    assert "is_complete" not in line


async def test_a_preflight_request_has_a_line(url: URL, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Origin": "https://heroes.example", "Access-Control-Request-Method": "PATCH"}
    async with running(create_app(Settings(database_url=url, cors_origins=("https://heroes.example",)))) as client:
        await client.options("/heroes/1", headers=headers)
    (line,) = lines(caplog)
    assert (line["method"], line["status"]) == ("OPTIONS", 200)


async def test_a_probe_that_succeeds_is_logged_at_debug_only(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    async with running(app) as client:
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert not lines(caplog)
        app.state.is_shutting_down = True
        assert (await client.get("/readyz")).status_code == 503
        assert [line["status"] for line in lines(caplog)] == [503]
        caplog.set_level(logging.DEBUG, "app.access")
        await client.get("/livez")
    assert [(line["levelname"], line["route"]) for line in lines(caplog)] == [("INFO", "/readyz"), ("DEBUG", "/livez")]


class TestStreams:
    @pytest.fixture
    def go_on(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    def streaming(self, app: FastAPI, go_on: asyncio.Event) -> FastAPI:
        @app.get("/halves/{end}")
        async def stream(end: str) -> StreamingResponse:
            async def halves() -> AsyncIterator[bytes]:
                yield b"half"
                await go_on.wait()
                if end == "error":
                    raise RuntimeError
                yield b"half"

            return StreamingResponse(halves())

        return app

    async def test_one_has_its_line_at_its_end(
        self, streaming: FastAPI, go_on: asyncio.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with (
            listening(streaming) as port,
            httpx.AsyncClient() as client,
            client.stream("GET", f"http://127.0.0.1:{port}/halves/end") as response,
        ):
            parts = response.aiter_bytes()
            assert await anext(parts) == b"half"
            assert not lines(caplog)
            go_on.set()
            assert [part async for part in parts] == [b"half"]
        (line,) = lines(caplog)
        assert (line["route"], line["status"]) == ("/halves/{end}", 200)
        assert "is_complete" not in line

    async def test_one_whose_client_leaves_is_incomplete(
        self, streaming: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def is_logged() -> bool:
            return bool(lines(caplog))

        async with listening(streaming) as port:
            async with (
                httpx.AsyncClient() as client,
                client.stream("GET", f"http://127.0.0.1:{port}/halves/end") as response,
            ):
                assert await anext(response.aiter_bytes()) == b"half"
            await wait_until_async(is_logged)
        (line,) = lines(caplog)
        assert (line["status"], line["is_complete"]) == (200, False)
        assert line["message"].endswith(" for a connection, incomplete")

    async def test_one_that_fails_half_way_is_incomplete(
        self, streaming: FastAPI, go_on: asyncio.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        go_on.set()
        async with listening(streaming) as port, httpx.AsyncClient() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"http://127.0.0.1:{port}/halves/error")
        (line,) = lines(caplog)
        assert (line["status"], line["is_complete"]) == (200, False)


async def test_a_request_that_is_cancelled_before_its_response_has_a_line_without_a_status(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    @app.get("/wait")
    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(app) as client:
        request = asyncio.create_task(client.get("/wait"))
        await started.wait()
        request.cancel()
        await asyncio.wait({request})
    (line,) = lines(caplog)
    assert (line["status"], line["is_complete"]) == (None, False)
    assert " GET /wait no status in " in line["message"]


@pytest.mark.parametrize(
    ("client_name", "logged"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8::1", "2001:db8::1"), ("x GET /heroes/ 200\x85 in 1 ms", None), ("", None)],
)
async def test_a_client_has_an_address_or_no_name(
    app: FastAPI, caplog: pytest.LogCaptureFixture, client_name: str, logged: str | None
) -> None:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=(client_name, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
            await client.get("/heroes/1")
    assert [line["client"] for line in lines(caplog)] == [logged]
    assert not client_name or logged or client_name not in caplog.text
