"""A streamed response: sent chunk by chunk, truncated by an error, and without a body for HEAD."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.types import Message

from app.middleware import RequestMiddleware
from app.streaming import JSONLinesResponse

LINES = [f'{{"id":{number}}}\n' * 100 for number in range(3)]


class Source:
    """Chunks of lines, and how many of them were read. At `fails_at`, reading raises an error."""

    def __init__(self, chunks: list[str], fails_at: int | None = None) -> None:
        self.chunks = chunks
        self.fails_at = fails_at
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[str]:
        for number, chunk in enumerate(self.chunks):
            if number == self.fails_at:
                raise HTTPException(503)
            self.read += 1
            yield chunk


def app_that_streams(source: Source) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestMiddleware)

    @app.get("/lines")
    async def stream_lines(request: Request) -> Response:
        return await JSONLinesResponse.start(request, aiter(source))

    return app


async def request(source: Source, method: str = "GET", encoding: str = "identity") -> httpx.Response:
    transport = httpx.ASGITransport(app_that_streams(source))
    async with httpx.AsyncClient(transport=transport, base_url="http://rows.test") as client:
        return await client.request(method, "/lines", headers={"Accept-Encoding": encoding})


async def messages_of(source: Source, encoding: str = "identity") -> list[Message]:
    """Return the ASGI messages of a response, up to an error if there is one."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(dict(message))

    async def receive() -> Message:
        return {"type": "http.request"}

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": "/lines",
        "query_string": b"",
        "headers": [(b"accept-encoding", encoding.encode())],
    }
    await app_that_streams(source)(scope, receive, send)
    return messages


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("chunks", [LINES, LINES[:1], [""], []], ids=["several", "one", "blank", "none"])
async def test_the_body_is_all_chunks(chunks: list[str], encoding: str) -> None:
    response = await request(Source(chunks), encoding=encoding)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/jsonl")
    assert response.text == "".join(chunks)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_each_chunk_is_a_message_that_can_be_decoded_when_it_arrives(encoding: str) -> None:
    bodies = [message["body"] for message in await messages_of(Source(LINES), encoding) if message.get("body")]
    assert len(bodies) >= len(LINES)
    assert (gzip.decompress if encoding == "gzip" else bytes)(b"".join(bodies)).decode() == "".join(LINES)


@pytest.mark.parametrize(
    "header", ["gzip", "GZIP", "br, gzip", "gzip;q=0.1", "br;q=1, gzip ; q=0.5", "*", "br, *", "identity;q=0, *;q=0.1"]
)
async def test_it_is_compressed_where_gzip_is_accepted(header: str) -> None:
    response = await request(Source(LINES), encoding=header)
    assert (response.headers["Content-Encoding"], response.headers["Vary"]) == ("gzip", "Accept-Encoding")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "br",
        "gzip;q=0",
        "gzip; q=0.000",
        "gzip ; Q = 0",
        "br, notgzip",
        "gzipped",
        "gzip;q=0, *",
        "*;q=0",
        "br, gzip;q=0",
    ],
)
async def test_it_is_not_compressed_where_gzip_is_not_accepted(header: str) -> None:
    response = await request(Source(LINES), encoding=header)
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept-Encoding"
    assert response.text == "".join(LINES)


async def test_an_error_in_the_first_chunk_is_an_error_response() -> None:
    assert (await request(Source(LINES, fails_at=0))).status_code == 503


async def test_an_error_in_a_later_chunk_truncates_the_response() -> None:
    messages = await messages_of(Source(LINES, fails_at=2))
    assert messages[0]["status"] == 200
    assert messages[-1]["more_body"]


async def test_head_reads_no_chunk_and_has_the_headers_of_get() -> None:
    source = Source(LINES)
    head = await request(source, "HEAD")
    assert (source.read, head.content) == (0, b"")
    got = await request(source)
    ids = {"x-request-id"}
    assert {name: value for name, value in head.headers.items() if name not in ids} == {
        name: value for name, value in got.headers.items() if name not in ids
    }
