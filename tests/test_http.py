"""What every path has in common."""

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.conftest import running

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
    assert {path.rstrip("/") for path, _ in operations} == {"", "/heroes", "/heroes/{hero_id}", "/livez", "/readyz"}


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
