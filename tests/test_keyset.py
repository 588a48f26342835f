"""Keyset pagination: lists with columns of any type, in any order, on both databases."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import httpx
import pydantic
import pytest
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import JSON, URL, AsyncAdaptedQueuePool, Index, bindparam, func, insert, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.cursors import Position, encode, fingerprint
from app.database import CodePoints, build_engine
from app.inputs import UTC_DATETIME
from app.keyset import CHUNK, KeysetPaginator
from app.pagination import PageQuery
from app.urls import is_sqlite
from tests.support.databases import Databases
from tests.support.lists import Rows, count, ids_of, in_order, walk
from tests.support.sql import run_in_transaction
from tests.support.statements import recorded_statements


class Status(StrEnum):
    """Its values are in another order than its names, by which both databases sort."""

    CLOSED = "2 closed"
    OPEN = "3 open"
    WAITING = "1 waiting"


class Base(SQLModel, registry=registry()):
    """The tables of this file are not the service's."""


class ItemPublic(Base):
    id: int
    name: str
    created_at: datetime | None
    day: date | None
    active: bool | None
    price: Decimal | None
    weight: float | None
    key: UUID | None
    status: Status | None
    details: dict[str, Any] | None


class ItemDay(BaseModel):
    id: int
    day: date | None = pydantic.Field(alias="date")


SORTS = ("id", "name", "created_at", "day", "active", "price", "weight", "key", "status")


class Item(Base, table=True):
    __table_args__ = tuple(Index(f"ix_item_{name}_id", name, "id") for name in SORTS[1:])

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(sa_type=CodePoints)
    created_at: datetime | None
    day: date | None
    active: bool | None
    price: Decimal | None = Field(max_digits=12, decimal_places=2)
    weight: float | None
    key: UUID | None
    status: Status | None
    details: dict[str, Any] | None = Field(sa_type=JSON(none_as_null=True).with_variant(JSONB(), "postgresql"))


ITEMS = Item.metadata.tables["item"]


