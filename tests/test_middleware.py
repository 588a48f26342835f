"""Every request gets an id, HEAD is GET without the body, and an unhandled error is logged and answered once."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, ClassVar

import httpx
import pytest
from fastapi import APIRouter, Cookie, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import URL
from starlette.types import Message, Receive, Scope, Send

from app.heroes.models import HeroPublic
from app.main import create_app
from app.security import Caller, Token
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND

SECRET = DEADPOND["secret_name"]
PROBLEM = "application/problem+json"

router = APIRouter(prefix="/failing")


@router.get("/now")
async def fail_now() -> None:
    raise RuntimeError("No such row.")


@router.get("/with-a-cause")
async def fail_with_a_cause() -> None:
    raise RuntimeError("No such row.") from KeyError("a cause")


@router.get("/response", response_model=HeroPublic)
async def fail_to_respond() -> dict[str, str]:
    return {"secret_name": SECRET}


@router.get("/named/{name}")
async def fail_for_a_name(name: str) -> None:
    raise RuntimeError(f"No such row: {len(name)}.")


@router.get("/half-way")
async def fail_half_way() -> StreamingResponse:
    async def halves() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("No second half.")

    return StreamingResponse(halves())


@pytest.fixture
def url(sqlite_url: URL) -> URL:
    """A database of one kind: nothing here depends on it."""
    return sqlite_url


@pytest.fixture
def failing(app: FastAPI) -> FastAPI:
    """The app, with operations that fail."""
    app.include_router(router)
    return app


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


class TestRequestID:
    async def test_a_sane_id_of_the_client_is_returned(self, client: httpx.AsyncClient) -> None:
        for sane in ("1", "0123-abc", "a" * 128, "urn:uuid:1/2~3.4_5+6=7"):
            for path in ("/heroes/", "/heroes/1", "/nowhere", "/livez"):
                assert (await client.get(path, headers={"X-Request-ID": sane})).headers["X-Request-ID"] == sane

    async def test_any_other_id_is_replaced_by_a_new_one(self, client: httpx.AsyncClient) -> None:
        for odd in ("", " ", "a b", "a" * 129, 'a"b', "<script>", "a;b", "\x7f"):
            headers = {"X-Request-ID": odd}
            ids = {(await client.get("/livez", headers=headers)).headers["X-Request-ID"] for _ in range(2)}
            assert odd not in ids
            assert len(ids) == 2

    async def test_each_request_without_an_id_gets_its_own(self, client: httpx.AsyncClient) -> None:
        ids = {(await client.get("/livez")).headers["X-Request-ID"] for _ in range(20)}
        assert len(ids) == 20

    @pytest.mark.usefixtures("request_ids")
    async def test_a_line_that_follows_a_request_does_not_have_its_id(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        await client.get("/livez", headers={"X-Request-ID": "x"})
        logging.getLogger("later").warning("What follows is in the same task.")
        assert "request_id" not in vars(caplog.records[-1])


class TestPath:
    async def test_a_newline_at_its_end_is_not_another_spelling(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/", json=DEADPOND)
        for path in ("/heroes/", "/heroes", "/livez", "/docs", "/heroes/1/", "/"):
            status = (await client.get(f"{path}%0A")).status_code
            assert status in {404, 422}, path  # 422 where it is an id that is not valid

    async def test_a_post_with_a_newline_at_its_end_creates_nothing(self, client: httpx.AsyncClient) -> None:
        for path in ("/heroes/%0A", "/heroes/batch%0A", "/heroes/batch/%0A"):
            response = await client.post(path, json=DEADPOND, headers={"Idempotency-Key": "k"})
            assert response.status_code in {404, 405}
        assert (await client.get("/heroes/export%0A")).status_code == 422  # not a hero's id
        assert (await client.get("/heroes/")).json() == []


class TestCookies:
    async def test_a_handler_sees_those_without_a_backslash(self, app: FastAPI) -> None:
        @app.get("/cookies")
        async def read_cookies(request: Request, one: Annotated[str | None, Cookie()] = None) -> dict[str, object]:
            return {"cookies": request.cookies, "one": one, "x": request.headers["X-Other"]}

        async with running(app) as client:
            headers = [("Cookie", "one=1"), ("X-Other", "y\\2"), ("Cookie", 'two="\\2"')]
            expected = {"cookies": {"one": "1"}, "one": "1", "x": "y\\2"}
            assert (await client.get("/cookies", headers=headers)).json() == expected
            headers = [("X-Other", "y\\2"), ("Cookie", 'two="\\054"; one=1;three="\\""')]
            assert (await client.get("/cookies", headers=headers)).json() == expected


class TestHead:
    async def test_head_has_the_status_and_the_headers_of_get(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/", json=DEADPOND)
        client.headers["X-Request-ID"] = "x"
        heroes = ("/heroes/", "/heroes/1", "/heroes/9", "/heroes/x", "/heroes/export")
        for path in (*heroes, "/livez", "/readyz", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/"):
            got, head = await client.get(path), await client.head(path)
            assert (path, head.status_code, head.headers) == (path, got.status_code, got.headers)

    async def test_the_app_itself_leaves_the_body_out(self, app: FastAPI) -> None:
        """The client here would drop it, and so would uvicorn."""
        sent: list[Message] = []

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            async def record(message: Message) -> None:
                sent.append(message)
                await send(message)

            await app(scope, receive, record)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(recording), base_url="http://heroes.test") as client:
            for path in ("/livez", "/docs/swagger-ui.css"):  # the second is sent in parts
                assert (await client.head(path)).status_code == 200
        assert len(sent) > 4
        assert not any(message.get("body") for message in sent)


class TestHeaders:
    REQUESTS: ClassVar[list[tuple[str, str, int]]] = [
        ("GET", "/heroes/", 200),
        ("GET", "/heroes/1", 200),
        ("HEAD", "/heroes/1", 200),
        ("GET", "/heroes/export", 200),
        ("POST", "/heroes/", 200),
        ("GET", "/heroes/x", 422),
        ("GET", "/heroes/9", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/heroes/1", 405),
        ("OPTIONS", "/heroes/1", 204),
        ("GET", "/failing/now", 500),
        ("GET", "/livez", 200),
        ("GET", "/docs", 200),
        ("GET", "/", 307),
    ]

    async def test_every_response_is_of_its_content_type_and_asked_for_again(self, failing: FastAPI) -> None:
        async with running(failing) as client:
            await client.post("/heroes/", json=DEADPOND)
            for method, path, status in self.REQUESTS:
                response = await client.request(method, path, json=DEADPOND if method == "POST" else None)
                assert response.status_code == status
                assert response.headers.get_list("X-Content-Type-Options") == ["nosniff"]
                assert response.headers.get_list("Cache-Control") == ["no-cache"], path
            unchanged = await client.get("/heroes/1", headers={"If-None-Match": "*"})
            assert (unchanged.status_code, unchanged.headers["Cache-Control"]) == (304, "no-cache")

    async def test_with_tokens_no_cache_that_is_shared_stores_a_response(self, sqlite_url: URL) -> None:
        tokens = (Token(Caller("reader", frozenset({"read"})), sha256(b"x").digest()),)
        async with running(create_app(Settings(database_url=sqlite_url, tokens=tokens))) as client:
            for headers, status in (({}, 401), ({"Authorization": "Bearer x"}, 200)):
                response = await client.get("/heroes/", headers=headers)
                assert (response.status_code, response.headers["Cache-Control"]) == (status, "private, no-cache")

    async def test_a_response_keeps_its_own_cache_control(self, app: FastAPI) -> None:
        @app.get("/fixed")
        async def show() -> Response:
            return Response(headers={"Cache-Control": "max-age=3600"})

        async with running(app) as client:
            response = await client.get("/fixed")
        assert response.headers.get_list("Cache-Control") == ["max-age=3600"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


class TestUnhandledError:
    @pytest.mark.usefixtures("request_ids")
    @pytest.mark.parametrize(
        ("path", "logged"),
        [
            ("/failing/now", "RuntimeError: No such row."),
            ("/failing/with-a-cause", "RuntimeError: No such row.\n  caused by KeyError: 'a cause'"),
            ("/failing/response", "ResponseValidationError: response.name: Field required"),
            (f"/failing/named/{SECRET}", "RuntimeError: No such row: 11."),
        ],
    )
    async def test_it_is_500_in_both_forms_and_logged_once_with_its_message_and_traceback(
        self, failing: FastAPI, caplog: pytest.LogCaptureFixture, path: str, logged: str
    ) -> None:
        async with running(failing) as client:
            caplog.clear()
            plain = await client.get(path, headers={"X-Request-ID": "first"})
            problem = await client.get(path, headers={"X-Request-ID": "second", "Accept": PROBLEM})
        assert (plain.status_code, plain.json()) == (500, {"detail": "An unexpected error."})
        assert (problem.status_code, problem.json()["type"]) == (500, "urn:problem-type:unexpected")
        errors = [record for record in caplog.records if record.name != "app.access"]
        for response, request_id in [(plain, "first"), (problem, "second")]:
            assert response.headers["X-Request-ID"] == request_id
            (record,) = [record for record in errors if vars(record)["request_id"] == request_id]
            assert record.getMessage().startswith("GET /failing/")
            assert f": unhandled {logged}" in record.getMessage()
            assert "line " in record.getMessage()
        assert len(errors) == 2
        assert SECRET not in caplog.text
        assert "No such row" not in plain.text + problem.text

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
        assert caplog.text.count("RuntimeError: No such row.") == 2  # uvicorn does not log it again

    async def test_one_after_the_start_of_the_response_truncates_it(
        self, failing: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with listening(failing) as port, connected(port) as (reader, writer):
            writer.write(b"GET /failing/half-way HTTP/1.1\r\nHost: heroes.test\r\n\r\n")
            received = await reader.read()
        assert b"half" in received
        assert not received.endswith(b"0\r\n\r\n")
        assert caplog.text.count("RuntimeError: No second half.") == 1
