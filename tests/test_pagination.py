"""Pagination: the order and filters of a list, its headers, and pages that neither skip nor repeat a row."""

import asyncio
import base64
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import create_model
from sqlalchemy import JSON, URL, Column, Integer, MetaData, String, Table, bindparam, text

from app.database import build_engine
from app.keyset import KeysetPaginator
from app.pagination import PageQuery
from tests.support.lists import Rows, ids_of, in_order, walk
from tests.support.sql import POOLER

SORTS = ("id", "-id", "name", "-name", "age", "-age")
FILTERS = (
    "name=twin",
    "min_age=2",
    "max_age=5",
    "min_age=2&max_age=5",
    "name=twin&min_age=2",
    "name=twin&max_age=6",
)


def wanted(heroes: Rows, query: str) -> Rows:
    """The heroes that a list with these filters has."""
    limits = {name: values[0] for name, values in parse_qs(query).items()}
    return [
        hero
        for hero in heroes
        if limits.get("name", hero["name"]) == hero["name"]
        and ("min_age" not in limits or (hero["age"] is not None and hero["age"] >= int(limits["min_age"])))
        and ("max_age" not in limits or (hero["age"] is not None and hero["age"] <= int(limits["max_age"])))
    ]


def next_page(response: httpx.Response) -> str | None:
    """The path of the next page, if there is one."""
    link = response.headers.get("Link")
    if link is None:
        return None
    path, relation = link.split("; ")
    assert relation == 'rel="next"'
    return str(path[1:-1])


async def create(client: httpx.AsyncClient, heroes: Rows) -> Rows:
    created: Rows = []
    for first in range(0, len(heroes), 1000):
        response = await client.post("/heroes/batch", json=heroes[first : first + 1000])
        assert response.status_code == 200, response.text
        created += response.json()
    return created


def some_heroes(number: int) -> Iterator[dict[str, Any]]:
    """Heroes with ties in every field, and with ages that are missing."""
    names = ["twin", "Twin", "twín", "twi", "z", "\N{ROCKET}", "~"]
    for count in range(number):
        age = None if count % 4 == 0 else count * 7 % 9
        yield {"name": names[count * 5 % len(names)], "age": age, "secret_name": "x"}


class TestOrder:
    @pytest.fixture
    async def heroes(self, client: httpx.AsyncClient) -> Rows:
        return await create(client, list(some_heroes(60)))

    async def test_every_sort_is_a_total_order_in_pages_of_any_length(
        self, client: httpx.AsyncClient, heroes: Rows
    ) -> None:
        for sort in SORTS:
            for limit in (3, 20):
                found = await walk(client, f"/heroes/?sort={sort}&limit={limit}")
                assert ids_of(found) == ids_of(in_order(heroes, sort)), (sort, limit)

    async def test_every_sort_with_every_filter_is_a_total_order(self, client: httpx.AsyncClient, heroes: Rows) -> None:
        for sort, query in itertools.product(SORTS, FILTERS):
            found = await walk(client, f"/heroes/?sort={sort}&limit=4&{query}")
            assert len(found) > 4, query
            assert ids_of(found) == ids_of(in_order(wanted(heroes, query), sort)), (sort, query)

    async def test_a_page_by_offset_is_of_the_same_order_and_continues_by_cursor(
        self, client: httpx.AsyncClient, heroes: Rows
    ) -> None:
        for sort in SORTS:
            found = await walk(client, f"/heroes/?sort={sort}&offset=33&limit=20")
            assert ids_of(found) == ids_of(in_order(heroes, sort))[33:]

    async def test_an_exact_count_is_of_all_pages_and_only_on_request(
        self, client: httpx.AsyncClient, heroes: Rows
    ) -> None:
        for query in ("", *FILTERS):
            response = await client.get(f"/heroes/?limit=3&count=exact&{query}")
            assert response.headers["X-Total-Count"] == str(len(wanted(heroes, query)))
            again = next_page(response)
            assert again is None or "count=exact" in again
        assert "X-Total-Count" not in (await client.get("/heroes/")).headers


