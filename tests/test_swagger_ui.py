"""/docs: what is served, and what Chromium makes of it (`make test-browser`)."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.browser import Browser, running_browser
from tests.support.nginx import proxy
from tests.support.polling import wait_until
from tests.support.processes import ROOT
from tests.support.raw_http import connections, read_response, request_head
from tests.support.service import running_service

ASSETS = ["/docs/favicon.png", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]

# As docs/proxy.md has it.
UNDER_API = {"location / {": "location /api/ {", "proxy_pass http://service;": "proxy_pass http://service/;"}


@pytest.fixture
def url(sqlite_url: URL) -> URL:
    """A database of one kind: nothing here depends on it."""
    return sqlite_url


class TestPage:
    async def test_it_refers_to_nothing_but_assets_of_the_service(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        assert sorted(re.findall(r'(?:href|src)="([^"]*)"', page)) == ASSETS
        assert "//" not in re.sub("<!--.*?-->|// .*", "", page)

    @pytest.mark.parametrize("root", ["/api", "/api/"])
    async def test_its_paths_have_the_root_path(self, app: FastAPI, root: str) -> None:
        transport = httpx.ASGITransport(app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
            assert (await client.get("/")).headers["Location"] == "/api/docs"
            page = (await client.get("/docs")).text
            assert sorted(re.findall(r'(?:href|src)="([^"]*)"', page)) == [f"/api{path}" for path in ASSETS]
            assert "url: '/api/openapi.json'" in page

    async def test_its_policy_allows_its_own_scripts_alone(self, client: httpx.AsyncClient) -> None:
        policy = (await client.get("/docs")).headers["Content-Security-Policy"]
        directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
        scripts = directives.pop("script-src")
        assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", scripts)
        assert directives == {
            "default-src": "'none'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }

    async def test_redoc_is_not_served(self, client: httpx.AsyncClient) -> None:
        """Its page loads a logo from another host, and needs inline styles."""
        assert (await client.get("/redoc")).status_code == 404


class TestAssets:
    @pytest.mark.parametrize("path", ASSETS)
    async def test_one_is_revalidated_before_each_use(self, client: httpx.AsyncClient, path: str) -> None:
        found = await client.get(path)
        assert (found.status_code, found.headers["Cache-Control"]) == (200, "no-cache")
        again = await client.get(path, headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status_code, again.headers["Cache-Control"], again.content) == (304, "no-cache", b"")

    async def test_no_path_leads_out_of_their_folder(self, app: FastAPI) -> None:
        """Over a socket, because clients normalize paths."""
        names = [
            "nothing.js",
            "..",
            "../core.py",
            "%2e%2e",
            "%2e%2e%2fcore.py",
            "..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
            "..%5ccore.py",
            "%2fetc%2fpasswd",
            "/etc/passwd",
            "%00",
            "swagger-ui.css%00",
            "%ff",
            "a" * 5000,
        ]

        def get(port: int, name: str) -> tuple[int, bytes]:
            with connections(port, 1) as (connection,):
                connection.sendall(request_head(f"GET /docs/{name}"))
                return read_response(connection)

        async with listening(app) as port:
            found = {name: await asyncio.to_thread(get, port, name) for name in names}
        assert found == dict.fromkeys(names, (404, b'{"detail":"Not Found"}'))


class TestSwitchedOff:
    async def test_nothing_of_the_documentation_is_served(self, sqlite_url: URL) -> None:
        async with running(create_app(Settings(database_url=sqlite_url, docs_enabled=False))) as client:
            for path in ("/docs", "/docs/", "/docs/oauth2-redirect", "/redoc", "/openapi.json", *ASSETS):
                for method in ("GET", "HEAD", "OPTIONS", "POST"):
                    assert (await client.request(method, path)).status_code == 404, path
            assert (await client.get("/heroes/")).json() == []

    async def test_the_root_says_which_service_it_is(self, sqlite_url: URL) -> None:
        async with running(create_app(Settings(database_url=sqlite_url, docs_enabled=False))) as client:
            response = await client.get("/")
        assert (response.status_code, response.json()) == (200, {"title": "Heroes"})

    def test_the_environment_switches_it_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings.from_environment().docs_enabled
        monkeypatch.setenv("DOCS_ENABLED", "false")
        assert not Settings.from_environment().docs_enabled


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, that knows the host heroes.example."""
    with running_browser() as browser:
        yield browser


