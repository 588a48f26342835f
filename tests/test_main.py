"""The app as it is put together: its documentation, and CORS."""

from typing import ClassVar

import httpx
from fastapi import FastAPI
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND


async def test_the_root_redirects_to_the_documentation_below_any_root_path(app: FastAPI) -> None:
    for root in ("", "/api"):
        app.root_path = root
        async with running(app) as client:
            response = await client.get(f"{root}/")
            assert response.headers["Location"] == f"{root}/docs"
            assert (await client.get(f"{root}/docs")).status_code == 200


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
            response = await client.post("/heroes/", json=DEADPOND, headers=self.ORIGIN)
            assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
            exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
            assert exposed == {"ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count"}
            other = await client.get("/heroes/", headers={"Origin": "https://evil.example"})
            assert "Access-Control-Allow-Origin" not in other.headers

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
