"""Rows that the tutorial accepts: an upgrade refuses those that can't be served, and every list has all others."""

import asyncio
import secrets
from typing import Any

import httpx
import pytest
from alembic.util import CommandError
from sqlalchemy import URL, text

from app.main import create_app
from app.settings import Settings
from app.urls import is_sqlite
from tests.revisions.tutorial import tutorial_ddl
from tests.support.alembic_commands import HEAD, migrate, try_alembic
from tests.support.app_client import running
from tests.support.sql import execute, fetch_value, run_in_transaction

NOT_TEXT = "name is not text in UTF-8 without NUL"
TOO_LONG = "name has more than 2,600 bytes"
NOT_INT32 = "age is not an integer of 32 bits"
INSERT = "INSERT INTO hero (id, name, age, secret_name) VALUES"
RANDOM = secrets.token_hex(1340)  # 2,680 characters that don't compress

# As SQL: an id, a name, an age, and what the upgrade says.
ON_SQLITE = [
    pytest.param("'a' || char(0) || 'b'", "1", NOT_TEXT, id="NUL"),
    pytest.param("x'616263'", "1", NOT_TEXT, id="a blob"),
    pytest.param("CAST(x'61ff62' AS TEXT)", "1", NOT_TEXT, id="not UTF-8"),
    pytest.param("CAST(x'eda080' AS TEXT)", "1", NOT_TEXT, id="a surrogate"),
    pytest.param("'x'", "'young'", NOT_INT32, id="a text as age"),
    pytest.param("'x'", "1.5", NOT_INT32, id="a float as age"),
    pytest.param("'x'", "9e999", NOT_INT32, id="an infinite age"),
    pytest.param("'x'", "x'31'", NOT_INT32, id="a blob as age"),
    pytest.param("'x'", "2147483648", NOT_INT32, id="an age of more than 32 bits"),
]
ON_BOTH = [
    pytest.param(f"'{RANDOM}'", "1", TOO_LONG, id="a random name"),
    pytest.param(f"'{'x' * 60_000}'", "1", TOO_LONG, id="a long name"),
    pytest.param(f"'{'é' * 1301}'", "1", TOO_LONG, id="a long name of two bytes each"),
]
SERVED = [
    ("''", "NULL"),
    ("'x'", "-2147483648"),
    ("'x'", "2147483647"),
    (f"'{RANDOM[:2600]}'", "NULL"),
    (f"'{'é' * 1300}'", "1"),
    ("'Zo\u00eb \U0001f9b8'", "1"),
    ("'Zo\u00eb \U0001f9b8'", "1"),
]


def refuse(url: URL, problem: str) -> None:
    """Upgrade. The row must be named, and nothing be changed but the revision, if an earlier one succeeds."""
    rows = text("SELECT id, CAST(name AS BLOB), age FROM hero" if is_sqlite(url) else "SELECT id, name, age FROM hero")
    before = run_in_transaction(url, lambda connection: connection.execute(rows).all())
    with pytest.raises(CommandError) as refusal:
        migrate(url)
    assert str(refusal.value) == (
        f"Rows of hero can't be served: {problem} (id 3). Correct or delete these rows, and run the same command again."
    )
    assert run_in_transaction(url, lambda connection: connection.execute(rows).all()) == before


async def walk(client: httpx.AsyncClient, sort: str) -> list[Any]:
    """Follow `Link` from the first page to the last, one hero each."""
    found, url = [], f"/heroes/?limit=1&sort={sort}"
    while url:
        response = await client.get(url)
        assert response.status_code == 200
        assert len(response.headers.get("Link", "")) < 8000
        found += response.json()
        url = response.links.get("next", {}).get("url", "")
    return found


@pytest.mark.parametrize(("name", "age", "problem"), ON_BOTH)
def test_an_upgrade_refuses_to_adopt_a_row_that_can_not_be_served(
    empty_url: URL, name: str, age: str, problem: str
) -> None:
    execute(empty_url, *tutorial_ddl(empty_url), f"{INSERT} (2, 'x', 1, 'x')", f"{INSERT} (3, {name}, {age}, 'x')")
    refuse(empty_url, problem)
    execute(empty_url, "DELETE FROM hero WHERE id = 3")
    migrate(empty_url)
    assert fetch_value(empty_url, "SELECT version_num FROM alembic_version") == HEAD


@pytest.mark.parametrize(("name", "age", "problem"), ON_SQLITE)
def test_an_upgrade_refuses_to_adopt_what_only_sqlite_stores(
    sqlite_databases: Any, name: str, age: str, problem: str
) -> None:
    url = sqlite_databases.empty()
    execute(url, *tutorial_ddl(url), f"{INSERT} (2, 'x', 1, 'x')", f"{INSERT} (3, {name}, {age}, 'x')")
    refuse(url, problem)


@pytest.mark.parametrize("revision", ["0004", "0006"])
def test_an_upgrade_refuses_a_row_that_an_earlier_release_has_adopted(empty_url: URL, revision: str) -> None:
    migrate(empty_url, revision)
    execute(empty_url, f"{INSERT} (3, '{'x' * 60_000}', 1, 'x')")
    refuse(empty_url, TOO_LONG)


@pytest.mark.slow
def test_the_command_names_the_first_rows_and_fails(empty_url: URL) -> None:
    rows = ", ".join(f"({number}, '{RANDOM}', 1, 'x')" for number in range(1, 26))
    execute(empty_url, *tutorial_ddl(empty_url), f"{INSERT} {rows}")
    result = try_alembic(empty_url, "upgrade", "head")
    assert result.returncode != 0
    assert f"{TOO_LONG} (id {', '.join(map(str, range(1, 21)))} and 5 more)" in result.stdout
    assert RANDOM not in result.stdout


async def test_every_adopted_row_is_in_every_walk_and_in_the_export(empty_url: URL) -> None:
    rows = [f"{INSERT} ({number}, {name}, {age}, 'x')" for number, (name, age) in enumerate(SERVED, 1)]
    await asyncio.to_thread(execute, empty_url, *tutorial_ddl(empty_url), *rows)
    await asyncio.to_thread(migrate, empty_url)
    async with running(create_app(Settings(database_url=empty_url))) as client:
        for sort in ("id", "-id", "name", "-name", "age", "-age"):
            assert sorted(hero["id"] for hero in await walk(client, sort)) == list(range(1, len(SERVED) + 1))
        assert (await client.get("/heroes/export")).text.count("\n") == len(SERVED)