async def test_the_collation_of_names_does_not_depend_on_the_database(postgres_url: URL) -> None:
    engine = build_engine(postgres_url, {}, pooler=POOLER)
    async with engine.connect() as connection:
        collation = await connection.scalar(
            text(
                "SELECT collname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation"
                " WHERE attrelid = 'hero'::regclass AND attname = 'name'"
            )
        )
    await engine.dispose()
    assert collation == "C"


class TestLink:
    async def test_every_page_but_the_last_has_a_link(self, client: httpx.AsyncClient) -> None:
        await create(client, list(some_heroes(3)))
        assert next_page(await client.get("/heroes/?limit=2"))
        assert next_page(await client.get("/heroes/?limit=3")) is None
        assert next_page(await client.get("/heroes/?limit=0")) is None
        assert next_page(await client.get("/heroes/?limit=2&offset=1")) is None
        assert next_page(await client.get(f"/heroes/?offset={2**63 - 1}")) is None

    @pytest.mark.parametrize("path", ["/heroes", "/heroes/"])
    async def test_a_link_has_the_path_that_the_client_sent_and_not_its_host(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        await create(client, list(some_heroes(3)))
        await create(client, [{"name": "twin", "secret_name": "x"}])
        response = await client.get(f"{path}?limit=1&sort=-age&name=twin&x=y", headers={"Host": "evil.test"})
        link = urlsplit(next_page(response) or "")
        assert (link.scheme, link.netloc, link.path) == ("", "", path)
        assert {name: values for name, values in parse_qs(link.query).items() if name != "cursor"} == {
            "limit": ["1"],
            "sort": ["-age"],
            "name": ["twin"],
        }

    async def test_a_link_has_the_parameters_as_the_client_wrote_them(self, client: httpx.AsyncClient) -> None:
        await create(client, [{"name": "é & ü", "age": 5, "secret_name": "x"}] * 3)
        query = "max_age=007&name=%C3%A9+%26+%C3%BC&limit=1"
        link = next_page(await client.get(f"/heroes/?{query}"))
        assert link
        assert link.partition("&cursor=")[0] == f"/heroes/?{query}"
        assert ids_of(await walk(client, link)) == [2, 3]

    async def test_a_link_has_the_path_prefix_that_a_proxy_strips(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app, root_path="/api")
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client,
        ):
            await create(client, list(some_heroes(2)))
            link = next_page(await client.get("/heroes/?limit=1"))
            assert link
            assert link.startswith("/api/heroes/?")
            created = await client.post("/heroes/", json={"name": "x", "secret_name": "x"})
            assert created.headers["Location"] == "/api/heroes/3"

    async def test_a_page_of_the_maximum_length_is_full_and_has_a_link(self, client: httpx.AsyncClient) -> None:
        ages = [*range(101), None]
        heroes = await create(client, [{"name": "x", "age": age, "secret_name": "x"} for age in ages])
        for sort in ("age", "-age"):
            expected = ids_of(in_order(heroes, sort))
            first = await client.get(f"/heroes/?sort={sort}&limit=100")
            assert ids_of(first.json()) == expected[:100]
            link = next_page(first)
            assert link
            assert ids_of(await walk(client, link)) == expected[100:]

    async def test_a_page_behind_an_offset_has_its_rows_and_a_link(self, client: httpx.AsyncClient) -> None:
        heroes = await create(client, [{"name": "x", "age": 5, "secret_name": "x"}] * 103)
        for sort in ("age", "-age"):
            for offset in (1, 101):
                expected = ids_of(in_order(heroes, sort))[offset:]
                page = await client.get(f"/heroes/?sort={sort}&offset={offset}&limit=1")
                assert ids_of(page.json()) == expected[:1]
                link = next_page(page)
                assert link
                assert ids_of(await walk(client, link.replace("limit=1&", "limit=100&"))) == expected[1:]


