"""Idempotency: what is sent twice with one key is done once, and answered twice."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request, Response
from sqlalchemy import URL, event, text
from sqlalchemy.engine import Engine

from app.http import Router
from app.idempotency import LIFETIME, SWEEP, Answer, IdempotencyKey, once
from app.main import create_app
from app.sessions import SessionDep
from app.settings import Settings
from tests.conftest import running
from tests.locks import locked
from tests.migrating import execute, on
from tests.processes import free_port, server, spell

HERO = {"name": "Deadpond", "age": 30, "secret_name": "Dive Wilson"}
BATCH = [HERO, {"name": "Rusty-Man", "secret_name": "Tommy Sharp"}]
KEYS = text("SELECT scope, key, fingerprint, expires_at, answer FROM idempotency_key ORDER BY key")
PATHS: list[tuple[str, Any]] = [("/heroes/", HERO), ("/heroes/batch", BATCH)]


async def post(client: httpx.AsyncClient, path: str, body: Any, key: str) -> httpx.Response:
    return await client.post(path, json=body, headers={"Idempotency-Key": key})


async def count(client: httpx.AsyncClient) -> int:
    return int((await client.get("/heroes/?count=exact&limit=0")).headers["X-Total-Count"])


def answer(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """All of a response that does not differ each time."""
    headers = {name: value for name, value in response.headers.items() if name not in {"x-request-id", "date"}}
    return response.status_code, response.content, headers


@pytest.mark.parametrize(("path", "body"), PATHS)
class TestReplay:
    async def test_the_second_answer_is_the_first(self, client: httpx.AsyncClient, path: str, body: Any) -> None:
        first = await post(client, path, body, "k")
        assert first.status_code == 200
        made = await count(client)
        assert answer(await post(client, path, body, "k")) == answer(first)
        assert answer(await post(client, path.rstrip("/"), body, '"k"')) == answer(first)
        assert await count(client) == made

    async def test_it_is_the_same_when_the_hero_has_changed_or_is_gone(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        await client.patch("/heroes/1", json={"age": 1})
        assert answer(await post(client, path, body, "k")) == answer(first)
        await client.delete("/heroes/1")
        assert answer(await post(client, path, body, "k")) == answer(first)

    async def test_another_key_is_another_request(self, client: httpx.AsyncClient, path: str, body: Any) -> None:
        first, second = await post(client, path, body, "k"), await post(client, path, body, "K")
        assert first.content != second.content

    async def test_another_body_is_refused_and_changes_nothing(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        made = await count(client)
        other = json.loads(json.dumps(body).replace("Dive Wilson", "Wade Wilson"))
        refused = await post(client, path, other, "k")
        assert refused.status_code == 422
        assert refused.json() == {
            "detail": [
                {
                    "type": "idempotency_key_reused",
                    "loc": ["header", "idempotency-key"],
                    "msg": "This key was sent with another body: take a new one for a new request",
                }
            ]
        }
        assert await count(client) == made
        assert answer(await post(client, path, body, "k")) == answer(first)

    async def test_fifty_at_once_are_one(self, url: URL, path: str, body: Any) -> None:
        async with running(create_app(Settings(database_url=url))) as client:
            answers = await asyncio.gather(*(post(client, path, body, "k") for _ in range(50)))
            assert answers[0].status_code == 200
            assert all(answer(other) == answer(answers[0]) for other in answers)
            assert await count(client) == (1 if path == "/heroes/" else 2)


class TestScope:
    async def test_the_same_key_for_another_path_is_another_request(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, "/heroes/", HERO, "k")).json()["id"] == 1
        assert [hero["id"] for hero in (await post(client, "/heroes/batch", BATCH, "k")).json()] == [2, 3]

    async def test_so_it_is_for_another_row(self, url: URL) -> None:
        router = Router(prefix="/teams")

        @router.post("/{team}/members")
        async def add_member(team: int, request: Request, session: SessionDep, key: IdempotencyKey) -> Response:
            async def add() -> Answer:
                return Answer(str(team))

            return (await once(session, request, key, None, add)).response()

        app = create_app(Settings(database_url=url))
        app.router.routes += router.routes
        async with running(app) as client:
            for team in (1, 2):
                for path in (f"/teams/{team}/members", f"/teams/{team}/members/"):
                    assert (await client.post(path, headers={"key": "k"})).json() == team

    async def test_only_what_is_done_is_kept(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, "/heroes/", {**HERO, "age": -1}, "k")).status_code == 422
        assert (await post(client, "/heroes/", HERO, "k")).status_code == 200

    async def test_a_body_is_what_is_understood_of_it(self, client: httpx.AsyncClient) -> None:
        first = await post(client, "/heroes/", HERO, "k")
        second = await client.post(
            "/heroes/",
            content=b' {"secret_name":"Dive Wilson", "age": 30.0, "name":"Deadpond", "power": "x"}',
            headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        )
        assert second.content == first.content


class TestKey:
    @pytest.mark.parametrize("key", ["k", '"k"', "~", "!", '"a"b"', "x" * 255, f'"{"x" * 255}"', "a,b", '""'])
    async def test_it_is_any_visible_text(self, client: httpx.AsyncClient, key: str) -> None:
        assert (await post(client, "/heroes/", HERO, key)).status_code == 200

    @pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, f'"{"x" * 256}"', "\t", "a\x7fb", "é"])
    async def test_all_else_is_refused(self, client: httpx.AsyncClient, key: str) -> None:
        response = await client.post(
            "/heroes/", json=HERO, headers=[(b"Idempotency-Key", key.encode("latin-1")), (b"X-Other", b"x")]
        )
        assert response.status_code == 422, response.text
        assert response.json()["detail"][0]["loc"] == ["header", "idempotency-key"]
        assert await count(client) == 0


class TestStorage:
    async def test_it_has_what_a_replay_needs_and_no_secret(self, client: httpx.AsyncClient, url: URL) -> None:
        await post(client, "/heroes/", HERO, "k")
        (row,) = await asyncio.to_thread(on, url, lambda connection: connection.execute(KEYS).all())
        assert (row.scope, row.key) == ("POST /heroes", "k")
        assert "Dive" not in str(row)
        assert json.loads(row.answer)[0] == '{"name":"Deadpond","age":30,"id":1}'

    async def test_it_is_forgotten_after_a_day_and_the_key_is_new_again(
        self, client: httpx.AsyncClient, url: URL
    ) -> None:
        assert timedelta(hours=24) == LIFETIME
        await post(client, "/heroes/", HERO, "k")
        past = (datetime.now(UTC) - timedelta(seconds=1)).replace(tzinfo=None).isoformat(" ")
        await asyncio.to_thread(execute, url, f"UPDATE idempotency_key SET expires_at = '{past}'")
        assert (await post(client, "/heroes/", {**HERO, "age": 99}, "k")).json()["id"] == 2
        assert (await post(client, "/heroes/", {**HERO, "age": 99}, "k")).json()["id"] == 2

    async def test_each_new_key_takes_some_that_have_expired_with_it(self, client: httpx.AsyncClient, url: URL) -> None:
        for number in range(SWEEP * 2 + 5):
            await post(client, "/heroes/", HERO, f"old{number}")
        past = (datetime.now(UTC) - timedelta(seconds=1)).replace(tzinfo=None).isoformat(" ")
        await asyncio.to_thread(execute, url, f"UPDATE idempotency_key SET expires_at = '{past}'")
        left = []
        for number in range(3):
            await post(client, "/heroes/", HERO, f"new{number}")
            rows = await asyncio.to_thread(on, url, lambda connection: connection.execute(KEYS).all())
            left.append(sum(row.key.startswith("old") for row in rows))
        assert left == [SWEEP + 5, 5, 0]

    async def test_what_is_still_valid_is_kept(self, client: httpx.AsyncClient) -> None:
        first = await post(client, "/heroes/", HERO, "first")
        for number in range(SWEEP * 2):
            await post(client, "/heroes/", HERO, f"{number}")
        assert answer(await post(client, "/heroes/", HERO, "first")) == answer(first)


class TestFailures:
    async def test_a_request_without_a_key_costs_no_more_than_before(self, client: httpx.AsyncClient) -> None:
        statements: list[str] = []

        def note(*arguments: Any) -> None:
            statements.append(arguments[2])

        await client.post("/heroes/", json=HERO)
        event.listen(Engine, "before_cursor_execute", note)
        await client.post("/heroes/", json=HERO)
        event.remove(Engine, "before_cursor_execute", note)
        assert len(statements) == 1

    async def test_what_fails_in_the_middle_leaves_neither_hero_nor_key(
        self, client: httpx.AsyncClient, url: URL
    ) -> None:
        """The second hero's id is taken, so the batch fails after its key was written."""
        await asyncio.to_thread(
            execute, url, "CREATE UNIQUE INDEX one_of_a_name ON hero (name)", "DELETE FROM hero WHERE 1 = 1"
        )
        await client.post("/heroes/", json=BATCH[1])
        assert (await post(client, "/heroes/batch", BATCH, "k")).status_code == 409
        assert await count(client) == 1
        assert not await asyncio.to_thread(on, url, lambda connection: connection.execute(KEYS).all())
        await client.delete("/heroes/1")
        assert (await post(client, "/heroes/batch", BATCH, "k")).status_code == 200

    async def test_one_that_waits_too_long_for_its_twin_is_told_to_come_again(self, url: URL) -> None:
        settings = Settings(database_url=url, lock_timeout=0.2)
        async with running(create_app(settings)) as client:
            await post(client, "/heroes/", HERO, "k")
            async with locked(url, "idempotency_key"):
                waiting = await post(client, "/heroes/", HERO, "k")
                assert waiting.status_code == 503
                assert waiting.headers["Retry-After"]
            assert (await post(client, "/heroes/", HERO, "k")).json()["id"] == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("path", "body"), PATHS)
    def test_a_server_that_is_killed_before_its_commit_has_done_nothing(
        self, url: URL, tmp_path: Path, path: str, body: Any
    ) -> None:
        changes = {"DATABASE_URL": spell(url), "KILLED": str(tmp_path / "killed")}
        headers = {"Idempotency-Key": "k"}
        for killed in (True, False):
            port = free_port()
            with server("uvicorn", "tests.killing:app", "--port", str(port), port=port, changes=changes) as client:
                if killed:
                    with pytest.raises(httpx.RemoteProtocolError):
                        client.post(path, json=body, headers=headers)
                else:
                    answered = client.post(path, json=body, headers=headers)
                    assert client.post(path, json=body, headers=headers).content == answered.content
                    heroes = client.get("/heroes/").json()
        assert heroes == (answered.json() if isinstance(body, list) else [answered.json()])
