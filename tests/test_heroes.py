"""The responses of each operation on heroes."""

from typing import Any

import httpx
import pytest
from sqlalchemy import URL, insert

from app.heroes.models import Hero
from tests.support.sql import run_in_transaction

DEADPOND: dict[str, Any] = {"name": "Deadpond", "secret_name": "Dive Wilson"}
RUSTY_MAN: dict[str, Any] = {"name": "Rusty-Man", "age": 48, "secret_name": "Tommy Sharp"}


async def create(client: httpx.AsyncClient, **hero: Any) -> int:
    response = await client.post("/heroes/", json=DEADPOND | hero)
    assert response.status_code == 200
    hero_id: int = response.json()["id"]
    return hero_id


class TestCreate:
    async def test_a_created_hero_is_returned_with_its_id_and_without_its_secret_name(
        self, client: httpx.AsyncClient
    ) -> None:
        response = await client.post("/heroes/", json=RUSTY_MAN)
        assert response.status_code == 200
        assert response.json().items() >= {"name": "Rusty-Man", "age": 48, "id": 1}.items()
        assert "secret_name" not in response.json()

    async def test_the_age_of_a_hero_created_without_one_is_null(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json=DEADPOND)
        assert (response.status_code, response.json()["age"]) == (200, None)

    async def test_unknown_fields_are_ignored_and_the_database_generates_the_id(
        self, client: httpx.AsyncClient
    ) -> None:
        response = await client.post("/heroes/", json=DEADPOND | {"id": 77, "unknown": "puns"})
        assert (response.status_code, response.json()["id"]) == (200, 1)
        assert "unknown" not in response.json()

    async def test_a_hero_without_a_required_field_is_422(self, client: httpx.AsyncClient) -> None:
        for missing in ("name", "secret_name"):
            response = await client.post("/heroes/", json={k: v for k, v in DEADPOND.items() if k != missing})
            assert response.status_code == 422
            assert response.json()["detail"][0]["loc"] == ["body", missing]
        assert (await client.get("/heroes/")).json() == []

    async def test_a_hero_with_an_invalid_value_is_422(self, client: httpx.AsyncClient) -> None:
        for invalid in ({"name": ""}, {"name": "x" * 256}, {"secret_name": ""}, {"age": -1}, {"age": 2**31}):
            response = await client.post("/heroes/", json=DEADPOND | invalid)
            assert response.status_code == 422, invalid
        assert (await client.get("/heroes/")).json() == []

    async def test_the_longest_names_and_the_highest_age_are_stored(self, client: httpx.AsyncClient) -> None:
        widest = {"name": "\N{ROCKET}" * 255, "age": 2**31 - 1}
        response = await client.post("/heroes/", json=widest | {"secret_name": "x" * 255})
        assert response.json().items() >= widest.items()

    async def test_the_id_of_a_deleted_hero_is_not_reused(self, client: httpx.AsyncClient) -> None:
        first = await create(client)
        await client.delete(f"/heroes/{first}")
        assert await create(client) > first