def forged(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


class TestCursor:
    async def cursor(self, client: httpx.AsyncClient, query: str) -> str:
        link = next_page(await client.get(f"/heroes/?limit=1&{query}"))
        assert link
        return parse_qs(urlsplit(link).query)["cursor"][0]

    async def test_a_cursor_of_another_list_is_refused(self, client: httpx.AsyncClient) -> None:
        await create(client, list(some_heroes(5)))
        cursor = await self.cursor(client, "sort=age")
        assert (await client.get(f"/heroes/?sort=age&cursor={cursor}")).status_code == 200
        for other in ("sort=-age", "sort=age&name=twin", "sort=age&min_age=1", "", "sort=name"):
            response = await client.get(f"/heroes/?cursor={cursor}&{other}")
            assert response.status_code == 422, other
            assert response.json() == {
                "detail": [{"type": "cursor", "loc": ["query"], "msg": "The cursor is not one of this list"}]
            }

    async def test_a_malformed_cursor_is_refused(self, client: httpx.AsyncClient) -> None:
        await create(client, list(some_heroes(5)))
        cursor = await self.cursor(client, "sort=age")
        owner, _, number = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        for garbage in (
            "",
            "x",
            "=",
            "\N{ROCKET}",
            "%00",
            "AAAA",
            cursor[:-3],
            cursor + "x",
            forged(),
            forged(owner),
            forged(owner, 1, 2, 3),
            forged(owner, "1", 2),
            forged(owner, *[True], 2),
            forged(owner, 1.5, 2),
            forged(owner, 2**63, 2),
            forged(owner, 1, 2**63),
            forged(owner, 1, None),
            forged(owner, [1], 2),
            forged([owner], 1, 2),
            forged({}, 1, 2),
            base64.urlsafe_b64encode(b"[" * 20_000).decode(),
            base64.urlsafe_b64encode(b"[1, 1, " + b"9" * 5000 + b"]").decode(),
        ):
            response = await client.get("/heroes/", params={"sort": "age", "cursor": garbage})
            assert response.status_code == 422, garbage[:50]
        name = await self.cursor(client, "sort=name")
        owner = json.loads(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)))[0]
        for value in (None, 1, "\0", "\ud800"):
            response = await client.get("/heroes/", params={"sort": "name", "cursor": forged(owner, value, number)})
            assert response.status_code == 422, value

    async def test_a_cursor_and_an_offset_exclude_each_other(self, client: httpx.AsyncClient) -> None:
        await create(client, list(some_heroes(5)))
        cursor = await self.cursor(client, "")
        response = await client.get(f"/heroes/?cursor={cursor}&offset=0")
        assert response.status_code == 422
        assert response.json()["detail"][0]["type"] == "cursor_and_offset"

    async def test_a_cursor_is_valid_after_its_row_is_deleted(self, client: httpx.AsyncClient) -> None:
        created = await create(client, list(some_heroes(5)))
        first = (await client.get("/heroes/?limit=2")).json()
        link = next_page(await client.get("/heroes/?limit=2"))
        assert link
        for hero in first:
            await client.delete(f"/heroes/{hero['id']}")
        assert ids_of(await walk(client, link)) == ids_of(created[2:])

    async def test_a_cursor_of_an_earlier_release_is_valid(self, client: httpx.AsyncClient) -> None:
        await create(client, [{"name": "x", "age": age, "secret_name": "x"} for age in (31, 32, 32, 32)])
        response = await client.get("/heroes/?limit=2&sort=-age&cursor=WyIxYzFjZjk3NTRlMjAiLDMyLDRd")
        assert ids_of(response.json()) == [3, 2]


