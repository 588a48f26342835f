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

    @pytest.mark.parametrize("missing", ["name", "secret_name"])
    async def test_a_hero_without_a_required_field_is_422(self, client: httpx.AsyncClient, missing: str) -> None:
        response = await client.post("/heroes/", json={k: v for k, v in DEADPOND.items() if k != missing})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", missing]
        assert (await client.get("/heroes/")).json() == []

    @pytest.mark.parametrize(
        "invalid", [{"name": ""}, {"name": "x" * 256}, {"secret_name": ""}, {"age": -1}, {"age": 2**31}], ids=str
    )
    async def test_a_hero_with_an_invalid_value_is_422(
        self, client: httpx.AsyncClient, invalid: dict[str, object]
    ) -> None:
        response = await client.post("/heroes/", json=DEADPOND | invalid)
        assert response.status_code == 422
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
        for _ in range(101):
            await create(client)
        assert len((await client.get("/heroes/")).json()) == 100
        assert (await client.get("/heroes/", params={"limit": 101})).status_code == 422

    async def test_a_limit_of_0_is_an_empty_page(self, client: httpx.AsyncClient) -> None:
        await create(client)
        assert (await client.get("/heroes/", params={"limit": 0})).json() == []

    @pytest.mark.parametrize("query", ["limit=-1", "offset=-1", "offset=9223372036854775808", "limit=ten"])
    async def test_an_invalid_page_is_422(self, client: httpx.AsyncClient, query: str) -> None:
        assert (await client.get(f"/heroes/?{query}")).status_code == 422


class TestRead:
    async def test_a_hero_is_returned_without_its_secret_name(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.get(f"/heroes/{hero_id}")
        assert response.status_code == 200
        assert response.json().items() >= {"name": "Deadpond", "age": None, "id": hero_id}.items()
        assert "secret_name" not in response.json()

    @pytest.mark.parametrize("hero_id", [1, 0, -1, 2**31, 2**63 - 1, -(2**63)])
    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient, hero_id: int) -> None:
        response = await client.get(f"/heroes/{hero_id}")
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')

    @pytest.mark.parametrize("hero_id", ["deadpond", "1.5", str(2**63), str(-(2**63) - 1)])
    async def test_an_invalid_id_is_422(self, client: httpx.AsyncClient, hero_id: str) -> None:
        assert (await client.get(f"/heroes/{hero_id}")).status_code == 422


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

    @pytest.mark.parametrize("change", [{"name": None}, {"secret_name": None}, {"name": ""}, {"age": -1}], ids=str)
    async def test_a_patch_with_an_invalid_value_is_422_and_changes_nothing(
        self, client: httpx.AsyncClient, change: dict[str, object]
    ) -> None:
        hero_id = await create(client)
        before = (await client.get(f"/heroes/{hero_id}")).json()
        response = await client.patch(f"/heroes/{hero_id}", json={"name": "changed", "age": 1} | change)
        assert response.status_code == 422
        assert (await client.get(f"/heroes/{hero_id}")).json() == before

    @pytest.mark.parametrize("changes", [{}, {"name": "Deadpuddle"}], ids=str)
    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient, changes: dict[str, object]) -> None:
        response = await client.patch("/heroes/1", json=changes)
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')


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

    @pytest.fixture(params=["x" * 2000, "", "\N{ROCKET}" * 300], ids=["long", "empty", "wide"])
    def stored(self, url: URL, request: pytest.FixtureRequest) -> dict[str, Any]:
        """A row inserted directly into the database."""
        row = {"name": request.param, "age": -5, "id": 7}

        statement = insert(Hero).values(row | {"secret_name": request.param})
        run_in_transaction(url, lambda connection: connection.execute(statement))
        return row

    async def test_a_row_outside_the_limits_is_read_and_listed(
        self, stored: dict[str, Any], client: httpx.AsyncClient
    ) -> None:
        read = (await client.get("/heroes/7")).json()
        assert read.items() >= stored.items()
        assert (await client.get("/heroes/")).json() == [read]

    async def test_a_patch_keeps_the_fields_outside_the_limits_that_it_does_not_send(
        self, stored: dict[str, Any], client: httpx.AsyncClient
    ) -> None:
        read = (await client.get("/heroes/7")).json()
        assert read.items() >= stored.items()
        assert (await client.patch("/heroes/7", json={})).json() == read
        assert (await client.patch("/heroes/7", json={"age": 5})).json() == read | {"age": 5}
        assert (await client.patch("/heroes/7", json={"name": "new"})).json() == read | {"name": "new", "age": 5}

    async def test_a_row_outside_the_limits_is_deleted(self, stored: dict[str, Any], client: httpx.AsyncClient) -> None:
        assert (await client.delete(f"/heroes/{stored['id']}")).status_code == 200
        assert (await client.get("/heroes/")).json() == []
