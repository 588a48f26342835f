"""The adoption of a database of the tutorial."""

import asyncio
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from asyncpg import UniqueViolationError
from sqlalchemy import URL, text

from app.main import create_app
from app.settings import Settings
from app.urls import is_sqlite
from tests.revisions.tutorial import TUTORIAL_ROWS, create_tutorial_database, tutorial_ddl
from tests.support.alembic_commands import alembic_config, migrate
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.sql import describe_schema, execute, execute_autocommit, run_in_transaction

FIRST = "INSERT INTO hero (id, name, secret_name) VALUES (1, 'Deadpond', 'x')"


def checksum(url: URL) -> tuple[int, str]:
    """Count the heroes, and digest all that the tutorial knows of them."""
    query = text("SELECT id, name, age, secret_name FROM hero ORDER BY id")
    rows = run_in_transaction(url, lambda connection: [tuple(row) for row in connection.execute(query)])
    return len(rows), hashlib.sha256(repr(rows).encode()).hexdigest()


def refuse_to_adopt(url: URL, *differences: str) -> None:
    """Upgrade a database whose table differs. The differences must be reported, and nothing changed."""
    rows = text("SELECT * FROM hero ORDER BY 1")
    before = describe_schema(url), run_in_transaction(url, lambda connection: connection.execute(rows).all())
    with pytest.raises(CommandError) as refusal:
        migrate(url)
    for difference in differences:
        assert difference in str(refusal.value)
    assert (describe_schema(url), run_in_transaction(url, lambda connection: connection.execute(rows).all())) == before


@pytest.fixture(scope="module")
def reused_url(databases: Databases) -> Iterator[URL]:
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
def refused_url(reused_url: URL) -> Iterator[URL]:
    """A database without tables, which is refused: it has one table at the end, and no revision."""
    yield reused_url
    execute(reused_url, "DROP TABLE hero")