class ItemQuery(PageQuery):
    paginator: ClassVar = KeysetPaginator(
        ItemPublic,
        list(ITEMS.c),
        filters={
            "since": ITEMS.c.created_at >= bindparam("since"),
            "day": ITEMS.c.day == bindparam("day"),
            "active": ITEMS.c.active == bindparam("active"),
            "max_price": ITEMS.c.price <= bindparam("max_price"),
            "min_weight": ITEMS.c.weight >= bindparam("min_weight"),
            "key": ITEMS.c.key == bindparam("key"),
            "status": ITEMS.c.status == bindparam("status"),
            "after_id": ITEMS.c.id > bindparam("after_id"),
            "shorter_than": func.length(ITEMS.c.name) < bindparam("shorter_than"),
            "other_price": ITEMS.c.price.is_distinct_from(bindparam("other_price")),
        },
    )

    since: Annotated[datetime, UTC_DATETIME] | None = None
    day: date | None = None
    active: bool | None = None
    max_price: Decimal | None = None
    min_weight: float | None = None
    key: UUID | None = None
    status: Status | None = None
    after_id: int | None = None
    shorter_than: int | None = None
    other_price: Decimal | None = None
    sort: Literal[
        "id", "-id", "name", "-name", "created_at", "-created_at", "day", "-day", "active", "-active",
        "price", "-price", "weight", "-weight", "key", "-key", "status", "-status",
    ] = "id"  # fmt: skip


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
VALUES: dict[str, list[Any]] = {
    "name": ["b", "a", "B", "é"],
    "created_at": [NOON, None, NOON - timedelta(microseconds=1), NOON + timedelta(days=400), NOON + timedelta(hours=1)],
    "day": [date(2026, 1, 1), date(1999, 12, 31), None],
    "active": [True, None, False],
    "price": [
        Decimal("0.10"),
        None,
        Decimal("9999999999.99"),
        Decimal("9999999999.98"),
        Decimal("-5.00"),
        Decimal("20.00"),
    ],
    "weight": [0.1 + 0.2, 0.3, None, 1e300, -7.0, 5e-324],
    "key": [UUID(int=2**127), UUID(int=1), None, UUID(int=2**64 + 5)],
    "status": [Status.WAITING, Status.OPEN, None, Status.CLOSED],
    "details": [{"tags": ["é", 1, None]}, None, {}],
}
ROWS = [
    {"id": number, **{name: values[number * 7 // 3 % len(values)] for name, values in VALUES.items()}}
    for number in range(1, 13)
]


def rendered(rows: Rows) -> list[Any]:
    """The rows as the response model writes them."""
    items = TypeAdapter(list[ItemPublic])
    return list(json.loads(items.dump_json(items.validate_python(rows))))


@pytest.fixture(scope="module")
def items_url(databases: Databases) -> Iterator[URL]:
    """A database with the table, which the tests share."""
    url = databases.empty()
    run_in_transaction(url, Item.metadata.create_all)
    yield url
    databases.drop(url)


@pytest.fixture
async def engine(items_url: URL) -> AsyncIterator[AsyncEngine]:
    engine = build_engine(items_url, {}, poolclass=AsyncAdaptedQueuePool)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM item" if is_sqlite(items_url) else "TRUNCATE item RESTART IDENTITY"))
    yield engine
    await engine.dispose()


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()

    @app.get("/items/", response_model=list[ItemPublic])
    async def read_items(query: Annotated[ItemQuery, Query()], request: Request) -> Response:
        async with AsyncSession(engine) as session:
            return await query.respond(request, session)

    @app.get("/items/export")
    async def export_items() -> Response:
        return StreamingResponse(ItemQuery.paginator.iter_chunks(lambda: AsyncSession(engine), {}))

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://items.test") as client:
        yield client


@pytest.fixture
async def rows(engine: AsyncEngine) -> Rows:
    async with engine.begin() as connection:
        await connection.execute(insert(ITEMS), ROWS)
    return ROWS


class TestColumns:
    async def test_every_type_is_written_by_the_response_model(self, client: httpx.AsyncClient, rows: Rows) -> None:
        response = await client.get("/items/")
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
        assert response.json() == rendered(rows)

    async def test_a_list_without_rows_is_an_empty_array(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/items/")).text == "[]"
        assert (await client.get("/items/?sort=created_at&limit=0")).text == "[]"

    @pytest.mark.parametrize("name", SORTS)
    async def test_every_sort_is_a_total_order_in_pages_of_any_length(
        self, client: httpx.AsyncClient, rows: Rows, name: str
    ) -> None:
        for sort in (name, f"-{name}"):
            ids = ids_of(in_order(rows, sort))
            for limit in (1, 5):
                assert ids_of(await walk(client, f"/items/?sort={sort}&limit={limit}")) == ids, (sort, limit)
            assert ids_of(await walk(client, f"/items/?sort={sort}&limit=4&offset=3")) == ids[3:], sort

    @pytest.mark.parametrize(
        ("query", "wanted"),
        [
            ("since=2026-01-01T14:00:00%2B02:00", lambda row: row["created_at"] and row["created_at"] >= NOON),
            ("day=1999-12-31", lambda row: row["day"] == date(1999, 12, 31)),
            ("active=false", lambda row: row["active"] is False),
            (
                "max_price=9999999999.98",
                lambda row: row["price"] is not None and row["price"] < Decimal("9999999999.99"),
            ),
            ("min_weight=0.30000000000000004", lambda row: row["weight"] is not None and row["weight"] > 0.3),
            (f"key={UUID(int=1)}", lambda row: row["key"] == UUID(int=1)),
            ("status=1 waiting", lambda row: row["status"] == Status.WAITING),
            ("after_id=6", lambda row: row["id"] > 6),
            ("shorter_than=2", lambda row: row),
            ("other_price=20.00", lambda row: row["price"] != Decimal("20.00")),
        ],
        ids=lambda value: value.partition("=")[0] if isinstance(value, str) else "",
    )
    async def test_every_type_is_a_filter_that_the_next_page_keeps(
        self, client: httpx.AsyncClient, rows: Rows, query: str, wanted: Any
    ) -> None:
        kept = [row for row in rows if wanted(row)]
        assert kept
        assert await count(client, query, "/items/") == len(kept)
        for sort in ("id", "-name", "created_at", "-price"):
            found = await walk(client, f"/items/?{query}&sort={sort}&limit={len(kept) // 2}")
            assert ids_of(found) == ids_of(in_order(kept, sort)), sort

    async def test_an_export_is_written_by_the_response_model(self, client: httpx.AsyncClient, rows: Rows) -> None:
        lines = (await client.get("/items/export")).text.splitlines()
        assert [json.loads(line) for line in lines] == rendered(rows)

    async def test_each_chunk_of_an_export_has_a_session_of_its_own(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(insert(ITEMS), [{"name": "x"} for _ in range(CHUNK * 2 + 1)])
        opened: list[AsyncSession] = []

        def sessionmaker() -> AsyncSession:
            opened.append(AsyncSession(engine))
            return opened[-1]

        chunks = [chunk.count("\n") async for chunk in ItemQuery.paginator.iter_chunks(sessionmaker, {})]
        assert chunks == [CHUNK, CHUNK, 1]
        assert len(set(map(id, opened))) == 3

    async def test_a_page_is_one_statement(self, client: httpx.AsyncClient, rows: Rows) -> None:
        assert rows
        for path in ("/items/?limit=1", "/items/?sort=created_at&limit=1", "/items/?sort=created_at&offset=9"):
            with recorded_statements() as statements:
                assert (await client.get(path)).status_code == 200
            assert len([sql for sql, _ in statements if not sql.startswith("BEGIN")]) == 1

    @pytest.mark.parametrize("name", SORTS)
    async def test_every_page_is_read_in_the_order_of_an_index(
        self, client: httpx.AsyncClient, engine: AsyncEngine, rows: Rows, name: str
    ) -> None:
        index = "pkey|PRIMARY KEY|SCAN item$" if name == "id" else f"ix_item_{name}_id"
        for sort in (name, f"-{name}"):
            page = f"/items/?sort={sort}"
            after_value = (await client.get(f"{page}&limit=1")).links["next"]["url"]
            after_null = (await client.get(f"{page}&limit=1&offset={len(rows) - 2}")).links["next"]["url"]
            for path in (page, f"{page}&offset=5", after_value, after_null):
                with recorded_statements() as statements:
                    await client.get(path)
                plan = await explain(engine, *statements[-1])
                assert [line for line in plan if re.search(index, line)], plan
                assert not [line for line in plan if re.search("TEMP B-TREE|Sort|Seq Scan", line)], plan

    async def test_a_page_has_a_link_if_there_is_another_one(self, client: httpx.AsyncClient, rows: Rows) -> None:
        for limit, more in ((0, False), (1, True), (len(rows) - 1, True), (len(rows), False), (100, False)):
            for sort in ("id", "-price"):
                response = await client.get(f"/items/?sort={sort}&limit={limit}")
                assert len(response.json()) == min(limit, len(rows))
                assert ("next" in response.links) is more, (limit, sort)

    async def test_a_model_with_aliases_is_read_by_its_names_and_written_by_its_aliases(
        self, engine: AsyncEngine, rows: Rows
    ) -> None:
        paginator = KeysetPaginator(ItemDay, [ITEMS.c.id, ITEMS.c.day], {})
        async with AsyncSession(engine) as session:
            page = await paginator.read(session, "id", {}, 100)
        written = [{"id": row["id"], "date": row["day"] and row["day"].isoformat()} for row in rows]
        assert [json.loads(line) for line in page.lines.splitlines()] == written


async def explain(engine: AsyncEngine, statement: str, parameters: Any) -> list[str]:
    """Return the lines of a plan. On Postgres it is that of a larger table, which has to use an index."""
    async with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        else:
            for method in ("sort", "seqscan", "bitmapscan"):
                await connection.exec_driver_sql(f"SET LOCAL enable_{method} = off")
            plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return [row[-1] for row in plan]


class TestStorage:
    """On SQLite, rows are compared as they are stored, however Python reads them."""

    async def test_instants_that_sqlite_wrote_itself_are_neither_skipped_nor_repeated(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        """CURRENT_TIMESTAMP has no fraction of a second there, and SQLAlchemy's values always have one."""
        async with engine.begin() as connection:
            await connection.execute(insert(ITEMS), [{"name": "x", "created_at": NOON} for _ in range(3)])
            await connection.execute(
                text("INSERT INTO item (name, created_at) VALUES ('y', CURRENT_TIMESTAMP), ('y', CURRENT_TIMESTAMP)")
            )
        assert ids_of(await walk(client, "/items/?sort=created_at&limit=1")) == [1, 2, 3, 4, 5]
        assert ids_of(await walk(client, "/items/?sort=-created_at&limit=1")) == [5, 4, 3, 2, 1]

    async def test_decimals_with_more_digits_than_declared_are_neither_skipped_nor_repeated(
        self, client: httpx.AsyncClient, engine: AsyncEngine
    ) -> None:
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO item (name, price) VALUES ('x', 1.0 / 3), ('x', 1.0 / 3), ('x', 2)")
            )
        assert ids_of(await walk(client, "/items/?sort=price&limit=1")) == [1, 2, 3]
        assert ids_of(await walk(client, "/items/?sort=-price&limit=1")) == [3, 2, 1]

    async def test_infinite_floats_have_a_place(self, client: httpx.AsyncClient, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            weights = [float("inf"), 1.0, float("-inf"), float("inf"), None]
            await connection.execute(insert(ITEMS), [{"name": "x", "weight": weight} for weight in weights])
        assert ids_of(await walk(client, "/items/?sort=weight&limit=1")) == [3, 2, 1, 4, 5]


class TestCursor:
    SCALARS: tuple[Any, ...] = (
        "", "x", "1", "\0", "NaN", "inf", "1e400", "1e999999", "-1e-999999", "2026-01-01", "2026-13-01",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01 00:00:00", "2026-01-01T00:00:00Z",
        "OPEN", "3 open", str(UUID(int=1)), "true", True, False, None, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**63,
        10**39, 1.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [1], [0, [1], 2],
    )  # fmt: skip

    @pytest.mark.parametrize("name", SORTS)
    async def test_no_forged_value_is_an_error_of_the_server(
        self, client: httpx.AsyncClient, rows: Rows, name: str
    ) -> None:
        assert rows
        await self.try_all(client, name, [Position(scalar, 1) for scalar in self.SCALARS])

    async def test_no_forged_id_is_an_error_of_the_server(self, client: httpx.AsyncClient, rows: Rows) -> None:
        assert rows
        await self.try_all(client, "name", [Position("x", scalar) for scalar in self.SCALARS])

    async def try_all(self, client: httpx.AsyncClient, sort: str, positions: list[Position]) -> None:
        """Send cursors at these positions: some are accepted, and all others refused."""
        statuses = set()
        for position in positions:
            cursor = encode(position, fingerprint(sort, {}))
            response = await client.get("/items/", params={"sort": sort, "cursor": cursor})
            assert response.status_code in {200, 422}, (position, response.text)
            statuses.add(response.status_code)
        assert statuses == {200, 422}

    async def test_a_value_of_another_type_is_refused(self, client: httpx.AsyncClient) -> None:
        others: list[tuple[str, Any]] = [
            *(("created_at", "x"), ("day", "2026-13-01"), ("active", 5), ("price", "x"), ("weight", "x"), ("key", "x")),
            *(("status", "3 open"), ("name", 5), ("id", "5"), ("id", True), ("name", None), ("id", None)),
        ]
        for name, value in others:
            cursor = encode(Position(value, 1), fingerprint(name, {}))
            response = await client.get("/items/", params={"sort": name, "cursor": cursor})
            assert (response.status_code, response.json()["detail"][0]["type"]) == (422, "cursor"), (name, value)
