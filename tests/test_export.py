"""The export: every hero, one to a line, however many there are and however slow they are read."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL, event
from sqlalchemy.engine import Engine

from app.heroes.lists import HeroQuery
from app.main import create_app
from app.pagination import CHUNK
from app.settings import Settings
from tests.conftest import running
from tests.migrating import execute
from tests.processes import PATIENCE
from tests.services import connections, head, launched

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
MANY = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE"
    " x < {}) SELECT 'Hero ' || x, CASE WHEN x % 4 > 0 THEN x % 90 END, 'x' FROM n"
)


@pytest.fixture
async def many(client: httpx.AsyncClient, url: URL) -> int:
    """More than two chunks of heroes."""
    del client
    number = CHUNK * 2 + 10
    await asyncio.to_thread(execute, url, MANY.format(number))
    return number


@pytest.mark.parametrize("number", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * 2])
async def test_it_has_every_hero_once_in_the_order_of_ids(client: httpx.AsyncClient, url: URL, number: int) -> None:
    if number:
        await asyncio.to_thread(execute, url, MANY.format(number))
    response = await client.get("/heroes/export")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/jsonl")
    lines = response.text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(1, number + 1))
    assert response.text.endswith("\n") == bool(number)
    if number:
        assert lines[0].encode() == (await client.get("/heroes/1")).content


async def test_it_has_the_filters_of_the_list(client: httpx.AsyncClient, many: int) -> None:
    for query in ("name=Hero 7", "min_age=80", "min_age=10&max_age=12", "name=Hero 7&min_age=8"):
        total = int((await client.get(f"/heroes/?count=exact&{query}")).headers["X-Total-Count"])
        assert len((await client.get(f"/heroes/export?{query}")).text.splitlines()) == total < many
    assert (await client.get("/heroes/export?min_age=x")).status_code == 422
    assert (await client.get("/heroes/export?sort=name&limit=1")).text.count("\n") == many


async def test_it_is_compressed_for_those_who_like_it(client: httpx.AsyncClient, many: int) -> None:
    plain = await client.get("/heroes/export", headers={"Accept-Encoding": "identity"})
    packed = await client.get("/heroes/export", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert packed.content == plain.content
    assert plain.text.count("\n") == many


async def test_chunks_leave_as_they_are_read_compressed_or_not(app: FastAPI, url: URL, many: int) -> None:
    del url
    for encoding in (b"identity", b"gzip"):
        chunks = [chunk async for chunk in sent(app, encoding)]
        assert len([chunk for chunk in chunks if chunk]) >= 3
        text = b"".join(chunks)
        assert (gzip.decompress(text) if encoding == b"gzip" else text).count(b"\n") == many


async def sent(app: FastAPI, encoding: bytes) -> AsyncIterator[bytes]:
    """What the app sends, message by message."""
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

    await app(SCOPE | {"headers": [(b"accept-encoding", encoding)]}, receive, send)  # type: ignore[arg-type]  # a message is a mapping of what it has
    for message in messages:
        yield message


async def test_head_asks_the_database_nothing(client: httpx.AsyncClient, many: int) -> None:
    assert many
    await client.get("/heroes/export")
    statements: list[str] = []

    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    event.listen(Engine, "before_cursor_execute", note)
    response = await client.head("/heroes/export")
    event.remove(Engine, "before_cursor_execute", note)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/jsonl")
    assert not statements


async def test_what_fails_at_the_beginning_has_its_status(client: httpx.AsyncClient, url: URL) -> None:
    await asyncio.to_thread(execute, url, "ALTER TABLE hero RENAME TO hidden")
    assert (await client.get("/heroes/export")).status_code == 500


@pytest.mark.slow
def test_what_fails_later_cuts_the_response(url: URL, tmp_path: Path) -> None:
    """Nobody takes a part for the whole."""
    execute(url, MANY.format(200_000))
    with launched(url, tmp_path / "log") as service, connections(service.port, 1) as (connection,):
        connection.settimeout(30)
        connection.sendall(head("GET /heroes/export"))
        beginning = connection.recv(1000)
        assert b"200 OK" in beginning
        execute(url, "ALTER TABLE hero RENAME TO hidden")
        rest = b""
        while chunk := connection.recv(1 << 20):
            rest += chunk
        assert not rest.endswith(b"0\r\n\r\n")


async def test_readers_that_stop_hold_no_connection(url: URL) -> None:
    """A hundred exports that nobody reads on, beside a pool of one."""
    await asyncio.to_thread(execute, url, MANY.format(CHUNK * 3))
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client:
        exports = [asyncio.create_task(stalled(app)) for _ in range(100)]
        await asyncio.sleep(0)
        for _ in range(20):
            assert (await client.get("/heroes/1")).status_code == 200
        assert (await client.get("/heroes/export")).text.count("\n") == CHUNK * 3
        for export in exports:
            export.cancel()
        await asyncio.gather(*exports, return_exceptions=True)
        assert app.state.sessions.reads.free == app.state.sessions.streams.free == 1


async def test_requests_and_exports_do_not_wait_for_each_other(url: URL) -> None:
    await asyncio.to_thread(execute, url, MANY.format(1))
    app = create_app(Settings(database_url=url, pool_size=1))
    async with running(app) as client, asyncio.timeout(PATIENCE):
        for name, path in (("streams", "/heroes/1"), ("reads", "/heroes/export")):
            pool = getattr(app.state.sessions, name)
            over = asyncio.Event()
            holding = asyncio.create_task(pool.lend(lambda _, over=over: over.wait()))
            await asyncio.sleep(0)
            assert pool.free == 0
            assert (await client.get(path)).status_code == 200
            over.set()
            await holding


async def test_exports_at_once_take_turns(url: URL) -> None:
    await asyncio.to_thread(execute, url, MANY.format(CHUNK * 3))
    async with running(create_app(Settings(database_url=url, pool_size=1))) as client:
        exports = await asyncio.gather(*(client.get("/heroes/export") for _ in range(20)))
        assert {export.text.count("\n") for export in exports} == {CHUNK * 3}


async def test_one_that_has_begun_waits_for_its_turn_where_others_are_refused(url: URL) -> None:
    await asyncio.to_thread(execute, url, MANY.format(CHUNK * 2))
    app = create_app(Settings(database_url=url, queue_size=0, queue_timeout=0.1))
    async with running(app) as client, asyncio.timeout(PATIENCE):
        streams = app.state.sessions.streams
        chunks = HeroQuery.listing.walk(streams, {})
        assert (await anext(chunks)).count("\n") == CHUNK
        over = asyncio.Event()
        holding = asyncio.create_task(streams.lend(lambda _: over.wait()))
        await asyncio.sleep(0)
        following = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0.3)
        refused = await client.get("/heroes/export")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        over.set()
        await holding
        assert (await following).count("\n") == CHUNK


async def stalled(app: FastAPI) -> None:
    """Take the first chunk, and no other."""
    never = asyncio.Event()

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    async def receive() -> dict[str, object]:
        await never.wait()
        return {}

    await app(SCOPE, receive, send)  # type: ignore[arg-type]  # a message is a mapping of what it has


async def test_a_reader_that_leaves_is_not_read_for_any_longer(app: FastAPI, url: URL) -> None:
    await asyncio.to_thread(execute, url, MANY.format(CHUNK * 50))
    begun = asyncio.Event()
    chunks = 0

    async def send(message: dict[str, object]) -> None:
        nonlocal chunks
        if message["type"] == "http.response.body":
            chunks += 1
            begun.set()

    async def receive() -> dict[str, object]:
        await begun.wait()
        return {"type": "http.disconnect"}

    async with running(app), asyncio.timeout(PATIENCE):
        await app(SCOPE, receive, send)  # type: ignore[arg-type]  # a message is a mapping of what it has
        assert 0 < chunks < 10
        while not app.state.sessions.streams.free:  # noqa: ASYNC110 - the read that has begun is done to its end
            await asyncio.sleep(0.01)
