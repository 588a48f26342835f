"""The OpenAPI schema declares exactly the responses that occur."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
from sqlalchemy import URL

from app.heroes.routes import MAX_BATCH_SIZE
from app.main import create_app
from app.settings import Settings
from tests.support.alembic_commands import migrate
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.sql import execute

JSON = {"Content-Type": "application/json"}
Response = tuple[str, str, int, str]


def declared_responses(schema: dict[str, Any]) -> Iterator[Response]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                for content_type in response.get("content", [""]):
                    yield method.upper(), path, int(status), content_type


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(2):
        yield b" " * MAX_BATCH_SIZE


async def request(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> set[Response]:
    """Request a response in both error formats, and return each with its operation."""
    responses = set()
    for accept in ("application/json", "application/problem+json"):
        headers = {"Accept": accept, **options.pop("headers", JSON)}
        response = await client.request(method, path, headers=headers, **options)
        options["headers"] = {name: value for name, value in headers.items() if name != "Accept"}
        template = re.sub(r"/heroes/(?!batch|export)[^/]+", "/heroes/{hero_id}", path.partition("?")[0])
        content_type = response.headers.get("Content-Type", "").partition(";")[0]
        responses.add((method, template, response.status_code, content_type))
    return responses


async def request_all_responses(client: httpx.AsyncClient) -> set[Response]:
    """Provoke every response that occurs while the database works."""
    responses = await request(client, "GET", "/livez") | await request(client, "GET", "/readyz")
    responses |= await request(client, "POST", "/heroes/", json=DEADPOND)
    responses |= await request(client, "POST", "/heroes/batch", json=[DEADPOND])
    responses |= await request(client, "GET", "/heroes/export")
    responses |= await request(client, "GET", "/heroes/export?min_age=x")
    responses |= await request(client, "GET", "/heroes/1", headers={"If-None-Match": "*"})
    for method in ("GET", "PATCH", "DELETE"):
        responses |= await request(client, method, "/heroes/1", json=DEADPOND, headers=JSON | {"If-Match": '"99"'})
    for path in ("/heroes/1", "/heroes/99", "/heroes/x"):
        responses |= await request(client, "GET", path)
        responses |= await request(client, "PATCH", path, json=DEADPOND)
    responses |= await request(client, "GET", "/heroes/")
    responses |= await request(client, "GET", "/heroes/?limit=x")
    for method, path in (("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("POST", "/heroes/batch")):
        responses |= await request(client, method, path, content=b"\xff")
        responses |= await request(client, method, path, content=b"{")
        responses |= await request(client, method, path, content=b"[]")
        responses |= await request(client, method, path, content=b" " * (MAX_BATCH_SIZE + 1))
        for accept in ("application/json", "application/problem+json"):
            headers = {"Accept": accept, **JSON}
            response = await client.request(method, path, content=chunks(), headers=headers)
            template = re.sub("1$", "{hero_id}", path)
            responses.add((method, template, response.status_code, response.headers["Content-Type"]))
    for path in ("/heroes/x", "/heroes/1", "/heroes/2", "/heroes/2"):
        responses |= await request(client, "DELETE", path)
    return responses


async def request_all_operations(client: httpx.AsyncClient) -> set[Response]:
    """Send one request to each operation."""
    responses = set()
    for method, path in (("POST", "/heroes/"), ("GET", "/heroes/"), ("GET", "/heroes/export")):
        responses |= await request(client, method, path, json=DEADPOND)
    responses |= await request(client, "POST", "/heroes/batch", json=[DEADPOND])
    for method in ("GET", "PATCH", "DELETE"):
        responses |= await request(client, method, "/heroes/1", json=DEADPOND)
    return responses


async def test_every_response_is_declared_and_every_declared_response_occurs(empty_url: URL) -> None:
    app = create_app(Settings(database_url=empty_url))
    async with running(app) as client:
        responses = await request_all_operations(client) | await request(client, "GET", "/readyz")
        await asyncio.to_thread(migrate, empty_url)
        await client.get("/readyz")
        responses |= await request_all_responses(client)
        await asyncio.to_thread(execute, empty_url, "ALTER TABLE hero RENAME TO hidden")
        responses |= await request_all_operations(client)
        paths_requested = {path for _, path, _, _ in responses}
        assert paths_requested == {
            "/heroes/",
            "/heroes/batch",
            "/heroes/export",
            "/heroes/{hero_id}",
            "/livez",
            "/readyz",
        }
        schema = (await client.get("/openapi.json")).json()
        assert responses == {response for response in declared_responses(schema) if response[1] in paths_requested}


async def test_every_operation_with_a_body_declares_a_limit_of_its_size(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    with_body = [
        operation for operations in paths.values() for operation in operations.values() if "requestBody" in operation
    ]
    assert with_body
    unlimited = [operation["operationId"] for operation in with_body if "413" not in operation["responses"]]
    assert unlimited == [], "give the route a max_body_size, and error_responses(413)"


async def test_every_response_has_the_declared_fields(client: httpx.AsyncClient) -> None:
    """One response for each model; the fuzzer checks many more."""
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert not any("$defs" in schema for schema in schemas.values())
    created = (await client.post("/heroes/", json=DEADPOND)).json()
    invalid = (await client.post("/heroes/", json={})).json()
    problem = (await client.post("/heroes/", json={}, headers={"Accept": "application/problem+json"})).json()
    missing = (await client.get("/heroes/99")).json()
    for name, response in {
        "HeroPublic": created,
        "InvalidInput": invalid,
        "InvalidValue": invalid["detail"][0],
        "Problem": problem,
        "Error": missing,
    }.items():
        assert set(schemas[name]["required"]) <= response.keys() <= schemas[name]["properties"].keys()


async def test_operation_ids_are_valid_function_names(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {operation["operationId"] for operations in paths.values() for operation in operations.values()} >= {
        "create_hero",
        "read_heroes",
        "read_hero",
        "update_hero",
        "delete_hero",
        "is_alive",
        "is_ready",
    }


async def test_every_input_has_a_description_limits_and_an_example(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    for model in ("HeroCreate", "HeroUpdate"):
        for name, described in schema["components"]["schemas"][model]["properties"].items():
            (value, *_) = described.get("anyOf", [described])
            assert value["description"]
            assert value["examples"]
            assert {"maximum", "minimum"} <= value.keys() or {"maxLength", "minLength", "pattern"} <= value.keys(), name
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["description"]
            for parameter in operation.get("parameters", []):
                assert parameter["description"]
                (value, *_) = parameter["schema"].get("anyOf", [parameter["schema"]])
                assert (parameter["schema"] | value).get("examples"), parameter["name"]
                if value.get("type") == "integer":  # an Enum is a reference
                    assert {"maximum", "minimum"} <= value.keys()


async def test_the_models_have_only_what_clients_send_and_receive(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert "secret_name" not in schemas["HeroPublic"]["properties"]
    assert schemas["HeroUpdate"].get("required", []) == []
    assert {"type": "null"} not in schemas["HeroUpdate"]["properties"]["name"].get("anyOf", [])
