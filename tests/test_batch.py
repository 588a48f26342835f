"""Batches: many heroes created in one request, all of them or none."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from app.heroes.routes import MAX_BATCH, MAX_BATCH_SIZE
from tests.support.heroes import DEADPOND
from tests.support.lists import count
from tests.support.sql import execute
from tests.support.statements import recorded_statements


def heroes(number: int) -> list[dict[str, Any]]:
    return [
        {"name": f"{count * 7919 % number}", "age": count % 5 or None, "secret_name": "x"} for count in range(number)
    ]


@pytest.mark.parametrize("number", [1, 2, MAX_BATCH])
async def test_the_response_lists_the_heroes_in_the_order_sent_with_ascending_ids(
    client: httpx.AsyncClient, number: int
) -> None:
    sent = heroes(number)
    response = await client.post("/heroes/batch", json=sent)
    assert response.status_code == 200
    created = response.json()
    assert [(hero["name"], hero["age"]) for hero in created] == [(hero["name"], hero["age"]) for hero in sent]
    ids = [hero["id"] for hero in created]
    assert ids == sorted(ids)
    assert (await client.get(f"/heroes/{ids[-1]}")).json() == created[-1]
    assert await count(client) == number


async def test_the_response_is_the_same_json_as_the_list(client: httpx.AsyncClient) -> None:
    response = await client.post("/heroes/batch", json=heroes(3))
    assert response.content == (await client.get("/heroes/")).content
    assert response.headers["Content-Type"] == "application/json"


async def test_the_largest_batch_is_one_statement(client: httpx.AsyncClient) -> None:
    await client.post("/heroes/batch", json=[DEADPOND])
    with recorded_statements() as statements:
        await client.post("/heroes/batch", json=heroes(MAX_BATCH))
    assert len(statements) == 1


async def test_an_invalid_hero_is_located_by_its_index_and_nothing_is_stored(client: httpx.AsyncClient) -> None:
    sent = [*heroes(500), {"name": "", "secret_name": "x"}, *heroes(400)]
    response = await client.post("/heroes/batch", json=sent)
    assert response.status_code == 422
    assert [found["loc"] for found in response.json()["detail"]] == [["body", 500, "name"]]
    assert await count(client) == 0


async def test_an_invalid_batch_is_422(client: httpx.AsyncClient) -> None:
    bodies: list[Any] = [[], heroes(MAX_BATCH + 1), {}, DEADPOND, None, [[]], [None], [DEADPOND, 1]]
    for body in bodies:
        assert (await client.post("/heroes/batch", json=body)).status_code == 422, body
    assert await count(client) == 0


async def test_a_batch_that_is_too_long_has_one_error_whatever_its_items(client: httpx.AsyncClient) -> None:
    (problem,) = (await client.post("/heroes/batch", json=[{}] * 1001)).json()["detail"]
    assert (problem["type"], problem["loc"]) == ("too_long", ["body"])


@pytest.mark.not_citus
async def test_a_constraint_violation_stores_no_hero_of_the_batch(client: httpx.AsyncClient, url: URL) -> None:
    await asyncio.to_thread(execute, url, "CREATE UNIQUE INDEX one_of_a_name ON hero (name)")
    await client.post("/heroes/", json={"name": "3", "secret_name": "x"})
    assert (await client.post("/heroes/batch", json=heroes(5))).status_code == 409
    assert await count(client) == 1


async def test_the_body_of_a_batch_has_a_larger_limit(client: httpx.AsyncClient) -> None:
    long = [{"name": "\N{ROCKET}" * 255, "secret_name": "\N{ROCKET}" * 255}] * MAX_BATCH
    response = await client.post("/heroes/batch", json=long)
    assert len(response.request.content) > 1_000_000
    assert response.status_code == 200
    too_large = b" " * (MAX_BATCH_SIZE + 1)
    headers = {"Content-Type": "application/json"}
    assert (await client.post("/heroes/batch", content=too_large, headers=headers)).status_code == 413
