"""The app as it is put together: its documentation, and CORS."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL

from app.main import GC_THRESHOLD, create_app
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


class TestGarbageCollection:
    @contextmanager
    def collected(self) -> Iterator[list[Any]]:
        """Yield a list that has, after the block, what the block has left to the garbage collector."""
        gc.collect()
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

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
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
        ],
    )
    async def test_a_request_leaves_no_work_for_it(
        self, client: httpx.AsyncClient, method: str, path: str, body: str | bytes | None, status: int
    ) -> None:
        for _ in range(3):
            await client.post("/heroes/", json=DEADPOND)
        headers = {"Content-Type": "application/json"}
        warm_up = path.replace("/2", "/3")  # what is built once is built now
        await client.request(method, warm_up, content=body, headers=headers)
        with self.collected() as left:
            response = await client.request(method, path, content=body, headers=headers)
        assert response.status_code == status
        assert left == []

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