class TestAdoption:
    async def test_an_adopted_database_keeps_its_rows_and_equals_a_new_one(self, empty_url: URL, url: URL) -> None:
        await asyncio.to_thread(create_tutorial_database, empty_url)
        await asyncio.to_thread(migrate, empty_url)
        assert await asyncio.to_thread(describe_schema, empty_url) == await asyncio.to_thread(describe_schema, url)
        async with running(create_app(Settings(database_url=empty_url))) as client:
            heroes = (await client.get("/heroes/")).json()
            assert [{key: hero[key] for key in ("name", "age", "id")} for hero in heroes] == TUTORIAL_ROWS
            created = await client.post("/heroes/", json={"name": "Spider-Boy", "secret_name": "Pedro Parqueador"})
            assert created.json()["id"] == 3

    def test_a_table_with_another_column_or_index_is_refused_and_unchanged(self, refused_url: URL) -> None:
        execute(
            refused_url,
            *tutorial_ddl(refused_url),
            FIRST,
            "ALTER TABLE hero ADD COLUMN team_id INTEGER",
            "ALTER TABLE hero ADD COLUMN power VARCHAR DEFAULT 'x'",
            "ALTER TABLE hero RENAME COLUMN age TO years",
            "CREATE INDEX ix_hero_both ON hero (name, years)",
            "CREATE UNIQUE INDEX ix_hero_secret ON hero (secret_name)",
        )
        refuse_to_adopt(
            refused_url,
            "column team_id: found INTEGER, expected none",
            "column power: found VARCHAR DEFAULT 'x'",
            "column age: found none, expected INTEGER",
            "index ix_hero_both: found name, years, expected none",
            "index ix_hero_secret: found secret_name unique, expected none",
        )

    @pytest.mark.parametrize(
        ("columns", "differences"),
        [
            pytest.param(
                "name VARCHAR(50) NOT NULL, age BIGINT, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL",
                [
                    "column name: found VARCHAR(50) NOT NULL, expected VARCHAR NOT NULL",
                    "column age: found BIGINT, expected INTEGER",
                    "primary key: found , expected id",
                ],
                id="a length, a width and no key",
            ),
            pytest.param(
                "name TEXT NOT NULL, age INTEGER DEFAULT 18, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL,"
                " PRIMARY KEY (id, name)",
                [
                    "column name: found TEXT NOT NULL, expected VARCHAR NOT NULL",
                    "column age: found INTEGER DEFAULT 18, expected INTEGER",
                    "primary key: found id, name, expected id",
                ],
                id="a type, a default and another key",
            ),
            pytest.param(
                "name VARCHAR, age INTEGER, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL, PRIMARY KEY (id),"
                " CONSTRAINT hero_of_age CHECK (age > 17), CHECK (age > 18), CONSTRAINT hero_one UNIQUE (name),"
                " UNIQUE (name, age), CONSTRAINT hero_boss FOREIGN KEY (age) REFERENCES hero (id)",
                [
                    "column name: found VARCHAR, expected VARCHAR NOT NULL",
                    "check hero_of_age: found age > 17, expected none",
                    ": found age > 18, expected none",
                    "unique constraint hero_one: found name, expected none",
                    ": found name, age, expected none",
                    "foreign key hero_boss: found age, expected none",
                ],
                id="NULL and constraints",
            ),
        ],
    )
    def test_a_table_that_alembic_would_consider_equal_is_refused(
        self, refused_url: URL, columns: str, differences: list[str]
    ) -> None:
        serial = "INTEGER" if is_sqlite(refused_url) else "SERIAL"
        execute(refused_url, f"CREATE TABLE hero ({columns.replace('SERIAL', serial)})", FIRST)
        refuse_to_adopt(refused_url, *differences)

    @pytest.mark.parametrize(
        ("part", "other", "difference"),
        [
            pytest.param("id SERIAL", "id INTEGER", "column id: found INTEGER NOT NULL,", id="not numbered"),
            pytest.param(
                "id SERIAL", "id INTEGER DEFAULT 7", "column id: found INTEGER NOT NULL DEFAULT 7,", id="a default"
            ),
            pytest.param(
                "id SERIAL", "id BIGSERIAL", "column id: found BIGINT NOT NULL, numbered by the database,", id="64 bits"
            ),
            pytest.param(
                "id SERIAL NOT NULL",
                "id INTEGER GENERATED BY DEFAULT AS IDENTITY",
                "column id: found INTEGER NOT NULL, expected INTEGER NOT NULL, numbered by the database",
                id="an identity",
            ),
            pytest.param(
                "name VARCHAR",
                'name VARCHAR COLLATE "C"',
                'column name: found VARCHAR COLLATE "C" NOT',
                id="a collation",
            ),
        ],
    )
    def test_another_id_default_or_collation_is_refused_on_postgres(
        self, postgres_databases: Databases, part: str, other: str, difference: str
    ) -> None:
        empty_url = postgres_databases.empty()
        table, *_ = tutorial_ddl(empty_url)
        assert part in table
        execute(empty_url, table.replace(part, other, 1), FIRST)
        refuse_to_adopt(empty_url, difference)
        postgres_databases.drop(empty_url)

    def test_another_collation_is_refused_on_sqlite(self, sqlite_databases: Databases) -> None:
        empty_url = sqlite_databases.empty()
        table, *_ = tutorial_ddl(empty_url)
        execute(empty_url, table.replace("name VARCHAR", "name VARCHAR COLLATE NOCASE", 1), FIRST)
        refuse_to_adopt(empty_url, "COLLATE of hero")

    def test_a_table_with_an_invalid_index_is_refused_on_postgres(self, postgres_databases: Databases) -> None:
        empty_url = postgres_databases.empty()
        table, *_ = tutorial_ddl(empty_url)
        execute(empty_url, table, "INSERT INTO hero (name, secret_name) VALUES ('Deadpond', 'x'), ('Deadpond', 'x')")
        with pytest.raises(UniqueViolationError):
            execute_autocommit(empty_url, "CREATE UNIQUE INDEX CONCURRENTLY ix_hero_name ON hero (name)")
        refuse_to_adopt(empty_url, "index ix_hero_name: found name unique invalid, expected name")
        postgres_databases.drop(empty_url)

    def test_a_table_with_a_trigger_is_refused_on_sqlite(self, sqlite_databases: Databases) -> None:
        empty_url = sqlite_databases.empty()
        trigger = "CREATE TRIGGER watch AFTER DELETE ON hero BEGIN SELECT 1; END"
        execute(empty_url, *tutorial_ddl(empty_url), FIRST, trigger)
        refuse_to_adopt(empty_url, "trigger watch: found present, expected none")

    def test_a_refusal_lists_every_difference(self, refused_url: URL) -> None:
        table, *_ = tutorial_ddl(refused_url)
        execute(refused_url, table.replace("age INTEGER", "age INTEGER NOT NULL, team_id INTEGER"))
        refuse_to_adopt(
            refused_url,
            "The table 'hero' is not the one of FastAPI's SQL tutorial, so nothing was changed:\n"
            "  column age: found INTEGER NOT NULL, expected INTEGER\n"
            "  column team_id: found INTEGER, expected none",
        )

    def test_indexes_that_early_chapters_lack_are_created(self, empty_url: URL, url: URL) -> None:
        execute(empty_url, tutorial_ddl(empty_url)[0])
        migrate(empty_url)
        assert describe_schema(empty_url) == describe_schema(url)

    def test_adoption_keeps_ten_thousand_rows_unchanged(self, empty_url: URL) -> None:
        execute(
            empty_url,
            *tutorial_ddl(empty_url),
            "INSERT INTO hero (name, age, secret_name)"
            " WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10500)"
            " SELECT 'Hero ''№ ' || x, CASE WHEN x % 3 > 0 THEN 2147483647 - x END, CASE WHEN x % 7 > 0 THEN 'x\n' || x"
            " ELSE '' END FROM n",
            "DELETE FROM hero WHERE id % 21 = 0",
        )
        count, before = checksum(empty_url)
        assert count == 10_000
        migrate(empty_url)
        assert checksum(empty_url) == (count, before)

    def test_adoption_leaves_other_tables_unchanged(self, empty_url: URL) -> None:
        execute(
            empty_url,
            *tutorial_ddl(empty_url),
            FIRST,
            "CREATE TABLE team (id INTEGER PRIMARY KEY, name VARCHAR UNIQUE)",
            "CREATE TABLE membership (hero_id INTEGER REFERENCES hero (id) ON DELETE CASCADE, team_id INTEGER NOT NULL"
            " REFERENCES team (id), PRIMARY KEY (hero_id, team_id))",
            "CREATE INDEX ix_membership_team_id ON membership (team_id)",
            "INSERT INTO team (id, name) VALUES (1, 'Preventers')",
            "INSERT INTO membership (hero_id, team_id) VALUES (1, 1)",
        )
        before = describe_schema(empty_url)
        migrate(empty_url)
        after = describe_schema(empty_url)
        assert {name: after[name] for name in ("team", "membership")} == {
            name: before[name] for name in ("team", "membership")
        }
        query = text(
            "SELECT hero.name, team.name FROM membership JOIN hero ON hero.id = hero_id JOIN team ON team.id = team_id"
        )
        assert run_in_transaction(empty_url, lambda connection: connection.execute(query).all()) == [
            ("Deadpond", "Preventers")
        ]

    def test_a_database_is_adopted_after_alembic_check(self, empty_url: URL, url: URL) -> None:
        execute(empty_url, *tutorial_ddl(empty_url), FIRST)
        with pytest.raises(CommandError, match="not up to date"):
            command.check(alembic_config(empty_url))
        # On SQLite, `check` creates the empty table. On Postgres, that of another project may have.
        execute(empty_url, "CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        migrate(empty_url)
        assert describe_schema(empty_url)["hero"] == describe_schema(url)["hero"]
        assert checksum(empty_url)[0] == 1


class TestFirstRevision:
    def test_it_equals_create_all_of_the_tutorial(self, databases: Databases) -> None:
        by_create_all, by_alembic = databases.empty(), databases.empty()
        create_tutorial_database(by_create_all)
        migrate(by_alembic, "0001")
        of_alembic, of_create_all = describe_schema(by_alembic)["hero"], describe_schema(by_create_all)["hero"]
        databases.drop(by_create_all)
        databases.drop(by_alembic)
        if is_sqlite(by_alembic):  # create_all does not name the key on SQLite
            of_alembic["key"].pop("name")
            of_create_all["key"].pop("name")
        assert of_alembic == of_create_all


class TestIds:
    def test_an_id_beyond_32_bits_fits(self, url: URL) -> None:
        execute(url, f"INSERT INTO hero (id, name, secret_name) VALUES ({2**40}, 'Far', 'x')")
        if not is_sqlite(url):
            execute(url, f"SELECT setval('hero_id_seq', {2**40})")
        execute(url, "INSERT INTO hero (name, secret_name) VALUES ('Farther', 'x')")
        newest = run_in_transaction(url, lambda connection: connection.scalar(text("SELECT max(id) FROM hero")))
        assert newest == 2**40 + 1

    def test_sqlite_numbers_new_rows_after_those_of_an_adopted_table(self, tmp_path: Path) -> None:
        path = tmp_path / "database.db"
        with sqlite3.connect(path) as connection:
            connection.executescript(
                "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id INTEGER NOT NULL,"
                " secret_name VARCHAR NOT NULL, PRIMARY KEY (id));"
                "INSERT INTO hero VALUES ('Deadpond', 1, 41, 'x')"
            )
        connection.close()
        url = URL.create("sqlite+aiosqlite", database=str(path))
        migrate(url)
        execute(url, "DELETE FROM hero", "INSERT INTO hero (name, secret_name) VALUES ('Rusty-Man', 'x')")
        assert run_in_transaction(url, lambda connection: connection.scalar(text("SELECT id FROM hero"))) == 42