class TestList:
    async def test_the_list_of_an_empty_table_is_empty(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/heroes/")
        assert (response.status_code, response.content) == (200, b"[]")

    async def test_the_list_is_in_the_order_of_ids_regardless_of_updates(self, client: httpx.AsyncClient) -> None:
        ids = [await create(client, name=name) for name in ("c", "a", "b")]
        await client.patch(f"/heroes/{ids[0]}", json={"age": 1})
        assert [hero["id"] for hero in (await client.get("/heroes/")).json()] == ids

    async def test_offset_and_limit_select_a_page(self, client: httpx.AsyncClient) -> None:
        ids = [await create(client) for _ in range(5)]
        page = await client.get("/heroes/", params={"offset": 1, "limit": 3})
        assert [hero["id"] for hero in page.json()] == ids[1:4]

    async def test_a_page_holds_at_most_100_heroes(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/batch", json=[DEADPOND] * 101)
        assert len((await client.get("/heroes/")).json()) == 100
        assert (await client.get("/heroes/", params={"limit": 101})).status_code == 422

    async def test_a_limit_of_0_is_an_empty_page(self, client: httpx.AsyncClient) -> None:
        await create(client)
        assert (await client.get("/heroes/", params={"limit": 0})).json() == []

    async def test_an_invalid_page_is_422(self, client: httpx.AsyncClient) -> None:
        for query in ("limit=-1", "offset=-1", "offset=9223372036854775808", "limit=ten"):
            assert (await client.get(f"/heroes/?{query}")).status_code == 422, query


class TestRead:
    async def test_a_hero_is_returned_without_its_secret_name(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.get(f"/heroes/{hero_id}")
        assert response.status_code == 200
        assert response.json().items() >= {"name": "Deadpond", "age": None, "id": hero_id}.items()
        assert "secret_name" not in response.json()

    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient) -> None:
        for hero_id in (1, 0, -1, 2**31, 2**63 - 1, -(2**63)):
            response = await client.get(f"/heroes/{hero_id}")
            assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}'), hero_id

    async def test_an_invalid_id_is_422(self, client: httpx.AsyncClient) -> None:
        for hero_id in ("deadpond", "1.5", 2**63, -(2**63) - 1):
            assert (await client.get(f"/heroes/{hero_id}")).status_code == 422, hero_id


class TestUpdate:
    async def test_a_patch_changes_only_the_fields_sent(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        response = await client.patch(f"/heroes/{hero_id}", json={"name": "Deadpuddle"})
        assert response.status_code == 200
        assert response.json().items() >= {"name": "Deadpuddle", "age": 30, "id": hero_id}.items()
        assert (await client.get(f"/heroes/{hero_id}")).json() == response.json()

    async def test_a_patch_can_set_the_age_to_null(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        assert (await client.patch(f"/heroes/{hero_id}", json={"age": None})).json()["age"] is None

    async def test_an_empty_patch_changes_nothing(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        before = (await client.get(f"/heroes/{hero_id}")).json()
        response = await client.patch(f"/heroes/{hero_id}", json={})
        assert (response.status_code, response.json()) == (200, before)

    async def test_unknown_fields_are_ignored(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.patch(f"/heroes/{hero_id}", json={"id": 5, "unknown": "puns"})
        assert (response.status_code, response.json()["id"]) == (200, hero_id)

    async def test_a_patch_with_an_invalid_value_is_422_and_changes_nothing(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        before = (await client.get(f"/heroes/{hero_id}")).json()
        changes: list[dict[str, Any]] = [{"name": None}, {"secret_name": None}, {"name": ""}, {"age": -1}]
        for change in changes:
            response = await client.patch(f"/heroes/{hero_id}", json={"name": "changed", "age": 1} | change)
            assert response.status_code == 422, change
        assert (await client.get(f"/heroes/{hero_id}")).json() == before

    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient) -> None:
        for changes in ({}, {"name": "Deadpuddle"}):
            response = await client.patch("/heroes/1", json=changes)
            assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}'), changes


class TestDelete:
    async def test_a_deleted_hero_is_404_afterwards(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.delete(f"/heroes/{hero_id}")
        assert (response.status_code, response.content) == (200, b'{"ok":true}')
        assert (await client.get(f"/heroes/{hero_id}")).status_code == 404

    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient) -> None:
        response = await client.delete("/heroes/1")
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')


class TestRowsOutsideTheLimits:
    """A table from before the limits can hold rows outside them, which are served like all others."""

    @pytest.fixture
    def stored(self, url: URL) -> list[dict[str, Any]]:
        """Rows inserted directly into the database."""
        names = ("x" * 2000, "", "\N{ROCKET}" * 300)
        rows = [{"name": name, "age": -5, "id": hero_id} for hero_id, name in enumerate(names, start=7)]
        statement = insert(Hero).values([row | {"secret_name": row["name"]} for row in rows])
        run_in_transaction(url, lambda connection: connection.execute(statement))
        return rows

    async def test_they_are_read_and_listed(self, stored: list[dict[str, Any]], client: httpx.AsyncClient) -> None:
        read = [(await client.get(f"/heroes/{row['id']}")).json() for row in stored]
        assert all(hero.items() >= row.items() for hero, row in zip(read, stored, strict=True))
        assert (await client.get("/heroes/")).json() == read

    async def test_a_patch_keeps_the_fields_outside_the_limits_that_it_does_not_send(
        self, stored: list[dict[str, Any]], client: httpx.AsyncClient
    ) -> None:
        for row in stored:
            path = f"/heroes/{row['id']}"
            read = (await client.get(path)).json()
            assert read.items() >= row.items()
            assert (await client.patch(path, json={})).json() == read
            assert (await client.patch(path, json={"age": 5})).json() == read | {"age": 5}
            assert (await client.patch(path, json={"name": "new"})).json() == read | {"name": "new", "age": 5}

    async def test_they_can_be_deleted(self, stored: list[dict[str, Any]], client: httpx.AsyncClient) -> None:
        for row in stored:
            assert (await client.delete(f"/heroes/{row['id']}")).status_code == 200
        assert (await client.get("/heroes/")).json() == []
