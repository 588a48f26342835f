"""What the tutorial's client is told, operation by operation."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, insert

from app.database import create_engine
from app.heroes.models import Hero

DEADPOND = {"name": "Deadpond", "secret_name": "Dive Wilson"}
RUSTY_MAN = {"name": "Rusty-Man", "age": 48, "secret_name": "Tommy Sharp"}


async def create(client: httpx.AsyncClient, **hero: Any) -> int:
    response = await client.post("/heroes/", json=DEADPOND | hero)
    assert response.status_code == 200
    hero_id: int = response.json()["id"]
    return hero_id


class TestCreate:
    async def test_a_hero_is_answered_with_its_id_and_without_its_secret(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json=RUSTY_MAN)
        assert (response.status_code, response.content) == (200, b'{"name":"Rusty-Man","age":48,"id":1}')

    async def test_a_hero_without_an_age_has_none(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json=DEADPOND)
        assert (response.status_code, response.content) == (200, b'{"name":"Deadpond","age":null,"id":1}')

    async def test_unknown_fields_are_ignored_and_the_database_makes_the_id(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json=DEADPOND | {"id": 77, "power": "puns"})
        assert (response.status_code, response.json()) == (200, {"name": "Deadpond", "age": None, "id": 1})

    @pytest.mark.parametrize("missing", ["name", "secret_name"])
    async def test_a_hero_without_its_names_is_refused(self, client: httpx.AsyncClient, missing: str) -> None:
        response = await client.post("/heroes/", json={k: v for k, v in DEADPOND.items() if k != missing})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", missing]
        assert (await client.get("/heroes/")).json() == []

    @pytest.mark.parametrize(
        "wrong", [{"name": ""}, {"name": "x" * 256}, {"secret_name": ""}, {"age": -1}, {"age": 2**31}], ids=str
    )
    async def test_what_no_hero_can_be_is_refused(self, client: httpx.AsyncClient, wrong: dict[str, object]) -> None:
        response = await client.post("/heroes/", json=DEADPOND | wrong)
        assert response.status_code == 422
        assert (await client.get("/heroes/")).json() == []

    async def test_the_widest_values_are_kept(self, client: httpx.AsyncClient) -> None:
        widest = {"name": "\N{SUPERHERO}" * 255, "age": 2**31 - 1}
        response = await client.post("/heroes/", json=widest | {"secret_name": "x" * 255})
        assert response.json() == widest | {"id": 1}

    async def test_an_id_is_never_used_twice(self, client: httpx.AsyncClient) -> None:
        first = await create(client)
        await client.delete(f"/heroes/{first}")
        assert await create(client) > first


class TestList:
    async def test_there_are_no_heroes_at_first(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/heroes/")
        assert (response.status_code, response.content) == (200, b"[]")

    async def test_heroes_come_in_the_order_of_their_ids_whatever_was_changed_last(
        self, client: httpx.AsyncClient
    ) -> None:
        ids = [await create(client, name=name) for name in ("c", "a", "b")]
        await client.patch(f"/heroes/{ids[0]}", json={"age": 1})
        assert [hero["id"] for hero in (await client.get("/heroes/")).json()] == ids

    async def test_offset_and_limit_cut_out_a_page(self, client: httpx.AsyncClient) -> None:
        ids = [await create(client) for _ in range(5)]
        page = await client.get("/heroes/", params={"offset": 1, "limit": 3})
        assert [hero["id"] for hero in page.json()] == ids[1:4]

    async def test_a_page_holds_100_heroes_and_no_more(self, client: httpx.AsyncClient) -> None:
        for _ in range(101):
            await create(client)
        assert len((await client.get("/heroes/")).json()) == 100
        assert (await client.get("/heroes/", params={"limit": 101})).status_code == 422

    async def test_a_limit_of_0_is_an_empty_page(self, client: httpx.AsyncClient) -> None:
        await create(client)
        assert (await client.get("/heroes/", params={"limit": 0})).json() == []

    @pytest.mark.parametrize("query", ["limit=-1", "offset=-1", "offset=9223372036854775808", "limit=ten"])
    async def test_a_page_that_can_not_be_is_refused(self, client: httpx.AsyncClient, query: str) -> None:
        assert (await client.get(f"/heroes/?{query}")).status_code == 422


class TestRead:
    async def test_a_hero_is_shown_without_its_secret(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.get(f"/heroes/{hero_id}")
        assert (response.status_code, response.content) == (200, b'{"name":"Deadpond","age":null,"id":1}')

    @pytest.mark.parametrize("hero_id", [1, 0, -1, 2**31, 2**63 - 1, -(2**63)])
    async def test_a_hero_that_is_not_there_is_not_found(self, client: httpx.AsyncClient, hero_id: int) -> None:
        response = await client.get(f"/heroes/{hero_id}")
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')

    @pytest.mark.parametrize("hero_id", ["deadpond", "1.5", str(2**63), str(-(2**63) - 1)])
    async def test_what_is_no_id_is_refused(self, client: httpx.AsyncClient, hero_id: str) -> None:
        assert (await client.get(f"/heroes/{hero_id}")).status_code == 422


class TestUpdate:
    async def test_only_what_is_sent_changes(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        response = await client.patch(f"/heroes/{hero_id}", json={"name": "Deadpuddle"})
        assert (response.status_code, response.json()) == (200, {"name": "Deadpuddle", "age": 30, "id": hero_id})
        assert (await client.get(f"/heroes/{hero_id}")).json() == response.json()

    async def test_an_age_can_be_taken_away(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        assert (await client.patch(f"/heroes/{hero_id}", json={"age": None})).json()["age"] is None

    async def test_nothing_sent_changes_nothing(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client, age=30)
        response = await client.patch(f"/heroes/{hero_id}", json={})
        assert (response.status_code, response.json()) == (200, {"name": "Deadpond", "age": 30, "id": hero_id})

    async def test_unknown_fields_are_ignored(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.patch(f"/heroes/{hero_id}", json={"id": 5, "power": "puns"})
        assert (response.status_code, response.json()["id"]) == (200, hero_id)

    @pytest.mark.parametrize("change", [{"name": None}, {"secret_name": None}, {"name": ""}, {"age": -1}], ids=str)
    async def test_what_no_hero_can_be_is_refused_and_changes_nothing(
        self, client: httpx.AsyncClient, change: dict[str, object]
    ) -> None:
        hero_id = await create(client)
        response = await client.patch(f"/heroes/{hero_id}", json={"name": "changed", "age": 1} | change)
        assert response.status_code == 422
        assert (await client.get(f"/heroes/{hero_id}")).json() == {"name": "Deadpond", "age": None, "id": hero_id}

    @pytest.mark.parametrize("changes", [{}, {"name": "Deadpuddle"}], ids=str)
    async def test_a_hero_that_is_not_there_is_not_found(
        self, client: httpx.AsyncClient, changes: dict[str, object]
    ) -> None:
        response = await client.patch("/heroes/1", json=changes)
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')

    async def test_a_change_and_a_removal_at_once_are_each_done_or_find_nothing(
        self, client: httpx.AsyncClient
    ) -> None:
        for _ in range(20):
            hero_id = await create(client)
            patched, deleted = await asyncio.gather(
                client.patch(f"/heroes/{hero_id}", json={"age": 1}), client.delete(f"/heroes/{hero_id}")
            )
            assert patched.status_code in {200, 404}
            assert deleted.status_code == 200


class TestDelete:
    async def test_a_hero_is_gone_afterwards(self, client: httpx.AsyncClient) -> None:
        hero_id = await create(client)
        response = await client.delete(f"/heroes/{hero_id}")
        assert (response.status_code, response.content) == (200, b'{"ok":true}')
        assert (await client.get(f"/heroes/{hero_id}")).status_code == 404

    async def test_a_hero_that_is_not_there_is_not_found(self, client: httpx.AsyncClient) -> None:
        response = await client.delete("/heroes/1")
        assert (response.status_code, response.content) == (404, b'{"detail":"Hero not found"}')

    async def test_of_three_removals_at_once_one_is_told_that_it_did(self, client: httpx.AsyncClient) -> None:
        for _ in range(20):
            hero_id = await create(client)
            answers = await asyncio.gather(*(client.delete(f"/heroes/{hero_id}") for _ in range(3)))
            assert sorted(answer.status_code for answer in answers) == [200, 404, 404]


class TestRowsFromBeforeTheLimits:
    """An adopted table can hold what is refused today: it is served all the same."""

    @pytest.fixture(params=["x" * 2000, "", "\N{SUPERHERO}" * 300], ids=["long", "empty", "wide"])
    def old(self, url: URL, request: pytest.FixtureRequest) -> dict[str, Any]:
        """A row that was written past the service."""
        row = {"name": request.param, "age": -5, "id": 7}

        async def insert_row() -> None:
            engine = create_engine(url, {})
            async with engine.begin() as connection:
                await connection.execute(insert(Hero).values(row | {"secret_name": request.param}))
            await engine.dispose()

        asyncio.run(insert_row())
        return row

    async def test_it_is_shown_and_listed(self, old: dict[str, Any], client: httpx.AsyncClient) -> None:
        assert (await client.get("/heroes/7")).json() == old
        assert (await client.get("/heroes/")).json() == [old]

    async def test_it_is_changed_where_it_is_sent_and_stays_as_it_was_elsewhere(
        self, old: dict[str, Any], client: httpx.AsyncClient
    ) -> None:
        assert (await client.patch("/heroes/7", json={})).json() == old
        assert (await client.patch("/heroes/7", json={"age": 5})).json() == old | {"age": 5}
        assert (await client.patch("/heroes/7", json={"name": "new"})).json() == {"name": "new", "age": 5, "id": 7}

    async def test_it_is_removed(self, old: dict[str, Any], client: httpx.AsyncClient) -> None:
        assert (await client.delete(f"/heroes/{old['id']}")).status_code == 200
        assert (await client.get("/heroes/")).json() == []
