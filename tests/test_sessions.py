"""When a request takes its connection, when it commits, and when it gives the connection back."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError
from starlette.types import Message, Receive, Scope, Send

from tests.conftest import running

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}


class Journal:
    """An app that writes down what its pools, its transactions and its responses do, in order."""

    def __init__(self, app: FastAPI) -> None:
        """Wrap an app that is running."""
        self.app = app
        self.lines: list[str] = []
        database = app.state.database
        engines = {engine.sync_engine.pool: engine.sync_engine for engine in (database.reads, database.writes)}
        for engine in engines.values():
            for happening in ("checkout", "checkin", "begin", "commit", "rollback", "before_cursor_execute"):
                event.listen(engine, happening, self._note(happening))

    def _note(self, happening: str) -> Any:
        name = happening.removeprefix("before_cursor_")
        return lambda *_: self.lines.append(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does."""

        async def note_and_send(message: Message) -> None:
            self.lines.append(message["type"].removeprefix("http."))
            await send(message)

        await self.app(scope, receive, note_and_send)

    def client(self) -> httpx.AsyncClient:
        """Make a client of the app."""
        transport = httpx.ASGITransport(self, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://heroes.test")


async def test_a_write_is_committed_and_its_connection_is_back_before_the_response_starts(app: FastAPI) -> None:
    async with running(app), (journal := Journal(app)).client() as client:
        await client.post("/heroes/", json=HERO)
        journal.lines.clear()
        for method, path in [("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("DELETE", "/heroes/1")]:
            assert (await client.request(method, path, json=HERO)).status_code == 200
            lines = [line for line in journal.lines if line != "execute"]
            assert lines == ["checkout", "begin", "commit", "checkin", "response.start", "response.body"]
            journal.lines.clear()


async def test_a_read_commits_nothing_and_its_connection_is_back_before_the_response_starts(app: FastAPI) -> None:
    async with running(app), (journal := Journal(app)).client() as client:
        for path, status in [("/heroes/", 200), ("/heroes/1", 404)]:
            journal.lines.clear()
            assert (await client.get(path)).status_code == status
            assert journal.lines.count("execute") == 1
            assert "commit" not in journal.lines
            assert journal.lines.index("checkin") < journal.lines.index("response.start")


async def test_a_refused_write_is_rolled_back(app: FastAPI) -> None:
    async with running(app), (journal := Journal(app)).client() as client:
        await client.get("/heroes/")
        journal.lines.clear()
        assert (await client.delete("/heroes/1")).status_code == 404
        assert "commit" not in journal.lines
        assert "rollback" in journal.lines
        assert journal.lines.index("checkin") < journal.lines.index("response.start")


@pytest.mark.parametrize(("method", "path"), [("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("GET", "/heroes/x")])
async def test_an_invalid_request_takes_no_connection(app: FastAPI, method: str, path: str) -> None:
    async with running(app), (journal := Journal(app)).client() as client:
        assert (await client.request(method, path, json={"name": 1})).status_code == 422
        assert "checkout" not in journal.lines


async def test_a_commit_that_fails_is_no_success(app: FastAPI) -> None:
    async with running(app) as client:
        assert (await client.get("/heroes/")).json() == []

        def fail(_: Connection) -> None:
            raise OperationalError("COMMIT", None, Exception("the disk is full"))

        writes = app.state.database.writes.sync_engine
        event.listen(writes, "commit", fail)
        response = await client.post("/heroes/", json=HERO)
        event.remove(writes, "commit", fail)
        assert response.status_code >= 500
        assert (await client.get("/heroes/")).json() == []
        assert (await client.post("/heroes/", json=HERO)).status_code == 200
