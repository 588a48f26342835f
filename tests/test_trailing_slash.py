"""Both spellings of a path, with and without a slash at its end, get the same response, and neither redirects."""

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from app import health
from app.heroes import routes as heroes
from app.trailing_slash import answer_both_spellings, location, other_spelling, own_path
from tests.support.app_client import running
from tests.support.heroes import DEADPOND


@pytest.mark.parametrize("slash", ["", "/"], ids=["without", "with"])
class TestBothSpellings:
    async def test_a_collection(self, client: httpx.AsyncClient, slash: str) -> None:
        assert (await client.post(f"/heroes{slash}", json=DEADPOND)).status_code == 200
        assert (await client.get(f"/heroes{slash}")).status_code == 200

    async def test_an_item(self, client: httpx.AsyncClient, slash: str) -> None:
        await client.post("/heroes/", json=DEADPOND)
        path = f"/heroes/1{slash}"
        assert (await client.get(path)).status_code == 200
        assert (await client.patch(path, json={"age": 1})).status_code == 200
        assert (await client.delete(path)).status_code == 200

    async def test_a_probe(self, client: httpx.AsyncClient, slash: str) -> None:
        assert (await client.get(f"/livez{slash}")).status_code == 200
        assert (await client.get(f"/readyz{slash}")).status_code == 200

    async def test_a_path_that_no_route_has(self, client: httpx.AsyncClient, slash: str) -> None:
        assert (await client.get(f"/nowhere{slash}")).json() == {"detail": "Not Found"}


@pytest.mark.parametrize("path", ["/heroes//", "//heroes", "//", "///"])
async def test_a_path_with_two_slashes_is_not_a_spelling_of_one_with_one(client: httpx.AsyncClient, path: str) -> None:
    request = httpx.Request("GET", "http://heroes.test")
    request.url = request.url.copy_with(raw_path=path.encode())
    assert (await client.send(request)).status_code == 404


@pytest.mark.parametrize(
    ("path", "other"),
    [("/rows", "/rows/"), ("/rows/", "/rows"), ("/", None), ("//", None), ("/rows//", None), ("", "/")],
)
def test_the_other_spelling_adds_or_removes_one_slash(path: str, other: str | None) -> None:
    assert other_spelling(path) == other


async def test_the_documentation_shows_each_operation_once_in_the_spelling_of_its_route(
    client: httpx.AsyncClient,
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert paths.keys() >= {"/heroes/", "/heroes/{hero_id}", "/livez", "/readyz"}
    assert paths["/heroes/"].keys() == {"get", "post"}
    assert paths.keys().isdisjoint({"/heroes", "/heroes/{hero_id}/", "/livez/", "/readyz/"})


def test_an_operation_is_one_route_whatever_its_spelling() -> None:
    """A second route for the other spelling would be one more for every request to be matched with."""
    routes = [route for router in (heroes.router, health.router) for route in router.routes]
    operations = [(route.path, *sorted(route.methods or ())) for route in routes if isinstance(route, APIRoute)]
    assert len(operations) == len(routes)
    assert len({(path.rstrip("/"), *methods) for path, *methods in operations}) == len(operations)
    assert {path.rstrip("/") for path, *_ in operations} == {
        "/heroes",
        "/heroes/batch",
        "/heroes/export",
        "/heroes/{hero_id:hero}",
        "/livez",
        "/readyz",
    }


async def test_a_route_that_has_the_spelling_itself_is_preferred(app: FastAPI) -> None:
    router = APIRouter()

    @router.get("/rows")
    async def without_slash() -> str:
        return "without"

    @router.get("/rows/")
    async def with_slash() -> str:
        return "with"

    app.include_router(router)
    async with running(app) as client:
        assert (await client.get("/rows")).json() == "without"
        assert (await client.get("/rows/")).json() == "with"


async def test_an_error_is_logged_with_its_route_in_either_spelling(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/failing")
    async def fail() -> None:
        raise RuntimeError

    async with running(app) as client:
        for path in ("/failing", "/failing/"):
            caplog.clear()
            assert (await client.get(path)).status_code == 500
            assert "GET /failing: unhandled RuntimeError" in caplog.text


def test_a_websocket_has_the_spelling_of_its_route_alone() -> None:
    app = FastAPI()
    answer_both_spellings(app)

    @app.websocket("/socket")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    client = TestClient(app)
    with client.websocket_connect("/socket"):
        pass
    for path in ("/socket/", "/"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
            pass


async def test_a_literal_segment_is_not_the_value_of_a_path_parameter(client: httpx.AsyncClient) -> None:
    for path in ("/heroes/batch", "/heroes/batch/", "/heroes/export/"):
        assert (await client.patch(path, json={})).status_code == 405
    for path in ("/heroes/batches", "/heroes/exports", "/heroes/Batch", "/heroes/%7Bhero_id%7D"):
        assert (await client.get(path)).status_code == 422


@pytest.mark.parametrize(
    ("root", "path", "own"),
    [
        ("", "/rows/", "/rows/"),
        ("", "/rows", "/rows"),
        ("/api", "/api/rows/", "/api/rows/"),
        ("/api", "/rows/", "/api/rows/"),
        ("/ro", "/rows/", "/ro/rows/"),
        ("/api/", "/api//rows/", "/api/rows/"),
        ("/", "//rows/", "/rows/"),
        ("/", "/rows", "/rows"),
    ],
)
def test_the_own_path_of_a_request_has_its_root_path_once(root: str, path: str, own: str) -> None:
    assert own_path(Request({"type": "http", "root_path": root, "path": path})) == own


@pytest.mark.parametrize("path", ["/rows", "/rows/"])
def test_the_location_of_a_new_item_is_below_its_collection(path: str) -> None:
    assert location(Request({"type": "http", "root_path": "/api", "path": path}), 7) == "/api/rows/7"