class TestDeclaration:
    """What is wrong with a resource's lists is an error when its module is imported."""

    TABLE = Table("thing", MetaData(), Column("id", Integer), Column("name", String), Column("details", JSON))

    def paginator(self) -> KeysetPaginator:
        model = create_model("Thing", id=int, name=str, details=dict[str, Any])
        return KeysetPaginator(model, list(self.TABLE.c), {"name": self.TABLE.c.name == bindparam("name")})

    def test_a_list_can_not_be_sorted_by_json(self) -> None:
        with pytest.raises(TypeError, match=r"a list can't be sorted by thing\.details: JSON"):

            class Query(PageQuery):
                paginator: ClassVar = self.paginator()
                name: str | None = None
                sort: Literal["id", "-details"] = "id"

    def test_a_list_can_only_be_sorted_by_its_columns(self) -> None:
        with pytest.raises(TypeError, match="a list can't be sorted by size: it is none of its columns"):

            class Query(PageQuery):
                paginator: ClassVar = self.paginator()
                name: str | None = None
                sort: Literal["id", "size"] = "id"

    def test_each_filter_has_a_field_and_a_condition(self) -> None:
        with pytest.raises(TypeError, match="Query has the fields color, and its paginator the filters name"):

            class Query(PageQuery):
                paginator: ClassVar = self.paginator()
                color: str | None = None

    def test_a_list_needs_an_id(self) -> None:
        with pytest.raises(TypeError, match="a list needs a column id"):
            KeysetPaginator(create_model("Thing", name=str), [self.TABLE.c.name], {})

    def test_a_list_without_fields_or_without_filters_is_called_so(self) -> None:
        with pytest.raises(TypeError, match="Query has the fields none, and its paginator the filters name"):

            class Query(PageQuery):
                paginator: ClassVar = self.paginator()

        unfiltered = KeysetPaginator(create_model("Thing", id=int), [self.TABLE.c.id], {})
        with pytest.raises(TypeError, match="Query has the fields name, and its paginator the filters none"):

            class Query(PageQuery):  # type: ignore[no-redef]  # no class is left of the first
                paginator: ClassVar = unfiltered
                name: str | None = None


class Writer:
    """Inserts, changes and deletes heroes, but leaves those with an odd id as they are."""

    def __init__(self, client: httpx.AsyncClient, ids: list[int]) -> None:
        self.client, self.mine = client, [number for number in ids if number % 2 == 0]
        self.done = asyncio.Event()
        self.writes = 0

    async def write(self) -> None:
        chance = random.Random(1)  # noqa: S311 - the same each time
        while not self.done.is_set():
            number = chance.choice(self.mine)
            age = chance.choice([None, *range(9)])
            await self.client.patch(f"/heroes/{number}", json={"age": age, "name": chance.choice(["a", "twin", "z"])})
            await self.client.patch(f"/heroes/{number + 1}", json={"secret_name": "changed"})
            await self.client.post("/heroes/", json={"name": "twin", "age": age, "secret_name": "x"})
            if len(self.mine) > 10:
                await self.client.delete(f"/heroes/{self.mine.pop(chance.randrange(len(self.mine)))}")
            self.writes += 4


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["id", "-name", "age"])  # tests/test_sparse_ids.py walks in all, on fewer rows
async def test_a_walk_over_ten_thousand_sees_each_row_that_stays_once_and_in_order(
    client: httpx.AsyncClient, sort: str
) -> None:
    created = await create(client, list(some_heroes(10_000)))
    staying = {hero["id"] for hero in created if hero["id"] % 2}
    writer = Writer(client, [hero["id"] for hero in created])
    writing = asyncio.create_task(writer.write())
    found = await walk(client, f"/heroes/?sort={sort}")
    writer.done.set()
    await writing
    assert writer.writes > 40
    seen = [hero["id"] for hero in found if hero["id"] in staying]
    assert seen == ids_of(in_order([hero for hero in created if hero["id"] in staying], sort))
