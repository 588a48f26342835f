"""Every page is read by an index, and from where it begins: on a million heroes, by the databases' own words."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
from sqlalchemy import URL, Connection, text
from sqlmodel import SQLModel

from app.main import create_app
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.sql import run_in_transaction
from tests.support.statements import recorded_statements

pytestmark = pytest.mark.slow

ROWS = 1_000_000
FILL = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE"
    f" x < {ROWS}) SELECT CASE WHEN x % 50 > 0 THEN 'Hero ' || (x * 7919 % 50000) ELSE 'Hero 5 and more' END,"
    " CASE WHEN (x + x / 50000) % 10 > 0 THEN (x * 31 + x / 50000 * 7) % 100 END, 'x' FROM n"
)
SORTS = ("id", "-id", "name", "-name", "age", "-age")
LISTS = [
    *(f"sort={sort}" for sort in SORTS),
    *(f"sort={sort}&name=Hero 77" for sort in SORTS),
    *(f"sort={sort}&min_age=20" for sort in ("age", "-age")),
    *(f"sort={sort}&max_age=70" for sort in ("age", "-age")),
    *(f"sort={sort}&min_age=20&max_age=40" for sort in ("age", "-age")),
]
DEEP = [
    *((f"sort={sort}", ROWS - 200) for sort in SORTS),
    ("sort=age", 449_000),
    ("sort=-age", 449_000),
    ("sort=name", 890_600),
    ("sort=-name", 128_300),
    ("sort=name&name=Hero 5 and more", 19_950),  # and there is no more behind
    ("sort=-name&name=Hero 5 and more", 19_950),
    ("sort=age&name=Hero 5 and more", 9_000),
    ("sort=age&min_age=20", "min_age=20&max_age=96"),
    ("sort=-age&max_age=70", "min_age=4&max_age=70"),
    ("sort=age&max_age=70", 600_000),
    ("sort=-age&min_age=20", 700_000),
    ("sort=age&min_age=20&max_age=40", 180_000),
]
Statement = tuple[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def million(databases: Databases) -> Iterator[URL]:
    """A database with a million heroes, many of one name and one age."""
    url = databases.migrated()
    fill = text(FILL if is_sqlite(url) else FILL.replace("x * 7919", "x::bigint * 7919"))
    indexes = SQLModel.metadata.tables["hero"].indexes

    def fill_before_indexing(connection: Connection) -> None:  # a tenth of the time
        for index in indexes:
            index.drop(connection)
        connection.execute(fill)
        for index in indexes:
            index.create(connection)

    run_in_transaction(url, fill_before_indexing)
    if not is_sqlite(url):

        async def vacuum() -> None:
            connection = await connect(url)
            # The tests' server commits asynchronously. Until that is on disk, VACUUM finds no row visible to all.
            await connection.execute("SET synchronous_commit = on")
            await connection.execute("UPDATE alembic_version SET version_num = version_num")
            await connection.execute("VACUUM ANALYZE hero")
            await connection.close()

        asyncio.run(vacuum())
    yield url
    databases.drop(url)


@pytest.fixture
async def client(million: URL) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(Settings(database_url=million, statement_timeout=60))) as client:
        yield client


async def connect(url: URL) -> asyncpg.Connection:
    return await asyncpg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))


async def statement_of(client: httpx.AsyncClient, path: str) -> tuple[httpx.Response, Statement]:
    """What the database is asked for a page."""
    with recorded_statements() as statements:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    statement, parameters = statements[-1]
    return response, (statement, tuple(parameters))


def cursor_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return parse_qs(urlsplit(response.links["next"]["url"]).query)["cursor"][0]


async def begins(client: httpx.AsyncClient, query: str) -> list[str]:
    """Paths of the list's first page, of one by an offset, and of one behind most of a list, by a cursor."""
    paths = [f"/heroes/?{query}", f"/heroes/?{query}&offset=50"]
    if "name=Hero 77" in query:
        first = await client.get(f"/heroes/?{query}&limit=3")
    else:
        first = await client.get(f"/heroes/?{query}&limit=1&offset={ROWS // 10}")
    cursor = cursor_of(first)
    return [*paths, f"/heroes/?{query}&cursor={cursor}"]


async def nodes(url: URL, statement: Statement, mode: str) -> list[dict[str, Any]]:
    """What Postgres does, planned for these parameters or for any."""
    connection = await connect(url)
    await connection.execute(f"SET plan_cache_mode = force_{mode}_plan")
    await connection.execute(f"PREPARE page AS {statement[0]}")
    values = ", ".join(repr(value) for value in statement[1])
    (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE page({values})")
    await connection.close()
    found: list[dict[str, Any]] = []

    def collect(node: dict[str, Any]) -> None:
        found.append(node)
        for child in node.get("Plans", []):
            collect(child)

    collect(json.loads(row[0])[0]["Plan"])
    return found


def pages(plan: list[dict[str, Any]]) -> int:
    return int(plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"])


def explain(url: URL, statement: Statement) -> list[str]:
    """What SQLite does."""
    with closing(sqlite3.connect(str(url.database))) as connection:
        return [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement[0]}", statement[1])]


def read_pages(url: URL, statement: Statement) -> int:
    """How many pages SQLite reads, with nothing of the file in its own memory."""
    with closing(sqlite3.connect(str(url.database))) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        before = read_bytes()
        connection.execute(*statement).fetchall()
        return (read_bytes() - before) // int(size)


def read_bytes() -> int:
    """How many bytes this thread has read. Others read too, such as that of pytest-xdist."""
    return int(Path("/proc/thread-self/io").read_text().split()[1])


@pytest.mark.parametrize("query", LISTS)
async def test_a_page_is_read_in_the_order_of_an_index(client: httpx.AsyncClient, million: URL, query: str) -> None:
    for path in await begins(client, query):
        _, statement = await statement_of(client, path)
        if is_sqlite(million):
            plan = await asyncio.to_thread(explain, million, statement)
            assert not [line for line in plan if "TEMP B-TREE" in line], path
            assert ("SCAN hero" in plan) <= (query in {"sort=id", "sort=-id"}), path
        else:
            for mode in ("custom", "generic"):
                found = await nodes(million, statement, mode)
                kinds = {node["Node Type"] for node in found}
                assert kinds.isdisjoint({"Sort", "Incremental Sort", "Seq Scan", "Bitmap Heap Scan"}), (path, mode)
                assert all(node.get("Rows Removed by Filter", 0) <= 100 for node in found), (path, mode)


@pytest.mark.parametrize(("query", "offset"), DEEP)
async def test_a_page_deep_in_a_list_or_among_many_alike_costs_no_more_than_the_first(
    client: httpx.AsyncClient, million: URL, query: str, offset: int | str
) -> None:
    """An offset that is a query leads to the last of those alike that it ends with."""
    if isinstance(offset, str):
        offset = int((await client.get(f"/heroes/?count=exact&{offset}")).headers["X-Total-Count"]) - 50
    cursor = cursor_of(await client.get(f"/heroes/?{query}&limit=1&offset={offset}"))
    first, at_first = await statement_of(client, f"/heroes/?{query}")
    end, at_end = await statement_of(client, f"/heroes/?{query}&cursor={cursor}")
    assert len(first.json()) == 100
    assert end.json()
    if is_sqlite(million):
        cost = [await asyncio.to_thread(read_pages, million, statement) for statement in (at_first, at_end)]
    else:
        cost = [pages(await nodes(million, statement, "generic")) for statement in (at_first, at_end)]
    assert cost[1] <= cost[0] * 1.2 + 1, cost
