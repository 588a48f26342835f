"""The app as it is put together: its documentation, CORS, hosts, and the headers of a proxy."""

import gc
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import URL

from app.main import GC_THRESHOLD, RESPONSE_HEADERS, create_app
from app.security import Caller, Token
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.heroes import DEADPOND
from tests.support.processes import ROOT


async def test_the_root_redirects_to_the_documentation_below_any_root_path(app: FastAPI) -> None:
    for root in ("", "/api"):
        app.root_path = root
        async with running(app) as client:
            response = await client.get(f"{root}/")
            assert response.headers["Location"] == f"{root}/docs"
            assert (await client.get(f"{root}/docs")).status_code == 200


class TestGarbageCollection:
    REQUESTS: tuple[tuple[str, str, str | bytes | None, int], ...] = (
        ("GET", "/heroes/1", None, 200),
        ("GET", "/heroes/?sort=name&limit=1", None, 200),
        ("POST", "/heroes/", json.dumps(DEADPOND), 200),
        ("PATCH", "/heroes/1", '{"age": 30}', 200),
        ("DELETE", "/heroes/2", None, 200),
        ("GET", "/heroes/999", None, 404),
        ("GET", "/heroes/?limit=x", None, 422),
        ("POST", "/heroes/", '{"name": 1}', 422),
        ("POST", "/heroes/", '{"name": ', 422),
        ("POST", "/heroes/", b"\xff", 400),
        ("POST", "/heroes/batch", "[{}, {}]", 422),
        ("PUT", "/heroes/1", None, 405),
    )

    @contextmanager
    def collected(self) -> Iterator[list[Any]]:
        """Yield a list that has, after the block, what the block has left to the garbage collector."""
        gc.freeze()  # what there is already is left alone, which takes it seconds
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.disable()
        found: list[Any] = []
        try:
            yield found
            gc.collect()
            found += gc.garbage
        finally:
            gc.enable()
            gc.set_debug(0)
            gc.garbage.clear()
            gc.unfreeze()

    async def test_a_request_leaves_no_work_for_it(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/json"}
        await client.post("/heroes/batch", json=[DEADPOND] * 3)
        for method, path, body, status in self.REQUESTS:
            warm_up = path.replace("/2", "/3")  # what is built once is built now
            await client.request(method, warm_up, content=body, headers=headers)
            with self.collected() as left:
                response = await client.request(method, path, content=body, headers=headers)
            assert (response.status_code, left) == (status, []), (method, path)

    async def test_it_looks_at_waiting_requests_rarely(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/livez")).status_code == 200
        assert gc.get_threshold()[0] == GC_THRESHOLD


class TestCORS:
    ORIGIN: ClassVar[dict[str, str]] = {"Origin": "https://heroes.example"}
    PREFLIGHT: ClassVar[dict[str, str]] = {
        **ORIGIN,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type, idempotency-key, if-match",
    }

    async def test_it_is_off_by_default(self, client: httpx.AsyncClient) -> None:
        for response in (
            await client.get("/heroes/", headers=self.ORIGIN),
            await client.options("/heroes/1", headers=self.PREFLIGHT),
        ):
            assert not [name for name in response.headers if name.startswith("access-control")]

    async def test_it_is_on_for_the_origins_of_the_setting(self, url: URL) -> None:
        settings = Settings(database_url=url, cors_origins=("https://heroes.example",))
        async with running(create_app(settings)) as client:
            preflight = await client.options("/heroes/1", headers=self.PREFLIGHT)
            assert preflight.status_code == 200
            assert preflight.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
            assert preflight.headers["X-Request-ID"]
            response = await client.post("/heroes/", json=DEADPOND, headers=self.ORIGIN)
            assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
            exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
            assert exposed == set(RESPONSE_HEADERS)
            other = await client.get("/heroes/", headers={"Origin": "https://evil.example"})
            assert "Access-Control-Allow-Origin" not in other.headers

    def test_the_documentation_lists_the_headers_that_a_page_can_read(self) -> None:
        (listed,) = re.findall(r"They can read the headers (.*?)\.", (ROOT / "docs/http.md").read_text(), re.DOTALL)
        assert re.findall(r"`(.*?)`", listed) == list(RESPONSE_HEADERS)

    @pytest.mark.parametrize("origin", ["https://heroes.example", "*"])
    async def test_a_page_can_send_a_token_and_read_why_it_is_refused(self, sqlite_url: URL, origin: str) -> None:
        tokens = (Token(Caller("page", frozenset({"read"})), hashlib.sha256(b"x").digest()),)
        app = create_app(Settings(database_url=sqlite_url, cors_origins=(origin,), tokens=tokens))

        @app.put("/heroes/1")
        async def replace() -> None:
            """Replace a hero, as an operation of a copy."""

        async with running(app) as client:
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
                preflight = await client.options("/heroes/1", headers=self.ORIGIN | asked)
                assert (preflight.status_code, preflight.text) == (200, "OK")
                assert method in preflight.headers["Access-Control-Allow-Methods"].split(", ")
                assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"].split(", ")
                assert preflight.headers["Access-Control-Allow-Origin"] == origin
            refused = await client.get("/heroes/", headers=self.ORIGIN)
            assert refused.status_code == 401
            assert refused.headers["Access-Control-Allow-Origin"] == origin
            assert "WWW-Authenticate" in refused.headers["Access-Control-Expose-Headers"].split(", ")
            allowed = await client.get("/heroes/", headers=self.ORIGIN | {"Authorization": "Bearer x"})
            assert allowed.status_code == 200

    async def test_errors_have_its_headers(self, url: URL) -> None:
        settings = Settings(database_url=url, cors_origins=("https://heroes.example",))
        async with running(create_app(settings)) as client:
            for path in ("/heroes/9", "/heroes/x", "/nowhere"):
                response = await client.get(path, headers=self.ORIGIN)
                assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
                assert response.headers["X-Request-ID"]

    async def test_an_unexpected_error_has_its_headers(self, url: URL) -> None:
        app = create_app(Settings(database_url=url, cors_origins=("https://heroes.example",)))

        @app.get("/fail")
        async def fail() -> None:
            raise LookupError

        async with running(app) as client:
            response = await client.get("/fail", headers={"Origin": "https://heroes.example"})
        assert response.status_code == 500
        assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
        assert response.headers["X-Request-ID"]


class TestHosts:
    async def test_any_host_is_allowed_by_default(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/heroes/", headers={"Host": "evil.example"})).status_code == 200

    async def test_the_setting_allows_its_hosts_on_any_port_and_no_other(self, sqlite_url: URL) -> None:
        hosts = ("heroes.example", "*.heroes.example", "10.0.0.5", "[::1]")
        async with running(create_app(Settings(database_url=sqlite_url, allowed_hosts=hosts))) as client:
            for host in ("heroes.example", "HEROES.example:8000", "api.heroes.example", "10.0.0.5:1", "[::1]:8000"):
                assert (await client.get("/heroes/", headers={"Host": host})).status_code == 200, host
            for host in ("127.0.0.1", "127.0.0.1:8000"):  # the health check of the image
                assert (await client.get("/livez", headers={"Host": host})).status_code == 200, host
            for host in ("evil.example", "evilheroes.example", "heroes.example.evil.example", "10.0.0.6", "[::2]", ""):
                for path in ("/heroes/", "/livez", "/nowhere"):
                    response = await client.get(path, headers={"Host": host})
                    assert (response.status_code, response.text) == (400, "Invalid host header")
                    assert response.headers["X-Request-ID"]
                    assert response.headers["X-Content-Type-Options"] == "nosniff"

    async def test_a_host_is_not_redirected_to_its_www(self, sqlite_url: URL) -> None:
        settings = Settings(database_url=sqlite_url, allowed_hosts=("www.heroes.example",))
        async with running(create_app(settings)) as client:
            assert (await client.get("/heroes/", headers={"Host": "heroes.example"})).status_code == 400


class TestProxyHeaders:
    """uvicorn reads them, from the addresses in FORWARDED_ALLOW_IPS: by default those of loopback that are usual."""

    FORWARDED: ClassVar[dict[str, str]] = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=203.0.113.7;proto=https;host=evil.example",
    }

    async def ask(self, app: FastAPI, address: str, headers: dict[str, str]) -> Any:
        """Send a request from an address of this machine, and return what a handler sees of it."""

        @app.get("/seen")
        async def show(request: Request) -> list[str]:
            return [request.client.host if request.client else "", str(request.base_url)]

        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with listening(app) as port, httpx.AsyncClient(transport=transport) as client:
            response = await client.get(f"http://127.0.0.1:{port}/seen", headers={"Host": "heroes.example", **headers})
            return response.json()

    async def test_they_change_nothing_from_an_address_that_is_not_named(
        self, sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
        app = create_app(Settings(database_url=sqlite_url))
        assert await self.ask(app, "127.0.0.2", self.FORWARDED) == ["127.0.0.2", "http://heroes.example/"]

    async def test_they_name_the_client_and_the_scheme_from_one_that_is(
        self, sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.2")
        app = create_app(Settings(database_url=sqlite_url))
        assert await self.ask(app, "127.0.0.2", self.FORWARDED) == ["203.0.113.7", "https://heroes.example/"]
        assert await self.ask(app, "127.0.0.1", self.FORWARDED) == ["127.0.0.1", "http://heroes.example/"]
