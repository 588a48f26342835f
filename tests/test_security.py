"""Bearer tokens: who may read and write, what is refused and how, and what the log has of it."""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import URL, text
from starlette.types import Receive, Scope, Send

from app import logs, security
from app.errors import PROBLEMS
from app.main import create_app
from app.security import Caller, CallerDep, Token, parse_tokens
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until_async
from tests.support.sql import execute, fetch_value

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}
TOKEN, OLD_TOKEN, READ_TOKEN, WRITE_TOKEN = "new-token", "old.token_~+/==", "reads", "writes"


def entry(name: str, scopes: str, token: str) -> str:
    return f"{name}:{scopes}:{hashlib.sha256(token.encode()).hexdigest()}"


def tokens_of(*entries: str) -> tuple[Token, ...]:
    return parse_tokens(",".join(entries))


TOKENS = tokens_of(
    entry("billing", "read+write", OLD_TOKEN),
    entry("billing", "write+read", TOKEN),
    entry("reader", "read", READ_TOKEN),
    entry("writer", "write", WRITE_TOKEN),
)

# Every operation on heroes, with the scope that it needs.
OPERATIONS = [
    ("GET", "/heroes/", "read"),
    ("HEAD", "/heroes/", "read"),
    ("GET", "/heroes", "read"),
    ("GET", "/heroes/1", "read"),
    ("HEAD", "/heroes/1/", "read"),
    ("GET", "/heroes/export", "read"),
    ("HEAD", "/heroes/export/", "read"),
    ("POST", "/heroes/", "write"),
    ("POST", "/heroes", "write"),
    ("POST", "/heroes/batch", "write"),
    ("POST", "/heroes/batch/", "write"),
    ("PATCH", "/heroes/1", "write"),
    ("PATCH", "/heroes/1/", "write"),
    ("DELETE", "/heroes/1", "write"),
    ("DELETE", "/heroes/1/", "write"),
]


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def body_of(path: str) -> Any:
    return [DEADPOND] if "batch" in path else DEADPOND


@lru_cache(maxsize=8)
def guarded_app(url: URL) -> FastAPI:
    """Create an app with tokens, for all tests on a database that do not change it."""
    return create_app(Settings(database_url=url, tokens=TOKENS))


