"""What the client and the log are told when a request can't be answered."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from app.errors import PROBLEMS
from app.heroes.models import HeroPublic
from app.http import Router
from tests.conftest import running
from tests.processes import ROOT, free_port

SECRET = "Dive Wilson"
PROBLEM = "application/problem+json"
DOCUMENTED = (ROOT / "docs/errors.md").read_text()

router = Router(prefix="/failing")


@router.get("/now")
async def fail_now() -> None:
    raise RuntimeError(SECRET)


@router.get("/with-a-cause")
async def fail_with_a_cause() -> None:
    raise RuntimeError(SECRET) from KeyError(SECRET)


@router.get("/response", response_model=HeroPublic)
async def fail_to_respond() -> dict[str, str]:
    return {"secret_name": SECRET}


@router.get("/named/{name}")
async def fail_with_a_name(name: str) -> None:
    raise RuntimeError(name)


@router.get("/half-way")
async def fail_half_way() -> StreamingResponse:
    async def halves() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError(SECRET)

    return StreamingResponse(halves())


@router.get("/teapot")
async def fail_oddly() -> None:
    raise HTTPException(418)


@pytest.fixture
def failing(app: FastAPI) -> FastAPI:
    """The app, with operations that fail."""
    app.include_router(router)
    return app


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[int]:
    """Serve the app on a port, in this process, so that its log can be read."""
    server = uvicorn.Server(uvicorn.Config(app, port=(port := free_port()), log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await serving


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


class TestShape:
    @pytest.mark.parametrize(
        ("request_line", "body", "status", "detail"),
        [
            ("POST /heroes/", "{", 400, "The body is not JSON."),
            ("GET /heroes/1", "", 404, "Hero not found"),
            ("GET /nowhere/", "", 404, "Not Found"),
            ("PUT /heroes/1", "", 405, "Method Not Allowed"),
            ("POST /heroes/", '{"name":""}', 422, "String should have at least 1 character; Field required"),
        ],
    )
    async def test_an_error_has_two_forms(
        self, client: httpx.AsyncClient, request_line: str, body: str, status: int, detail: str
    ) -> None:
        method, path = request_line.split()
        headers = {"Content-Type": "application/json"}
        plain = await client.request(method, path, content=body, headers=headers)
        problem = await client.request(method, path, content=body, headers=headers | {"Accept": PROBLEM})
        assert plain.status_code == problem.status_code == status
        assert plain.headers["Vary"] == problem.headers["Vary"] == "Accept"
        assert plain.headers["Content-Type"] == "application/json"
        assert problem.headers["Content-Type"] == PROBLEM
        kind, title = PROBLEMS[status]
        members: dict[str, Any] = {"type": f"urn:problem-type:{kind}", "title": title, "status": status}
        if status == 422:
            members |= {"errors": plain.json()["detail"]}
        else:
            assert plain.json() == {"detail": detail}
        assert problem.json() == members | {"detail": detail}

    async def test_what_is_not_valid_is_told_without_its_value(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json={"name": ["Dive Wilson"], "secret_name": 5, "age": "Dive Wilson"})
        for error in response.json()["detail"]:
            assert error.keys() == {"type", "loc", "msg"}
        assert "Dive" not in response.text

    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [
            ("application/problem+json", PROBLEM),
            ("APPLICATION/PROBLEM+JSON", PROBLEM),
            ("application/problem+json; charset=utf-8", PROBLEM),
            ("application/json, application/problem+json", PROBLEM),
            ("application/json;q=0.5, application/problem+json;q=0.5", PROBLEM),
            ("text/html, application/problem+json;q=0.1", PROBLEM),
            ("application/problem+json, */*", PROBLEM),
            ("application/json;q=0, */*, application/problem+json;q=0.1", PROBLEM),
            ("application/json, application/problem+json;q=0.9", "application/json"),
            ("*/*, application/problem+json;q=0.9", "application/json"),
            ("application/*;q=0.8, application/problem+json;q=0.7", "application/json"),
            ("application/*;q=0.5, */*, application/problem+json;q=0.7", PROBLEM),
            ("application/problem+json;q=0", "application/json"),
            ("application/problem+json;q=-1", "application/json"),
            ("application/problem+json;q=0.0001", "application/json"),
            ("application/problem+json;q=nan", "application/json"),
            ("application/json;q=x, application/problem+json;q=0.1", PROBLEM),
            ("text/html, " * 99 + PROBLEM, "application/json"),
            ("application/problem+json;q=0.000", "application/json"),
            ("*/*", "application/json"),
            ("application/*", "application/json"),
            ("application/problem+xml", "application/json"),
            ("text/html", "application/json"),
            ("", "application/json"),
            (";;q=,,", "application/json"),
        ],
    )
    async def test_the_form_is_the_one_that_the_client_asks_for(
        self, client: httpx.AsyncClient, accept: str, content_type: str
    ) -> None:
        response = await client.get("/heroes/1", headers={"Accept": accept})
        assert (response.status_code, response.headers["Content-Type"]) == (404, content_type)

    async def test_accept_may_come_in_several_headers(self, client: httpx.AsyncClient) -> None:
        headers = [("Accept", "application/json;q=0.1"), ("Accept", PROBLEM)]
        assert (await client.get("/heroes/1", headers=headers)).headers["Content-Type"] == PROBLEM

    @pytest.mark.parametrize(
        "path", ["/heroes", "/heroes/", "/heroes/1", "/heroes/1/", "/livez", "/readyz", "/", "/docs"]
    )
    async def test_a_405_lists_the_methods_that_are_answered(self, client: httpx.AsyncClient, path: str) -> None:
        allowed = (await client.request("TRACE", path)).headers["Allow"].split(", ")
        assert allowed
        for method in ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"):
            response = await client.request(method, path, json={})
            assert (response.status_code != 405) == (method in allowed)

    @pytest.mark.parametrize("status", PROBLEMS)
    def test_every_kind_is_documented(self, status: int) -> None:
        kind, title = PROBLEMS[status]
        assert f"| {status} | `urn:problem-type:{kind}` | {title} |" in DOCUMENTED

    async def test_an_error_of_no_kind_of_ours_is_about_blank(self, failing: FastAPI) -> None:
        async with running(failing) as client:
            problem = (await client.get("/failing/teapot", headers={"Accept": PROBLEM})).json()
        assert problem == {"type": "about:blank", "title": "I'm a Teapot", "status": 418, "detail": "I'm a Teapot"}


class TestUnexpected:
    @pytest.mark.parametrize(
        "path", ["/failing/now", "/failing/with-a-cause", "/failing/response", f"/failing/named/{SECRET}"]
    )
    async def test_it_is_answered_in_both_forms_and_logged_once_without_its_message(
        self, failing: FastAPI, caplog: pytest.LogCaptureFixture, path: str
    ) -> None:
        async with running(failing) as client:
            caplog.clear()
            plain = await client.get(path, headers={"X-Request-ID": "first"})
            problem = await client.get(path, headers={"X-Request-ID": "second", "Accept": PROBLEM})
        assert (plain.status_code, plain.json()) == (500, {"detail": "The service failed."})
        assert (problem.status_code, problem.json()["type"]) == (500, "urn:problem-type:unexpected")
        for response, request_id in [(plain, "first"), (problem, "second")]:
            assert response.headers["X-Request-ID"] == request_id
            (record,) = [record for record in caplog.records if request_id in record.getMessage()]
            assert record.getMessage().startswith("GET /failing/")
            assert "Error" in record.getMessage()
        assert len(caplog.records) == 2
        assert SECRET not in caplog.text
        assert SECRET not in plain.text + problem.text

    async def test_the_same_connection_serves_the_next_request(
        self, failing: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with listening(failing) as port, connected(port) as (reader, writer):
            for path, status in [("/failing/now", 500), ("/heroes/", 200), ("/failing/now", 500), ("/livez", 200)]:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: heroes.test\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith(f"HTTP/1.1 {status} ")
                length = re.search(r"content-length: (\d+)", head)
                assert length
                await reader.readexactly(int(length[1]))
        assert SECRET not in caplog.text

    async def test_a_response_that_fails_half_way_is_cut_so_that_the_client_sees_it(
        self, failing: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with listening(failing) as port, connected(port) as (reader, writer):
            writer.write(b"GET /failing/half-way HTTP/1.1\r\nHost: heroes.test\r\n\r\n")
            received = await reader.read()
        assert b"half" in received
        assert not received.endswith(b"0\r\n\r\n")
        assert SECRET not in caplog.text


class TestRequestID:
    @pytest.mark.parametrize("sane", ["1", "0123-abc", "a" * 128, "urn:uuid:1/2~3.4_5+6=7"])
    async def test_the_clients_own_is_returned(self, client: httpx.AsyncClient, sane: str) -> None:
        for path in ("/heroes/", "/heroes/1", "/nowhere", "/livez"):
            assert (await client.get(path, headers={"X-Request-ID": sane})).headers["X-Request-ID"] == sane

    @pytest.mark.parametrize("odd", ["", " ", "a b", "a" * 129, 'a"b', "<script>", "a;b", "\x7f"])
    async def test_another_is_made_for_one_that_is_not_sane(self, client: httpx.AsyncClient, odd: str) -> None:
        first = (await client.get("/heroes/", headers={"X-Request-ID": odd})).headers["X-Request-ID"]
        second = (await client.get("/heroes/", headers={"X-Request-ID": odd})).headers["X-Request-ID"]
        assert odd not in {first, second}
        assert len({first, second}) == 2
