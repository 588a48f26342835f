"""Idempotency: a retried request with the same key gets the stored response, and runs once."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Request, Response
from sqlalchemy import URL, bindparam, text

from app import idempotency
from app.database import build_engine
from app.idempotency import LIFETIME, PURGE_SIZE, RECORDS, IdempotencyKey, run_idempotent
from app.main import create_app
from app.sessions import AutocommitSessionDep, get_autocommit_session
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND, RUSTY_MAN
from tests.support.lists import count
from tests.support.locks import async_write_lock
from tests.support.polling import wait_until_async
from tests.support.processes import free_port, render_url, server
from tests.support.sql import execute, fetch_value, run_in_transaction
from tests.support.statements import recorded_statements

HERO = DEADPOND | {"age": 30}
BATCH = [HERO, RUSTY_MAN]
KEYS = text("SELECT scope, key, fingerprint, expires_at, answer FROM idempotency_key ORDER BY key")
PATHS: list[tuple[str, Any]] = [("/heroes/", HERO), ("/heroes/batch", BATCH)]

EXPIRED = text(
    "INSERT INTO idempotency_key (scope, key, fingerprint, expires_at) VALUES ('POST /heroes', :key, 'x', :expiry)"
).bindparams(bindparam("expiry", type_=RECORDS.c.expires_at.type))
REFUSE_DELETES = {
    "sqlite": [
        "CREATE TRIGGER refuse_deletes BEFORE DELETE ON idempotency_key BEGIN SELECT RAISE(ABORT, 'refused'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$",
        "CREATE TRIGGER refuse_deletes BEFORE DELETE ON idempotency_key EXECUTE FUNCTION refuse()",
    ],
}


def add_expired(url: URL, number: int) -> None:
    """Add records that have expired, one after the other."""
    past = datetime.now(UTC) - timedelta(hours=1)
    rows = [{"key": f"old{each}", "expiry": past + timedelta(milliseconds=each)} for each in range(number)]
    run_in_transaction(url, lambda connection: connection.execute(EXPIRED, rows))


def count_expired(url: URL) -> int:
    """Count the records that `add_expired` has added, and that are left or taken over."""
    return int(fetch_value(url, "SELECT count(*) FROM idempotency_key WHERE fingerprint = 'x'"))


async def post(client: httpx.AsyncClient, path: str, body: Any, key: str) -> httpx.Response:
    return await client.post(path, json=body, headers={"Idempotency-Key": key})


def comparable(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return what two equal responses have in common: all but the headers that differ each time."""
    headers = {name: value for name, value in response.headers.items() if name not in {"x-request-id", "date"}}
    return response.status_code, response.content, headers