@pytest.fixture
async def anyone(url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with running(guarded_app(url)) as client:
        await client.post("/heroes/", json=DEADPOND, headers=bearing(TOKEN))
        yield client


class TestOff:
    async def test_without_tokens_a_request_needs_none_and_may_have_any(self, client: httpx.AsyncClient) -> None:
        for headers in ({}, bearing("x"), {"Authorization": "Basic eDp5"}):
            assert (await client.post("/heroes/", json=DEADPOND, headers=headers)).status_code == 200

    async def test_without_tokens_the_documentation_has_no_security(self, client: httpx.AsyncClient) -> None:
        schema = (await client.get("/openapi.json")).json()
        assert "securitySchemes" not in schema["components"]
        for operations in schema["paths"].values():
            for operation in operations.values():
                assert "security" not in operation
                assert not {"401", "403"} & operation["responses"].keys()


class TestScopes:
    async def test_an_operation_needs_a_token_with_its_scope(
        self, anyone: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        async def status(method: str, path: str, token: str | None) -> tuple[int, str | None]:
            headers = bearing(token) if token else {}
            response = await anyone.request(method, path, json=body_of(path), headers=headers)
            return response.status_code, response.headers.get("WWW-Authenticate")

        for number, (method, path, scope) in enumerate(OPERATIONS):
            await anyone.post("/heroes/", json=DEADPOND, headers=bearing(TOKEN))
            own = path.replace("1", str(number + 1))
            right, wrong = (READ_TOKEN, WRITE_TOKEN) if scope == "read" else (WRITE_TOKEN, READ_TOKEN)
            insufficient = f'Bearer realm="api", error="insufficient_scope", scope="{scope}"'
            with subtests.test(f"{method} {path}"):
                assert await status(method, own, None) == (401, 'Bearer realm="api"')
                assert await status(method, own, "other") == (401, 'Bearer realm="api", error="invalid_token"')
                assert await status(method, own, wrong) == (403, insufficient)
                assert await status(method, own, right) == (200, None)

    async def test_a_caller_can_have_several_tokens(self, anyone: httpx.AsyncClient) -> None:
        for token in (TOKEN, OLD_TOKEN):
            assert (await anyone.get("/heroes/", headers=bearing(token))).status_code == 200
            assert (await anyone.patch("/heroes/1", json={"age": 1}, headers=bearing(token))).status_code == 200

    async def test_probes_and_documentation_need_none(self, anyone: httpx.AsyncClient) -> None:
        for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/"):
            assert (await anyone.get(path)).status_code in {200, 307}, path

    async def test_what_the_documentation_says_anyway_needs_none(self, anyone: httpx.AsyncClient) -> None:
        assert (await anyone.options("/heroes/1")).headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"
        assert (await anyone.put("/heroes/1")).status_code == 405
        assert (await anyone.get("/nowhere")).status_code == 404

    async def test_a_router_of_another_route_class_is_protected_by_the_dependency(self, url: URL) -> None:
        router = APIRouter()

        @router.get("/me")
        @router.post("/me")
        async def name_caller(caller: CallerDep) -> str:
            return caller.name if caller else "nobody"

        app, unprotected = (create_app(Settings(database_url=url, tokens=tokens)) for tokens in (TOKENS, ()))
        for each, tokens in ((app, TOKENS), (unprotected, ())):
            each.include_router(router, dependencies=security.install(each, tokens))
        async with running(app) as client:
            assert (await client.get("/me")).status_code == 401
            assert (await client.get("/me", headers=bearing(OLD_TOKEN))).json() == "billing"
            assert (await client.post("/me", headers=bearing(READ_TOKEN))).status_code == 403
        async with running(unprotected) as client:
            assert (await client.get("/me")).json() == "nobody"


class TestRefusals:
    @pytest.mark.parametrize(
        ("token", "status", "detail"),
        [
            (None, 401, "Send a bearer token in the Authorization header."),
            ("x", 401, "The token is not valid."),
            (READ_TOKEN, 403, "The token does not have the scope 'write'."),
        ],
    )
    async def test_a_refusal_has_both_forms(
        self, anyone: httpx.AsyncClient, token: str | None, status: int, detail: str
    ) -> None:
        headers = bearing(token) if token else {}
        plain = await anyone.delete("/heroes/1", headers=headers)
        problem = await anyone.delete("/heroes/1", headers=headers | {"Accept": PROBLEM})
        assert (plain.status_code, plain.json()) == (status, {"detail": detail})
        assert (problem.status_code, problem.headers["Content-Type"]) == (status, PROBLEM)
        kind, title = PROBLEMS[status]
        expected = {"type": f"urn:problem-type:{kind}", "title": title, "status": status, "detail": detail}
        assert problem.json() == expected
        assert plain.headers["WWW-Authenticate"] == problem.headers["WWW-Authenticate"]

    @pytest.mark.parametrize("token", [None, "x", READ_TOKEN])
    async def test_a_refused_body_is_not_read(self, anyone: httpx.AsyncClient, token: str | None) -> None:
        async def body() -> AsyncIterator[bytes]:
            raise AssertionError("the body was read")
            yield b""

        for method, path in (("POST", "/heroes/"), ("POST", "/heroes/batch/"), ("PATCH", "/heroes/1")):
            for length in ({}, {"Content-Length": "1000000000"}):  # without tokens that is 413
                headers = JSON | length | (bearing(token) if token else {})
                response = await anyone.request(method, path, content=body(), headers=headers)
                assert response.status_code == (403 if token == READ_TOKEN else 401)

    async def test_nothing_else_is_learned_without_a_token(self, anyone: httpx.AsyncClient) -> None:
        for method, path, headers in (
            ("GET", "/heroes/99", {}),
            ("GET", "/heroes/x", {}),
            ("GET", "/heroes/?limit=x", {}),
            ("PATCH", "/heroes/1", {"If-Match": '"99"'}),
            ("POST", "/heroes/", {"Idempotency-Key": "\x7f"}),
        ):
            response = await anyone.request(method, path, content=b"{", headers=JSON | headers)
            assert response.status_code == 401
            assert response.json() == {"detail": "Send a bearer token in the Authorization header."}

    async def test_a_request_without_a_token_is_refused_before_it_queues(self, url: URL) -> None:
        app = create_app(Settings(database_url=url, tokens=TOKENS, pool_size=1, queue_size=0))
        async with running(app) as client, app.state.sessionmaker() as session:
            await session.exec(text("SELECT 1"))
            assert (await client.delete("/heroes/1")).status_code == 401
            assert (await client.delete("/heroes/1", headers=bearing(TOKEN))).status_code == 503


INVALID = {
    "no token": [b"Bearer"],
    "only spaces": [b"Bearer    "],
    "a tab": [b"Bearer\t" + TOKEN.encode()],
    "no space": [b"Bearer" + TOKEN.encode()],
    "more words": [b"Bearer " + TOKEN.encode() + b" x"],
    "a list": [b"Bearer " + TOKEN.encode() + b", Bearer " + TOKEN.encode()],
    "in quotes": [b'Bearer "' + TOKEN.encode() + b'"'],
    "another case": [b"Bearer " + TOKEN.upper().encode()],
    "a part": [b"Bearer " + TOKEN[:-1].encode()],
    "the hash": [b"Bearer " + TOKENS[0].digest.hex().encode()],
    "not ASCII": ["Bearer t\N{LATIN SMALL LETTER O WITH DIAERESIS}ken".encode()],
    "not UTF-8": [b"Bearer \xff\xfe"],
    "a NUL": [b"Bearer \0" + TOKEN.encode()],
    "huge": [b"Bearer " + b"x" * 30_000],
    "huge and malformed": [b"Bearer " + b"=" * 30_000],
    "twice": [b"Bearer " + TOKEN.encode()] * 2,
    "behind another scheme": [b"Basic eDp5", b"Bearer " + TOKEN.encode()],
}
OTHER_SCHEMES = [b"", b" ", b"Basic eDp5", b"Digest username=x", TOKEN.encode(), b"=" * 30_000, b"\xff"]


class TestCredentials:
    async def test_what_is_not_one_valid_token_is_invalid(
        self, anyone: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for name, values in INVALID.items():
            response = await anyone.get("/heroes/", headers=[(b"Authorization", value) for value in values])
            with subtests.test(name):
                assert response.status_code == 401
                assert response.headers["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'

    async def test_another_scheme_is_no_token(self, anyone: httpx.AsyncClient) -> None:
        for value in OTHER_SCHEMES:
            response = await anyone.get("/heroes/", headers=[(b"Authorization", value)])
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="api"')

    async def test_the_scheme_has_any_case_and_spaces(self, anyone: httpx.AsyncClient) -> None:
        for value in ("bearer {}", "BEARER {}", "bEaReR   {}", " Bearer {} "):
            response = await anyone.get("/heroes/", headers={"Authorization": value.format(TOKEN)})
            assert response.status_code == 200

    @pytest.mark.parametrize("token", [OLD_TOKEN, WRITE_TOKEN, "x"])
    async def test_a_token_is_compared_with_every_hash(
        self, anyone: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        """So the time does not depend on which of them it is. `compare_digest` does not return early either."""
        compared: list[Any] = []
        compare = hmac.compare_digest

        def count(one: bytes, other: bytes) -> bool:
            compared.append(one)
            return compare(one, other)

        monkeypatch.setattr(hmac, "compare_digest", count)
        await anyone.get("/heroes/99", headers=bearing(token))
        assert len(compared) % len(TOKENS) == 0
        assert set(compared) == {each.digest for each in TOKENS}


class TestLog:
    async def test_a_refusal_is_logged_once_without_the_token_and_then_counted(
        self, anyone: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "REPORT_INTERVAL", 0.1)
        caplog.set_level(logging.DEBUG)
        for number in range(3):
            await anyone.get("/heroes/1", headers=bearing("tvqzxkwj") | {"X-Request-ID": f"id-{number}"})
            await anyone.get("/heroes/1", headers={"X-Request-ID": f"none-{number}"})
            await anyone.delete("/heroes/1", headers=bearing(READ_TOKEN) | {"X-Request-ID": f"read-{number}"})
        await anyone.get("/heroes/1", headers=[("Authorization", "Bearer tvqzxkwj")] * 2)
        await anyone.get("/heroes/1", headers={"Authorization": "Basic tvqzxkwj"})

        async def are_counted() -> bool:
            return caplog.text.count(" more in 0.1 s: refused: ") == 3

        await wait_until_async(are_counted)
        messages = messages_of(caplog, "app.security")
        assert messages[:3] == [
            "GET /heroes/{hero_id}: refused: an invalid token",
            "GET /heroes/{hero_id}: refused: no token",
            "DELETE /heroes/{hero_id}: refused: reader may not write",
        ]
        assert "3 more in 0.1 s: refused: an invalid token" in messages
        assert "tvqzxkwj" not in caplog.text
        assert READ_TOKEN not in caplog.text.split()
        assert not any(each.digest.hex() in caplog.text for each in TOKENS)

    async def test_the_first_refusal_is_logged_at_once(
        self, anyone: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        await anyone.get("/heroes/1")
        messages = messages_of(caplog, "app.security")
        assert messages == ["GET /heroes/{hero_id}: refused: no token"]

    async def test_a_service_without_tokens_says_once_that_others_can_reach_it(
        self, sqlite_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def warnings(host: str) -> list[str]:
            await client.get(f"http://{host}:8000/heroes/")
            return messages_of(caplog, "app.security")

        async with running(create_app(Settings(database_url=sqlite_url))) as client:
            for host in ("127.0.0.1", "127.8.8.8", "[::1]", "testserver"):
                assert await warnings(host) == []
            sentence = "Everyone who can connect to 10.0.0.5 may read and write: set TOKENS or TOKENS_FILE."
            for host in ("10.0.0.5", "10.0.0.5", "10.0.0.6", "127.0.0.1"):
                assert await warnings(host) == [sentence]

    async def test_a_service_on_a_unix_socket_has_no_address(
        self, app: FastAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def handle_without_address(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "server": None}, receive, send)

        transport = httpx.ASGITransport(handle_without_address, raise_app_exceptions=False)
        async with running(app), httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
            assert (await client.get("/heroes/")).status_code == 200
        assert not [record for record in caplog.records if record.name == "app.security"]

    async def test_a_service_with_tokens_says_nothing_about_its_address(
        self, anyone: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        await anyone.get("http://10.0.0.5:8000/heroes/", headers=bearing(TOKEN))
        assert "connect to" not in caplog.text


class TestIdempotency:
    async def post(self, client: httpx.AsyncClient, token: str, name: str = "Deadpond") -> httpx.Response:
        headers = bearing(token) | {"Idempotency-Key": "k"}
        return await client.post("/heroes/", json=DEADPOND | {"name": name}, headers=headers)

    async def test_a_key_belongs_to_its_caller(self, anyone: httpx.AsyncClient) -> None:
        first = await self.post(anyone, TOKEN)
        other = await self.post(anyone, WRITE_TOKEN, "Another")
        assert (first.json()["name"], other.json()["name"]) == ("Deadpond", "Another")
        assert first.json()["id"] != other.json()["id"]

    async def test_a_key_is_the_same_with_another_token_of_the_caller(self, anyone: httpx.AsyncClient) -> None:
        first = await self.post(anyone, OLD_TOKEN)
        again = await self.post(anyone, TOKEN)
        assert again.json() == first.json()
        assert (await self.post(anyone, TOKEN, "Another")).status_code == 422

    async def test_without_tokens_a_key_is_stored_as_by_older_releases(
        self, client: httpx.AsyncClient, url: URL
    ) -> None:
        first = await self.post(client, "x")
        assert await asyncio.to_thread(fetch_value, url, "SELECT scope FROM idempotency_key") == "POST /heroes"
        await asyncio.to_thread(execute, url, "DELETE FROM hero WHERE 1 = 1")
        assert (await self.post(client, "y")).json() == first.json()


class TestDocumentation:
    async def test_every_operation_on_heroes_declares_the_scheme_and_its_refusals(
        self, anyone: httpx.AsyncClient
    ) -> None:
        schema = (await anyone.get("/openapi.json")).json()
        (scheme,) = schema["components"]["securitySchemes"].values()
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                is_open = path in {"/livez", "/readyz"}
                assert operation.get("security") == (None if is_open else [{"bearer": []}])
                assert ({"401", "403"} & operation["responses"].keys()) == (set() if is_open else {"401", "403"})


async def test_every_operation_but_the_probes_needs_a_token(sqlite_url: URL) -> None:
    app = create_app(Settings(database_url=sqlite_url, tokens=TOKENS))
    operations = [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(operations) > 7
    async with running(app) as client:
        for method, path in operations:
            response = await client.request(method, re.sub("{.*?}", "1", path))
            assert (response.status_code == 401) == (path not in {"/livez", "/readyz"}), path


class TestSettings:
    def read(self, monkeypatch: pytest.MonkeyPatch, **variables: object) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return Settings.from_environment()

    def test_tokens_are_separated_by_commas_or_on_a_line_each(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "tokens").write_text(f"# comment, with a comma\n\n{entry('one', 'read', 'x')}\n")
        two = f" {entry('two', 'read+write', 'y')}, {entry('two', 'read+write', 'z').upper().replace('TWO', 'two')},"
        two = two.replace("READ+WRITE", "read+write")
        settings = self.read(monkeypatch, TOKENS=two, TOKENS_FILE=tmp_path / "tokens")
        assert [token.caller for token in settings.tokens] == [Caller("two", frozenset({"read", "write"}))] * 2
        assert [token.digest for token in settings.tokens_file] == [hashlib.sha256(b"x").digest()]
        for shown in (repr(settings), repr(settings.tokens[0])):
            assert repr(settings.tokens[0].digest) not in shown
            assert settings.tokens[0].digest.hex() not in shown

    async def test_tokens_of_both_settings_are_accepted(self, sqlite_url: URL) -> None:
        app = create_app(Settings(database_url=sqlite_url, tokens=TOKENS[:1], tokens_file=TOKENS[2:]))
        async with running(app) as client:
            for token, status in ((OLD_TOKEN, 200), (READ_TOKEN, 200), (TOKEN, 401)):
                assert (await client.get("/heroes/", headers=bearing(token))).status_code == status

    @pytest.mark.parametrize("lost", ["", " ", ",", "# later"])
    def test_a_secret_that_was_lost_on_its_way_does_not_open_the_service(
        self, monkeypatch: pytest.MonkeyPatch, lost: str
    ) -> None:
        with pytest.raises(
            SystemExit, match=r"^TOKENS: there is no token in it, and without any everyone could read and write.$"
        ):
            self.read(monkeypatch, TOKENS=lost)

    def test_a_token_that_is_in_both_settings_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "tokens").write_text(entry("one", "read+write", "x"))
        with pytest.raises(SystemExit, match=r"^TOKENS_FILE: a token in it is in TOKENS too.$"):
            self.read(monkeypatch, TOKENS=entry("two", "read", "x"), TOKENS_FILE=tmp_path / "tokens")

    @pytest.mark.parametrize(
        "bad",
        [
            "hunter2",
            "a:read",
            f"a b:read:{'0' * 64}",
            f":read:{'0' * 64}",
            f"a:admin:{'0' * 64}",
            f"a::{'0' * 64}",
            f"a:read+read:{'0' * 64}",
            f"a:read:{'0' * 63}",
            f"a:read:{'g' * 64}",
            f"a:read:{'0' * 64}:x",
            f"{'a' * 65}:read:{'0' * 64}",
        ],
    )
    def test_a_malformed_token_is_refused_by_its_number_and_not_repeated(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: str
    ) -> None:
        good = entry("a", "read", "x")
        sentence = "entry {} is not name:scopes:hash, as `python -m app.security` prints it."
        with pytest.raises(SystemExit, match=f"^{re.escape(f'TOKENS: {sentence}'.format(2))}$"):
            self.read(monkeypatch, TOKENS=f"{good},{bad}")
        monkeypatch.delenv("TOKENS")
        (tmp_path / "tokens").write_text(f"# comment\n{good}\n{bad}\n")
        with pytest.raises(SystemExit, match=f"^{re.escape(f'TOKENS_FILE: {sentence}'.format(3))}$"):
            self.read(monkeypatch, TOKENS_FILE=tmp_path / "tokens")

    def test_a_hash_has_one_caller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SystemExit, match=r"^TOKENS: entry 2 has the hash of an earlier one\.$"):
            self.read(monkeypatch, TOKENS=f"{entry('a', 'read', 'x')},{entry('b', 'read', 'x')}")

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (None, "the file can't be read: No such file or directory"),
            (b"", "there is no token in it, and without any everyone could read and write"),
            (b"# none\n\n", "there is no token in it, and without any everyone could read and write"),
            (b"\xff", "the file can't be read: it is not UTF-8"),
        ],
    )
    def test_a_file_without_tokens_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, sentence: str
    ) -> None:
        if content is not None:
            (tmp_path / "tokens").write_bytes(content)
        with pytest.raises(SystemExit, match=f"^TOKENS_FILE: {re.escape(sentence)}.$"):
            self.read(monkeypatch, TOKENS_FILE=tmp_path / "tokens")


class TestCommand:
    async def test_it_prints_a_token_and_its_entry(self, sqlite_url: URL, capsys: pytest.CaptureFixture[str]) -> None:
        security.main(["billing", "read+write"])
        printed = re.fullmatch(r"token: ([A-Za-z0-9_-]{43,})\nentry: (.*)\n", capsys.readouterr().out)
        assert printed
        app = create_app(Settings(database_url=sqlite_url, tokens=tokens_of(printed[2])))
        async with running(app) as client:
            assert (await client.get("/heroes/", headers=bearing(printed[1]))).status_code == 200

    @pytest.mark.parametrize("arguments", [[], ["billing"], ["a b", "read"], ["a", "admin"], ["a", "read", "x"]])
    def test_it_refuses_other_arguments(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match=r"^Usage: "):
            security.main(arguments)
