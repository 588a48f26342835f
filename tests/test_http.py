"""What every path has in common."""

from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from sqlalchemy import URL

from app.http import own_path
from app.main import create_app
from app.settings import Settings
from tests.conftest import running
from tests.services import connections, get, head, launched

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}


@pytest.mark.parametrize("slash", ["", "/"], ids=["without", "with"])
class TestBothSpellings:
    """A path with or without the slash at its end: both answer, neither redirects."""

    async def test_a_collection(self, client: httpx.AsyncClient, slash: str) -> None:
        assert (await client.post(f"/heroes{slash}", json=HERO)).status_code == 200
        assert (await client.get(f"/heroes{slash}")).status_code == 200

    async def test_an_item(self, client: httpx.AsyncClient, slash: str) -> None:
        await client.post("/heroes/", json=HERO)
        path = f"/heroes/1{slash}"
        assert (await client.get(path)).status_code == 200
        assert (await client.patch(path, json={"age": 1})).status_code == 200
        assert (await client.delete(path)).status_code == 200

    async def test_a_probe(self, client: httpx.AsyncClient, slash: str) -> None:
        assert (await client.get(f"/livez{slash}")).status_code == 200
        assert (await client.get(f"/readyz{slash}")).status_code == 200


async def test_two_slashes_are_no_spelling_of_one(client: httpx.AsyncClient) -> None:
    assert (await client.get("/heroes//")).status_code == 404


async def test_the_documentation_shows_each_operation_once_in_the_spelling_of_its_route(
    client: httpx.AsyncClient,
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert paths.keys() >= {"/heroes/", "/heroes/{hero_id}", "/livez", "/readyz"}
    assert paths["/heroes/"].keys() == {"get", "post"}
    assert paths.keys().isdisjoint({"/heroes", "/heroes/{hero_id}/", "/livez/", "/readyz/"})


async def test_an_operation_is_one_route_whatever_its_spelling(app: FastAPI) -> None:
    """A second route for the other spelling would be one more for every request to be matched with."""
    operations = [(route.path, *sorted(route.methods or ())) for route in app.routes if isinstance(route, APIRoute)]
    assert len(set(operations)) == len(operations)
    assert {path.rstrip("/") for path, _ in operations} == {
        "/heroes",
        "/heroes/batch",
        "/heroes/export",
        "/heroes/{hero_id}",
        "/livez",
        "/readyz",
    }


async def test_the_root_leads_to_the_documentation_wherever_a_proxy_has_put_it(app: FastAPI) -> None:
    for root in ("", "/api"):
        app.root_path = root
        async with running(app) as client:
            response = await client.get(f"{root}/")
            assert response.headers["Location"] == f"{root}/docs"
            assert (await client.get(f"{root}/docs")).status_code == 200


async def test_requests_that_bring_no_id_get_one_each(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/livez")).headers["X-Request-ID"] for _ in range(100)}
    assert len(ids) == 100


ALLOWED = {
    "/heroes/": "GET, HEAD, OPTIONS, POST",
    "/heroes": "GET, HEAD, OPTIONS, POST",
    "/heroes/1": "DELETE, GET, HEAD, OPTIONS, PATCH",
    "/heroes/batch": "OPTIONS, POST",
    "/heroes/batch/": "OPTIONS, POST",
    "/heroes/export": "GET, HEAD, OPTIONS",
    "/livez": "GET, HEAD, OPTIONS",
    "/readyz": "GET, HEAD, OPTIONS",
    "/": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
async def test_what_a_path_answers_is_what_it_says(client: httpx.AsyncClient, path: str, allowed: str) -> None:
    await client.post("/heroes/", json=HERO)
    options = await client.options(path)
    assert (options.status_code, options.headers["Allow"], options.content) == (204, allowed, b"")
    for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT", "TRACE"):
        response = await client.request(method, path, json=HERO)
        assert (response.status_code != 405) == (method in allowed.split(", ")), method
        if response.status_code == 405:
            assert response.headers["Allow"] == allowed


async def test_a_path_that_is_written_out_is_no_value_of_another_ones_parameter(client: httpx.AsyncClient) -> None:
    for path in ("/heroes/batch", "/heroes/batch/", "/heroes/export/"):
        assert (await client.patch(path, json={})).status_code == 405
    for path in ("/heroes/batches", "/heroes/exports", "/heroes/Batch"):
        assert (await client.get(path)).status_code == 422


@pytest.mark.parametrize(
    "path", ["/heroes/", "/heroes/1", "/heroes/9", "/heroes/x", "/heroes/export", "/livez", "/readyz", "/docs", "/"]
)
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    await client.post("/heroes/", json=HERO)
    headers = {"X-Request-ID": "x"}
    got, head = await client.get(path, headers=headers), await client.head(path, headers=headers)
    assert (head.status_code, head.headers, head.content) == (got.status_code, got.headers, b"")


def test_a_connection_goes_on_after_a_head(url: URL, tmp_path: Path) -> None:
    with launched(url, tmp_path / "log") as service, connections(service.port, 1) as (connection,):
        for _ in range(3):
            connection.sendall(head("HEAD /heroes/export"))
            with closing(HTTPResponse(connection, method="HEAD")) as response:
                response.begin()
                assert (response.status, response.read()) == (200, b"")
            assert get(connection) == 200


def test_a_prefix_is_left_out_once_and_only_as_whole_words() -> None:
    for root, path, own in (
        ("/api", "/api/rows/", "/api/rows/"),
        ("/api", "/rows/", "/api/rows/"),
        ("/ro", "/rows/", "/ro/rows/"),
    ):
        assert own_path(Request({"type": "http", "root_path": root, "path": path})) == own


class TestCORS:
    ORIGIN: ClassVar[dict[str, str]] = {"Origin": "https://heroes.example"}
    PREFLIGHT: ClassVar[dict[str, str]] = {
        **ORIGIN,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type, idempotency-key, if-match",
    }

    async def test_it_is_off(self, client: httpx.AsyncClient) -> None:
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
            response = await client.post("/heroes/", json=HERO, headers=self.ORIGIN)
            assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
            exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
            assert exposed == {"ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count"}
            other = await client.get("/heroes/", headers={"Origin": "https://evil.example"})
            assert "Access-Control-Allow-Origin" not in other.headers

    async def test_errors_can_be_read_too(self, url: URL) -> None:
        settings = Settings(database_url=url, cors_origins=("https://heroes.example",))
        async with running(create_app(settings)) as client:
            for path in ("/heroes/9", "/heroes/x", "/nowhere"):
                response = await client.get(path, headers=self.ORIGIN)
                assert response.headers["Access-Control-Allow-Origin"] == "https://heroes.example"
                assert response.headers["X-Request-ID"]
