"""Requests are refused on arrival while too many wait for a connection."""

import httpx
import pytest
from sqlalchemy import URL, text

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND_JSON

JSON = {"Content-Type": "application/json"}


async def assert_refused(client: httpx.AsyncClient, method: str, path: str, content: bytes = b"") -> None:
    response = await client.request(method, path, content=content, headers=JSON)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json() == {"detail": "Too many requests are waiting for a database connection."}


@pytest.mark.parametrize("content", [DEADPOND_JSON, b"nonsense", b"[" * 100_000], ids=["valid", "malformed", "deep"])
async def test_a_request_is_refused_before_its_body_is_decoded(url: URL, content: bytes) -> None:
    app = create_app(Settings(database_url=url, pool_size=1, queue_size=0))
    async with running(app) as client:
        async with app.state.sessionmaker() as session:
            await session.exec(text("SELECT 1"))
            await assert_refused(client, "POST", "/heroes/", content)
            await assert_refused(client, "PATCH", "/heroes/1", content)
            assert (await client.get("/livez")).status_code == 200
            assert (await client.put("/heroes/1")).status_code == 405
        assert (await client.post("/heroes/", content=DEADPOND_JSON, headers=JSON)).status_code == 200


async def test_reads_on_sqlite_are_admitted_while_writers_wait(sqlite_url: URL) -> None:
    app = create_app(Settings(database_url=sqlite_url, pool_size=1, queue_size=0))
    async with running(app) as client:
        async with app.state.sessionmaker() as session:
            await session.exec(text("SELECT 1"))
            await assert_refused(client, "DELETE", "/heroes/1")
            assert (await client.get("/heroes/")).status_code == 200
        async with app.state.sessionmaker(read=True) as session, session.begin():
            await session.exec(text("SELECT 1"))
            await assert_refused(client, "GET", "/heroes/")
            assert (await client.delete("/heroes/1")).status_code == 404