@pytest.mark.parametrize(("path", "body"), PATHS)
class TestReplay:
    async def test_a_retry_gets_the_same_response_in_either_spelling(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        assert first.status_code == 200
        stored = await count(client)
        assert comparable(await post(client, path, body, "k")) == comparable(first)
        assert comparable(await post(client, path.rstrip("/"), body, '"k"')) == comparable(first)
        assert await count(client) == stored

    async def test_a_retry_gets_the_same_response_after_the_hero_has_changed_or_is_deleted(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        await client.patch("/heroes/1", json={"age": 1})
        assert comparable(await post(client, path, body, "k")) == comparable(first)
        await client.delete("/heroes/1")
        assert comparable(await post(client, path, body, "k")) == comparable(first)

    async def test_another_key_runs_again(self, client: httpx.AsyncClient, path: str, body: Any) -> None:
        first, second = await post(client, path, body, "k"), await post(client, path, body, "K")
        assert first.content != second.content

    async def test_another_body_with_the_same_key_is_422_and_changes_nothing(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        stored = await count(client)
        other = json.loads(json.dumps(body).replace("Deadpond", "Deadpool"))
        refused = await post(client, path, other, "k")
        assert refused.status_code == 422
        assert refused.json() == {
            "detail": [
                {
                    "type": "idempotency_key_reused",
                    "loc": ["header", "idempotency-key"],
                    "msg": "This key was sent with another body: send a new key with a new request",
                }
            ]
        }
        assert await count(client) == stored
        assert comparable(await post(client, path, body, "k")) == comparable(first)

    async def test_a_guess_of_a_secret_name_under_a_known_key_tells_nothing(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        first = await post(client, path, body, "k")
        stored = await count(client)
        guess = json.loads(json.dumps(body).replace("Dive Wilson", "Wade Wilson"))
        assert comparable(await post(client, path, guess, "k")) == comparable(first)
        assert await count(client) == stored

    async def test_a_record_of_an_older_release_is_replayed(
        self, client: httpx.AsyncClient, url: URL, path: str, body: Any
    ) -> None:
        """Its fingerprint was a hash of the whole body, and the headers were those that the handler had set."""
        first = await post(client, path, body, "k")
        headers = {name: first.headers[name] for name in ("ETag", "Location") if name in first.headers}
        older = RECORDS.update().values(
            fingerprint=hashlib.sha256(json.dumps(body).encode()).hexdigest(), answer=json.dumps([first.text, headers])
        )
        await asyncio.to_thread(run_in_transaction, url, lambda connection: connection.execute(older))
        assert comparable(await post(client, path, body, "k")) == comparable(first)

    async def test_fifty_concurrent_requests_with_one_key_run_once(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        responses = await asyncio.gather(*(post(client, path, body, "k") for _ in range(50)))
        assert responses[0].status_code == 200
        assert all(comparable(other) == comparable(responses[0]) for other in responses)
        assert await count(client) == (1 if path == "/heroes/" else 2)


class TestScope:
    async def test_the_same_key_with_another_path_runs_again(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, "/heroes/", HERO, "k")).json()["id"] == 1
        assert [hero["id"] for hero in (await post(client, "/heroes/batch", BATCH, "k")).json()] == [2, 3]

    async def test_the_same_key_with_another_path_parameter_runs_again(self, url: URL) -> None:
        router = APIRouter(prefix="/teams")

        @router.post("/{team}/members")
        async def add_member(
            team: int, request: Request, tasks: BackgroundTasks, session: AutocommitSessionDep, key: IdempotencyKey
        ) -> Response:
            async def add() -> Response:
                return Response(str(team), media_type="application/json")

            return await run_idempotent(session, request, key, None, add, tasks=tasks)

        app = create_app(Settings(database_url=url))
        app.include_router(router)
        async with running(app) as client:
            for team in (1, 2):
                for path in (f"/teams/{team}/members", f"/teams/{team}/members/"):
                    assert (await client.post(path, headers={"key": "k"})).json() == team

    async def test_a_retry_gets_the_status_of_the_response(self, url: URL) -> None:
        app = create_app(Settings(database_url=url))

        @app.post("/teams")
        async def create_team(
            request: Request, tasks: BackgroundTasks, session: AutocommitSessionDep, key: IdempotencyKey
        ) -> Response:
            async def create() -> Response:
                return Response("1", 201, media_type="application/json")

            return await run_idempotent(session, request, key, None, create, tasks=tasks)

        async with running(app) as client:
            for _ in range(2):
                assert (await client.post("/teams", headers={"key": "k"})).status_code == 201

    async def test_an_error_is_not_stored(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, "/heroes/", {**HERO, "age": -1}, "k")).status_code == 422
        assert (await post(client, "/heroes/", HERO, "k")).status_code == 200

    async def test_bodies_are_compared_as_validated(self, client: httpx.AsyncClient) -> None:
        first = await post(client, "/heroes/", HERO, "k")
        second = await client.post(
            "/heroes/",
            content=b' {"secret_name":"Dive Wilson", "age": 30.0, "name":"Deadpond", "power": "x"}',
            headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        )
        assert second.content == first.content


class TestKey:
    async def test_it_is_any_visible_ascii_quoted_or_not(self, client: httpx.AsyncClient) -> None:
        for key in ("k", '"l"', "~", "!", '"a"b"', "x" * 255, f'"{"y" * 255}"', "a,b", '""'):
            assert (await post(client, "/heroes/", HERO, key)).status_code == 200, key
        assert await count(client) == 9

    async def test_any_other_is_422(self, client: httpx.AsyncClient) -> None:
        for key in ("", " ", "a b", "x" * 256, f'"{"x" * 256}"', "\t", "a\x7fb", "é"):
            headers = [(b"Idempotency-Key", key.encode("latin-1")), (b"X-Other", b"x")]
            response = await client.post("/heroes/", json=HERO, headers=headers)
            assert response.status_code == 422, key
            assert response.json()["detail"][0]["loc"] == ["header", "idempotency-key"]
        assert await count(client) == 0

    @pytest.mark.parametrize(("path", "body"), PATHS)
    async def test_two_lines_are_422_even_if_they_are_equal(
        self, client: httpx.AsyncClient, path: str, body: Any
    ) -> None:
        for second in ("k", "l"):
            lines = [("Idempotency-Key", "k"), ("Idempotency-Key", second)]
            response = await client.post(path, json=body, headers=lines)
            assert response.status_code == 422
            (error,) = response.json()["detail"]
            assert (error["type"], error["loc"]) == ("idempotency_key", ["header", "idempotency-key"])
        assert await count(client) == 0


class TestStorage:
    async def test_a_record_has_the_response_and_no_secret_name(self, client: httpx.AsyncClient, url: URL) -> None:
        await post(client, "/heroes/", HERO, "k")
        (row,) = await asyncio.to_thread(run_in_transaction, url, lambda connection: connection.execute(KEYS).all())
        assert (row.scope, row.key) == ("POST /heroes", "k")
        assert "Dive" not in str(row)
        assert json.loads(row.answer)[0] == '{"name":"Deadpond","age":30,"id":1}'

    @pytest.mark.parametrize(("path", "body"), PATHS)
    async def test_a_record_does_not_depend_on_the_secret_name(
        self, client: httpx.AsyncClient, url: URL, path: str, body: Any
    ) -> None:
        await post(client, path, body, "k")
        await post(client, path, json.loads(json.dumps(body).replace("Dive Wilson", "Wade Wilson")), "l")
        rows = await asyncio.to_thread(run_in_transaction, url, lambda connection: connection.execute(KEYS).all())
        assert len({row.fingerprint for row in rows}) == 1

    async def test_a_key_expires_after_24_hours_and_can_be_sent_anew(self, client: httpx.AsyncClient, url: URL) -> None:
        assert timedelta(hours=24) == LIFETIME
        await post(client, "/heroes/", HERO, "k")
        past = (datetime.now(UTC) - timedelta(seconds=1)).replace(tzinfo=None).isoformat(" ")
        await asyncio.to_thread(execute, url, f"UPDATE idempotency_key SET expires_at = '{past}'")
        assert (await post(client, "/heroes/", {**HERO, "age": 99}, "k")).json()["id"] == 2
        assert (await post(client, "/heroes/", {**HERO, "age": 99}, "k")).json()["id"] == 2


class TestPurge:
    """Where nothing else is said, every new key purges, instead of a sample of them."""

    @pytest.fixture(autouse=True)
    def every_key_purges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(idempotency, "PURGE_EVERY", 1)

    async def test_a_new_key_purges_expired_ones_but_not_all_at_once(self, client: httpx.AsyncClient, url: URL) -> None:
        await asyncio.to_thread(add_expired, url, PURGE_SIZE * 2 + 5)
        left = []
        for number in range(3):
            await post(client, "/heroes/", HERO, f"new{number}")
            left.append(await asyncio.to_thread(count_expired, url))
        assert left == [PURGE_SIZE + 5, 5, 0]

    async def test_a_sample_of_the_new_keys_purges(
        self, client: httpx.AsyncClient, url: URL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(idempotency, "PURGE_EVERY", 3)
        await asyncio.to_thread(add_expired, url, 1)
        for number in range(200):  # all of them skip it once in 10 ** 35 runs
            await post(client, "/heroes/", HERO, f"new{number}")
            if not await asyncio.to_thread(count_expired, url):
                return
        raise AssertionError("no key has purged")

    async def test_a_valid_key_is_not_purged(self, client: httpx.AsyncClient, url: URL) -> None:
        first = await post(client, "/heroes/", HERO, "first")
        await asyncio.to_thread(add_expired, url, 5)
        for number in range(20):
            await post(client, "/heroes/", HERO, f"{number}")
        assert comparable(await post(client, "/heroes/", HERO, "first")) == comparable(first)

    @pytest.mark.not_citus
    async def test_a_purge_that_fails_changes_no_response(
        self, client: httpx.AsyncClient, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        await asyncio.to_thread(add_expired, url, 1)
        await asyncio.to_thread(execute, url, *REFUSE_DELETES[url.get_backend_name()])
        first = await post(client, "/heroes/", HERO, "k")
        assert first.status_code == 200
        assert comparable(await post(client, "/heroes/", HERO, "k")) == comparable(first)
        assert await count(client) == 1
        assert "Expired idempotency keys are left to a later request: " in caplog.text

    @pytest.mark.not_citus
    async def test_purges_that_fail_for_one_reason_are_logged_once(
        self, client: httpx.AsyncClient, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        await asyncio.to_thread(add_expired, url, 1)
        await asyncio.to_thread(execute, url, *REFUSE_DELETES[url.get_backend_name()])
        for number in range(3):
            await post(client, "/heroes/", HERO, f"new{number}")
        assert caplog.text.count("Expired idempotency keys are left to a later request: ") == 1

    async def test_a_response_does_not_wait_for_the_purge(self, postgres_url: URL) -> None:
        await asyncio.to_thread(add_expired, postgres_url, 1)
        settings = Settings(database_url=postgres_url, lock_timeout=60, statement_timeout=60)
        async with (
            listening(create_app(settings)) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            engine = build_engine(postgres_url, {})
            async with engine.begin() as connection:
                await connection.execute(text("SELECT FROM idempotency_key FOR UPDATE"))
                assert (await post(client, "/heroes/", HERO, "k")).status_code == 200
                assert await asyncio.to_thread(count_expired, postgres_url) == 1
            await engine.dispose()

            async def is_purged() -> bool:
                return await asyncio.to_thread(count_expired, postgres_url) == 0

            await wait_until_async(is_purged)

    async def test_an_app_whose_sessions_are_replaced_does_not_purge(
        self, url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its lifespan has not run, so nothing opens a session after the response."""
        await asyncio.to_thread(add_expired, url, 1)
        app, other = create_app(Settings(database_url=url)), create_app(Settings(database_url=url))
        async with other.router.lifespan_context(other), other.state.sessionmaker(autocommit=True) as session:

            async def override() -> object:
                return session

            app.dependency_overrides[get_autocommit_session] = override
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heroes.test") as client:
                assert (await post(client, "/heroes/", HERO, "k")).status_code == 200
        assert await asyncio.to_thread(count_expired, url) == 1
        assert "unhandled" not in caplog.text

    async def test_a_purge_that_waits_past_the_lock_timeout_changes_no_response(self, postgres_url: URL) -> None:
        await asyncio.to_thread(add_expired, postgres_url, 1)
        async with running(create_app(Settings(database_url=postgres_url, lock_timeout=0.2))) as client:
            engine = build_engine(postgres_url, {})
            async with engine.begin() as connection:
                await connection.execute(text("SELECT FROM idempotency_key FOR UPDATE"))
                assert (await post(client, "/heroes/", HERO, "k")).status_code == 200
                assert await asyncio.to_thread(count_expired, postgres_url) == 1
            await engine.dispose()
            assert (await post(client, "/heroes/", HERO, "l")).status_code == 200
            assert await asyncio.to_thread(count_expired, postgres_url) == 0

    async def test_concurrent_purges_do_not_deadlock(self, postgres_url: URL) -> None:
        """Each of the keys takes over an expired one, and purges others that the next request wants to take over."""
        await asyncio.to_thread(add_expired, postgres_url, 300)
        settings = Settings(database_url=postgres_url, pool_size=40, queue_timeout=60)  # for slow machines
        async with running(create_app(settings)) as client:
            keys = [f"old{number % 100}" for number in range(300)]
            responses = await asyncio.gather(*(post(client, "/heroes/", HERO, key) for key in keys))
            assert {response.status_code for response in responses} == {200}
            assert await count(client) == 100
            for number in range(2):  # concurrent purges can have found the same keys
                await post(client, "/heroes/", HERO, f"new{number}")
        assert await asyncio.to_thread(count_expired, postgres_url) == 0
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await asyncio.to_thread(fetch_value, postgres_url, deadlocks) == 0

    async def test_a_keyed_post_locks_no_rows_by_a_select(self, client: httpx.AsyncClient) -> None:
        """Citus can't: it distributes a SELECT over its shards only if that locks nothing."""
        with recorded_statements() as statements:
            await post(client, "/heroes/", HERO, "k")
        assert any(statement.startswith("SELECT") for statement, _ in statements)
        assert not any("FOR UPDATE" in statement for statement, _ in statements)
        assert not any(statement.startswith("DELETE") and "SELECT" in statement for statement, _ in statements)


class TestFailures:
    async def test_a_request_without_a_key_is_one_statement(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/", json=HERO)
        with recorded_statements() as statements:
            await client.post("/heroes/", json=HERO)
        assert len(statements) == 1

    @pytest.mark.not_citus
    async def test_a_batch_that_fails_stores_neither_heroes_nor_the_key(
        self, client: httpx.AsyncClient, url: URL
    ) -> None:
        """The name of the second hero is taken, so the batch fails after its key was inserted."""
        await asyncio.to_thread(
            execute, url, "CREATE UNIQUE INDEX one_of_a_name ON hero (name)", "DELETE FROM hero WHERE 1 = 1"
        )
        await client.post("/heroes/", json=BATCH[1])
        assert (await post(client, "/heroes/batch", BATCH, "k")).status_code == 409
        assert await count(client) == 1
        assert not await asyncio.to_thread(run_in_transaction, url, lambda connection: connection.execute(KEYS).all())
        await client.delete("/heroes/1")
        assert (await post(client, "/heroes/batch", BATCH, "k")).status_code == 200

    async def test_a_request_that_waits_past_the_lock_timeout_for_one_with_the_same_key_is_503(self, url: URL) -> None:
        settings = Settings(database_url=url, lock_timeout=0.2)
        async with running(create_app(settings)) as client:
            await post(client, "/heroes/", HERO, "k")
            async with async_write_lock(url, "idempotency_key"):
                waiting = await post(client, "/heroes/", HERO, "k")
                assert waiting.status_code == 503
                assert waiting.headers["Retry-After"]
            assert (await post(client, "/heroes/", HERO, "k")).json()["id"] == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("path", "body"), PATHS)
    def test_a_server_that_is_killed_before_its_commit_has_stored_nothing(
        self, url: URL, tmp_path: Path, path: str, body: Any
    ) -> None:
        changes = {"DATABASE_URL": render_url(url), "KILLED": str(tmp_path / "killed")}
        headers = {"Idempotency-Key": "k"}
        for killed in (True, False):
            port = free_port()
            with server(
                "uvicorn", "tests.support.crash_on_commit:app", "--port", str(port), port=port, changes=changes
            ) as client:
                if killed:
                    with pytest.raises(httpx.RemoteProtocolError):
                        client.post(path, json=body, headers=headers)
                else:
                    first = client.post(path, json=body, headers=headers)
                    assert client.post(path, json=body, headers=headers).content == first.content
                    heroes = client.get("/heroes/").json()
        assert heroes == (first.json() if isinstance(body, list) else [first.json()])
