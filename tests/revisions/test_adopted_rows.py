"""Rows that the tutorial accepts: an upgrade refuses those that can't be served, and every list has all others."""

import asyncio
import itertools
import secrets

import pytest
from alembic.util import CommandError
from sqlalchemy import URL, text

from app.main import create_app
from app.settings import Settings
from app.urls import is_sqlite
from tests.revisions.tutorial import tutorial_ddl
from tests.support.alembic_commands import HEAD, migrate, try_alembic
from tests.support.app_client import running
from tests.support.lists import ids_of, walk
from tests.support.sql import execute, fetch_value, run_in_transaction

NOT_TEXT = "name is not text in UTF-8 without NUL"
TOO_LONG = "name has more than 2,600 bytes"
NOT_INT32 = "age is not an integer of 32 bits"
INSERT = "INSERT INTO hero (id, name, age, secret_name) VALUES"
RANDOM = secrets.token_hex(1340)  # 2,680 characters that don't compress

# As SQL: names and ages, by what the upgrade says of them.
TOO_LONG_ROWS = [(f"'{RANDOM}'", "1"), (f"'{'x' * 60_000}'", "1"), (f"'{'é' * 1301}'", "1")]
UNSERVABLE = {
    "postgresql": {TOO_LONG: TOO_LONG_ROWS},
    "sqlite": {
        NOT_TEXT: [
            ("'a' || char(0) || 'b'", "1"),
            ("x'616263'", "1"),
            ("CAST(x'61ff62' AS TEXT)", "1"),
            ("CAST(x'eda080' AS TEXT)", "1"),  # a surrogate
        ],
        TOO_LONG: TOO_LONG_ROWS,
        NOT_INT32: [("'x'", "'young'"), ("'x'", "1.5"), ("'x'", "9e999"), ("'x'", "x'31'"), ("'x'", "2147483648")],
    },
}
SERVED = [
    ("''", "NULL"),
    ("'x'", "-2147483648"),
    ("'x'", "2147483647"),
    (f"'{RANDOM[:2600]}'", "NULL"),
    (f"'{'é' * 1300}'", "1"),
    ("'Zo\u00eb \U0001f9b8'", "1"),
    ("'Zo\u00eb \U0001f9b8'", "1"),
]


def refuse(url: URL, problems: str) -> None:
    """Upgrade. The rows must be named, and nothing be changed but the revision, if an earlier one succeeds."""
    rows = text("SELECT id, CAST(name AS BLOB), age FROM hero" if is_sqlite(url) else "SELECT id, name, age FROM hero")
    before = run_in_transaction(url, lambda connection: connection.execute(rows).all())
    with pytest.raises(CommandError) as refusal:
        migrate(url)
    assert str(refusal.value) == (
        f"Rows of hero can't be served: {problems}. Correct or delete these rows, and run the same command again."
    )
    assert run_in_transaction(url, lambda connection: connection.execute(rows).all()) == before


def test_an_upgrade_refuses_to_adopt_rows_that_can_not_be_served(empty_url: URL) -> None:
    execute(empty_url, *tutorial_ddl(empty_url), f"{INSERT} (2, 'x', 1, 'x')")
    numbers = itertools.count(3)
    problems = []
    for problem, rows in UNSERVABLE[empty_url.get_backend_name()].items():
        ids = [next(numbers) for _ in rows]
        execute(
            empty_url,
            *(f"{INSERT} ({number}, {name}, {age}, 'x')" for number, (name, age) in zip(ids, rows, strict=True)),
        )
        problems.append(f"{problem} (id {', '.join(map(str, ids))})")
    refuse(empty_url, "; ".join(problems))
    execute(empty_url, "DELETE FROM hero WHERE id > 2")
    migrate(empty_url)
    assert fetch_value(empty_url, "SELECT version_num FROM alembic_version") == HEAD


@pytest.mark.parametrize("revision", ["0004", "0006"])
def test_an_upgrade_refuses_a_row_that_an_earlier_release_has_adopted(empty_url: URL, revision: str) -> None:
    migrate(empty_url, revision)
    execute(empty_url, f"{INSERT} (3, '{'x' * 60_000}', 1, 'x')")
    refuse(empty_url, f"{TOO_LONG} (id 3)")


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
            found = await walk(client, f"/heroes/?sort={sort}&limit=1")
            assert sorted(ids_of(found)) == list(range(1, len(SERVED) + 1)), sort
        for offset in range(len(SERVED)):  # the cursor in a link has the whole name
            page = await client.get(f"/heroes/?sort=name&limit=1&offset={offset}")
            assert len(page.headers.get("Link", "")) < 8000
        assert (await client.get("/heroes/export")).text.count("\n") == len(SERVED)
