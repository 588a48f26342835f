"""The API's own documentation tells the truth: all that it says occurs, and nothing else does."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, text

from app.database import create_engine
from app.heroes.routes import MAX_BATCH_BYTES
from app.main import create_app
from app.settings import Settings
from tests.conftest import migrate, running

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}
JSON = {"Content-Type": "application/json"}
Answer = tuple[str, str, int, str]


def declared(schema: dict[str, Any]) -> Iterator[Answer]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                for content_type in response.get("content", [""]):
                    yield method.upper(), path, int(status), content_type


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(2):
        yield b" " * MAX_BATCH_BYTES


async def ask(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> set[Answer]:
    """Ask for both forms of an answer, and note which operation gave which."""
    answers = set()
    for accept in ("application/json", "application/problem+json"):
        headers = {"Accept": accept, **options.pop("headers", JSON)}
        response = await client.request(method, path, headers=headers, **options)
        options["headers"] = {name: value for name, value in headers.items() if name != "Accept"}
        template = re.sub(r"/heroes/(?!batch|export)[^/]+", "/heroes/{hero_id}", path.partition("?")[0])
        content_type = response.headers.get("Content-Type", "").partition(";")[0]
        answers.add((method, template, response.status_code, content_type))
    return answers


async def ask_everything(client: httpx.AsyncClient) -> set[Answer]:
    """Ask each operation what it can be asked while the database is well."""
    answers = await ask(client, "GET", "/livez") | await ask(client, "GET", "/readyz")
    answers |= await ask(client, "POST", "/heroes/", json=HERO)
    answers |= await ask(client, "POST", "/heroes/batch", json=[HERO])
    answers |= await ask(client, "GET", "/heroes/export")
    answers |= await ask(client, "GET", "/heroes/export?min_age=x")
    answers |= await ask(client, "GET", "/heroes/1", headers={"If-None-Match": "*"})
    for method in ("PATCH", "DELETE"):
        answers |= await ask(client, method, "/heroes/1", json=HERO, headers=JSON | {"If-Match": '"99"'})
    for path in ("/heroes/1", "/heroes/99", "/heroes/x"):
        answers |= await ask(client, "GET", path)
        answers |= await ask(client, "PATCH", path, json=HERO)
    answers |= await ask(client, "GET", "/heroes/")
    answers |= await ask(client, "GET", "/heroes/?limit=x")
    for method, path in (("POST", "/heroes/"), ("PATCH", "/heroes/1"), ("POST", "/heroes/batch")):
        answers |= await ask(client, method, path, content=b"{")
        answers |= await ask(client, method, path, content=b"[]")
        answers |= await ask(client, method, path, content=b" " * (MAX_BATCH_BYTES + 1))
        for accept in ("application/json", "application/problem+json"):
            headers = {"Accept": accept, **JSON}
            response = await client.request(method, path, content=chunks(), headers=headers)
            template = re.sub("1$", "{hero_id}", path)
            answers.add((method, template, response.status_code, response.headers["Content-Type"]))
    for path in ("/heroes/x", "/heroes/1", "/heroes/2", "/heroes/2"):
        answers |= await ask(client, "DELETE", path)
    return answers


async def ask_operations(client: httpx.AsyncClient) -> set[Answer]:
    """Ask each operation once."""
    answers = set()
    for method, path in (("POST", "/heroes/"), ("GET", "/heroes/"), ("GET", "/heroes/export")):
        answers |= await ask(client, method, path, json=HERO)
    answers |= await ask(client, "POST", "/heroes/batch", json=[HERO])
    for method in ("GET", "PATCH", "DELETE"):
        answers |= await ask(client, method, "/heroes/1", json=HERO)
    return answers


async def test_every_answer_is_declared_and_every_declared_answer_occurs(empty_url: URL) -> None:
    app = create_app(Settings(database_url=empty_url))
    async with running(app) as client:
        answers = await ask_operations(client) | await ask(client, "GET", "/readyz")
        await asyncio.to_thread(migrate, empty_url)
        await client.get("/readyz")
        answers |= await ask_everything(client)
        engine = create_engine(empty_url, {})
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE hero RENAME TO hidden"))
        await engine.dispose()
        answers |= await ask_operations(client)
        asked = {path for _, path, _, _ in answers}
        assert asked == {"/heroes/", "/heroes/batch", "/heroes/export", "/heroes/{hero_id}", "/livez", "/readyz"}
        schema = (await client.get("/openapi.json")).json()
        assert answers == {answer for answer in declared(schema) if answer[1] in asked}


async def test_every_answer_has_the_form_that_is_declared(client: httpx.AsyncClient) -> None:
    """One of each form, looked at in full; the fuzzer looks at many more."""
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert not any("$defs" in schema for schema in schemas.values())
    created = (await client.post("/heroes/", json=HERO)).json()
    invalid = (await client.post("/heroes/", json={})).json()
    problem = (await client.post("/heroes/", json={}, headers={"Accept": "application/problem+json"})).json()
    missing = (await client.get("/heroes/99")).json()
    for name, answer in {
        "HeroPublic": created,
        "InvalidInput": invalid,
        "InvalidValue": invalid["detail"][0],
        "Problem": problem,
        "Error": missing,
    }.items():
        assert set(schemas[name]["required"]) <= answer.keys() <= schemas[name]["properties"].keys()


async def test_operations_have_names_that_a_client_can_have_as_functions(client: httpx.AsyncClient) -> None:
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


async def test_what_can_be_sent_is_described_with_its_limits_and_an_example(client: httpx.AsyncClient) -> None:
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
                if value["type"] == "integer":
                    assert {"maximum", "minimum"} <= value.keys()


async def test_what_no_client_sends_is_not_in_what_it_can_send(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert "secret_name" not in schemas["HeroPublic"]["properties"]
    assert schemas["HeroUpdate"].get("required", []) == []
    assert {"type": "null"} not in schemas["HeroUpdate"]["properties"]["name"].get("anyOf", [])


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_it_can_be_read(client: httpx.AsyncClient, page: str) -> None:
    assert (await client.get(page)).status_code == 200