def open_operation(browser: Browser, name: str) -> None:
    """Open an operation, and begin to try it out."""
    browser.click(f"[id$='-{name}'] .opblock-summary-control")
    browser.click(f"[id$='-{name}'] .try-out__btn")


def execute(browser: Browser, name: str) -> tuple[str, str]:
    """Send the request of an opened operation, and return the status and the body that the page then shows."""
    shown = f"[id$='-{name}'] .live-responses-table .response"
    browser.click(f"[id$='-{name}'] .execute")
    status = browser.text(f"{shown} .response-col_status")
    return status.split()[0], browser.text(f"{shown} .response-col_description .highlight-code code")


@pytest.mark.browser
class TestInChromium:
    @pytest.mark.parametrize("prefix", ["", "/api"], ids=["alone", "behind nginx, which strips a prefix"])
    def test_the_page_shows_the_operations_and_executes_them(
        self, browser: Browser, sqlite_url: URL, tmp_path: Path, prefix: str
    ) -> None:
        options = ("--root-path", prefix) if prefix else ()
        with running_service(sqlite_url, tmp_path / "log", *options) as service:
            if not prefix:
                self.check(browser, service.port, prefix)
                return
            with proxy(service.port, changes=UNDER_API) as port:
                self.check(browser, port, prefix)

    def check(self, browser: Browser, port: int, prefix: str) -> None:
        origin = f"http://heroes.example:{port}"  # on localhost Swagger UI refrains from some requests to other hosts
        browser.open(f"{origin}{prefix}/")
        summaries = browser.texts(".opblock-summary-path")
        assert {"/heroes/", "/heroes/batch", "/heroes/export", "/heroes/{hero_id}"} <= set(summaries)
        open_operation(browser, "create_hero")
        status, created = execute(browser, "create_hero")
        assert status == "200"
        assert '"id": 1' in created
        assert browser.current_url() == f"{origin}{prefix}/docs"
        assert browser.errors() == []
        requested = browser.requested_urls()
        assert {f"{origin}{prefix}{path}" for path in (*ASSETS[1:], "/docs", "/openapi.json", "/heroes/")} <= requested
        assert {url for url in requested if not url.startswith((origin, "data:"))} == set()

    async def test_authorize_sends_the_bearer_token(self, browser: Browser, sqlite_url: URL) -> None:
        app = create_app(Settings(database_url=sqlite_url))

        @app.get("/token", operation_id="read_token")
        async def read_token(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
            return f"token {token.credentials}"

        def check(port: int) -> None:
            browser.open(f"http://heroes.example:{port}/docs")
            browser.click(".auth-wrapper .authorize")
            browser.type(".auth-container input", "s3cret")
            browser.click(".auth-container .modal-btn.authorize")
            browser.click(".auth-container .btn-done")
            open_operation(browser, "read_token")
            assert execute(browser, "read_token") == ("200", '"token s3cret"')
            assert browser.errors() == []

        async with listening(app) as port:
            await asyncio.to_thread(check, port)

    async def test_the_policy_blocks_scripts_and_requests_to_other_hosts(
        self, browser: Browser, sqlite_url: URL
    ) -> None:
        """What the other tests rely on: Chromium reports what the policy blocks."""

        def check(port: int) -> None:
            browser.open(f"http://heroes.example:{port}/docs")
            browser.texts(".opblock-summary-path")
            browser.run(
                "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
            )
            browser.run("fetch('http://other.example/').catch(() => null)")
            wait_until(lambda: len(browser.errors()) >= 2)
            assert browser.run("return window.ran") is None

        async with listening(create_app(Settings(database_url=sqlite_url))) as port:
            await asyncio.to_thread(check, port)


def test_the_screenshot_is_small() -> None:
    assert (ROOT / "docs/docs.png").stat().st_size < 150_000
