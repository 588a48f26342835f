"""Ids that are sparse, descend or are random: a distributed database numbers its rows so. No walk or export breaks."""

import asyncio
import json
from collections.abc import AsyncIterator
from random import Random

import httpx
import pytest
from sqlalchemy import URL

from app.keyset import CHUNK
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.lists import Rows, ids_of, in_order, walk
from tests.support.sql import execute

SORTS = ["id", "-id", "name", "-name", "age", "-age"]
STAY = CHUNK + 50
NUMBERING = {
    "descending": "ALTER SEQUENCE hero_id_seq INCREMENT -7 MINVALUE -9223372036854775808 START 3000 RESTART",
    "sparse": "ALTER SEQUENCE hero_id_seq INCREMENT 4000000000000007",
    "random": (
        "ALTER TABLE hero ALTER id SET DEFAULT"
        " CAST(CAST('x' || translate(CAST(gen_random_uuid() AS text), '-', '') AS bit(64)) AS bigint)"
    ),
}
RANDOM = Random(7)  # noqa: S311 - test data


@pytest.fixture(params=["sqlite", *NUMBERING])
def sparse_url(request: pytest.FixtureRequest) -> URL:
    """A database that numbers heroes in one of these ways.

    SQLite numbers its rows itself, so only heroes that are there at first have random ids.
    """
    url: URL = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    if request.param == "sqlite":
        rows = (
            f"({RANDOM.randrange(-(2**62), 2**62)}, 'Hero {number % 40}', {number % 30 or 'NULL'}, 'x')"
            for number in range(STAY)
        )
        execute(url, f"INSERT INTO hero (id, name, age, secret_name) VALUES {', '.join(rows)}")
    else:
        rows = (f"('Hero {number % 40}', {number % 30 or 'NULL'}, 'x')" for number in range(STAY))
        execute(url, NUMBERING[request.param], f"INSERT INTO hero (name, age, secret_name) VALUES {', '.join(rows)}")
    return url


@pytest.fixture
async def client(sparse_url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the app on it."""
    async with running(create_app(Settings(database_url=sparse_url))) as client:
        yield client


async def test_walks_and_exports_are_complete_and_in_order_under_inserts(client: httpx.AsyncClient) -> None:
    first = await client.get("/heroes/export")
    stay = {json.loads(line)["id"] for line in first.text.splitlines()}
    assert len(stay) == STAY
    over = asyncio.Event()

    async def write() -> None:
        while not over.is_set():
            assert (await client.post("/heroes/", json=DEADPOND | {"age": 3})).status_code == 200

    async def export() -> Rows:
        return [json.loads(line) for line in (await client.get("/heroes/export")).text.splitlines()]

    writing = asyncio.create_task(write())
    lists = [("id", await export())] + [(sort, await walk(client, f"/heroes/?sort={sort}")) for sort in SORTS]
    over.set()
    await writing
    for sort, rows in lists:
        ids = set(ids_of(rows))
        assert len(ids) == len(rows), sort
        assert stay <= ids, sort
        assert rows == in_order(rows, sort), sort


async def test_each_hero_is_found_by_its_id_and_changed_and_deleted(client: httpx.AsyncClient) -> None:
    created = await client.post("/heroes/", json=DEADPOND)
    path = created.headers["Location"]
    assert (await client.get(path)).json() == created.json()
    changed = await client.patch(path, json={"age": 3}, headers={"If-Match": created.headers["ETag"]})
    assert changed.json() == created.json() | {"age": 3}
    assert (await client.delete(path)).json() == {"ok": True}
