"""The export: all heroes as lines of JSON, streamed in chunks."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL, text

from app.heroes.queries import HeroQuery
from app.keyset import CHUNK
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.processes import TIMEOUT
from tests.support.raw_http import connections, request_head
from tests.support.service import running_service
from tests.support.sql import execute
from tests.support.statements import recorded_statements

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/heroes/export",
    "raw_path": b"/heroes/export",
    "query_string": b"",
    "root_path": "",
    "headers": [],
}
INSERT_HEROES = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE"
    " x < {}) SELECT 'Hero ' || x, CASE WHEN x % 4 > 0 THEN x % 90 END, 'x' FROM n"
)


@pytest.fixture
async def hero_count(client: httpx.AsyncClient, url: URL) -> int:
    """The number of stored heroes: more than two chunks."""
    del client
    number = CHUNK * 2 + 10
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(number))
    return number


async def test_the_export_has_every_hero_once_in_the_order_of_ids(client: httpx.AsyncClient, url: URL) -> None:
    stored = 0
    for number in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * 2):
        if added := number - stored:
            await asyncio.to_thread(execute, url, INSERT_HEROES.format(added))
        stored = number
        response = await client.get("/heroes/export")
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/jsonl")
        lines = response.text.splitlines()
        assert [json.loads(line)["id"] for line in lines] == list(range(1, number + 1))
        assert response.text.endswith("\n") == bool(number)
    assert lines[0].encode() == (await client.get("/heroes/1")).content


async def test_the_export_has_the_filters_of_the_list(client: httpx.AsyncClient, hero_count: int) -> None:
    for query in ("name=Hero 7", "min_age=80", "min_age=10&max_age=12", "name=Hero 7&min_age=8"):
        total = int((await client.get(f"/heroes/?count=exact&{query}")).headers["X-Total-Count"])
        assert len((await client.get(f"/heroes/export?{query}")).text.splitlines()) == total < hero_count
    assert (await client.get("/heroes/export?min_age=x")).status_code == 422
    assert (await client.get("/heroes/export?sort=name&limit=1")).text.count("\n") == hero_count


async def test_the_export_is_compressed_if_the_client_accepts_gzip(client: httpx.AsyncClient, hero_count: int) -> None:
    plain = await client.get("/heroes/export", headers={"Accept-Encoding": "identity"})
    packed = await client.get("/heroes/export", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert packed.content == plain.content
    assert plain.text.count("\n") == hero_count


async def test_chunks_are_sent_as_they_are_read_compressed_or_not(app: FastAPI, hero_count: int) -> None:
    for encoding in (b"identity", b"gzip"):
        async with running(app):
            chunks = [chunk async for chunk in exported_chunks(app, encoding)]
        assert len([chunk for chunk in chunks if chunk]) >= 3
        text = b"".join(chunks)
        assert (gzip.decompress(text) if encoding == b"gzip" else text).count(b"\n") == hero_count


async def exported_chunks(app: FastAPI, encoding: bytes) -> AsyncIterator[bytes]:
    """Yield the chunks of the export, one for each ASGI message."""
    messages: list[bytes] = []
    never = asyncio.Event()

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            assert isinstance(body, bytes)
            messages.append(body)

    async def receive() -> dict[str, object]:
        await never.wait()
        return {}

    await app(SCOPE | {"headers": [(b"accept-encoding", encoding)]}, receive, send)  # type: ignore[arg-type]  # ASGI messages are typed as plain mappings here
    for message in messages:
        yield message


async def test_head_runs_no_statement(client: httpx.AsyncClient, hero_count: int) -> None:
    assert hero_count
    await client.get("/heroes/export")
    with recorded_statements() as statements:
        response = await client.head("/heroes/export")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/jsonl")
    assert not statements


async def test_a_failure_before_the_first_chunk_is_500(client: httpx.AsyncClient, url: URL) -> None:
    await asyncio.to_thread(execute, url, "ALTER TABLE hero RENAME TO hidden")
    assert (await client.get("/heroes/export")).status_code == 500


@pytest.mark.slow
def test_a_failure_after_the_first_chunk_truncates_the_response(url: URL, tmp_path: Path) -> None:
    """The last chunk of the encoding is missing, so that the client notices."""
    execute(url, INSERT_HEROES.format(200_000))
    with running_service(url, tmp_path / "log") as service, connections(service.port, 1) as (connection,):
        connection.settimeout(30)
        connection.sendall(request_head("GET /heroes/export"))
        beginning = connection.recv(1000)
        assert b"200 OK" in beginning
        execute(url, "ALTER TABLE hero RENAME TO hidden")
        rest = b""
        while chunk := connection.recv(1 << 20):
            rest += chunk
        assert not rest.endswith(b"0\r\n\r\n")


@asynccontextmanager
async def held_stream_connection(app: FastAPI) -> AsyncIterator[None]:
    """Hold the connection that all exports share, as soon as it is free."""
    async with app.state.sessionmaker.streaming()() as session, session.begin():
        await session.exec(text("SELECT 1"))
        yield


async def test_stalled_exports_hold_no_connection(url: URL) -> None:
    """Thirty exports whose clients stop reading, with a pool of one connection."""
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(CHUNK * 3))
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client:
        exports = [asyncio.create_task(export_and_stall(app)) for _ in range(30)]
        await asyncio.sleep(0)
        for _ in range(20):
            assert (await client.get("/heroes/1")).status_code == 200
        assert (await client.get("/heroes/export")).text.count("\n") == CHUNK * 3
        for export in exports:
            export.cancel()
        await asyncio.gather(*exports, return_exceptions=True)
        assert app.state.sessionmaker.reads.free == 1
        async with asyncio.timeout(TIMEOUT), held_stream_connection(app):
            pass


async def test_requests_and_exports_do_not_wait_for_each_other(url: URL) -> None:
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(1))
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client, asyncio.timeout(TIMEOUT):
        async with held_stream_connection(app):
            assert (await client.get("/heroes/1")).status_code == 200
        reads = app.state.sessionmaker.reads
        connection = await reads.acquire()
        assert reads.free == 0
        assert (await client.get("/heroes/export")).status_code == 200
        reads.release(connection)


async def test_concurrent_exports_are_all_complete(url: URL) -> None:
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(CHUNK * 3))
    async with running(create_app(Settings(database_url=url, pool_size=1))) as client:
        exports = await asyncio.gather(*(client.get("/heroes/export") for _ in range(10)))
        assert {export.text.count("\n") for export in exports} == {CHUNK * 3}


async def test_a_started_export_waits_for_its_connection_past_the_queue_timeout(url: URL) -> None:
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(CHUNK * 2))
    app = create_app(Settings(database_url=url, queue_size=0, queue_timeout=0.1))
    async with running(app) as client, asyncio.timeout(TIMEOUT):
        chunks = HeroQuery.paginator.iter_chunks(app.state.sessionmaker.streaming(), {})
        assert (await anext(chunks)).count("\n") == CHUNK
        async with held_stream_connection(app):
            following = asyncio.ensure_future(anext(chunks))
            await asyncio.sleep(0.3)  # longer than queue_timeout
            refused = await client.get("/heroes/export")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert not following.done()
        assert (await following).count("\n") == CHUNK


async def export_and_stall(app: FastAPI) -> None:
    """Run an export whose client reads only the first chunk."""
    never = asyncio.Event()

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    async def receive() -> dict[str, object]:
        await never.wait()
        return {}

    await app(SCOPE, receive, send)  # type: ignore[arg-type]  # ASGI messages are typed as plain mappings here


async def test_an_export_stops_reading_when_its_client_disconnects(app: FastAPI, url: URL) -> None:
    await asyncio.to_thread(execute, url, INSERT_HEROES.format(CHUNK * 50))
    started = asyncio.Event()
    chunks = 0

    async def send(message: dict[str, object]) -> None:
        nonlocal chunks
        if message["type"] == "http.response.body":
            chunks += 1
            started.set()

    async def receive() -> dict[str, object]:
        await started.wait()
        return {"type": "http.disconnect"}

    async with running(app), asyncio.timeout(TIMEOUT):
        await app(SCOPE, receive, send)  # type: ignore[arg-type]  # ASGI messages are typed as plain mappings here
        assert 0 < chunks < 10
        async with held_stream_connection(app):  # once the read in progress is done
            pass
