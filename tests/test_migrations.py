"""What ops do with Alembic, on both databases, with the command line that they use."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, inspect, text
from sqlmodel import SQLModel

from app.database import create_engine, is_sqlite
from app.main import create_app
from app.settings import Settings
from tests.conftest import Databases, migrate, running
from tests.processes import ROOT, free_port, run, server, spell

# What create_all makes of the tutorial's Hero on Postgres. Its SQLite file is made by its own code.
TUTORIAL_ON_POSTGRES = [
    (
        "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL,"
        " PRIMARY KEY (id))"
    ),
    "CREATE INDEX ix_hero_name ON hero (name)",
    "CREATE INDEX ix_hero_age ON hero (age)",
]
DEFINITION = text("SELECT sql FROM sqlite_master WHERE name = :name")
SCRIPT = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
HEAD = str(SCRIPT.get_current_head())
ROWS: list[dict[str, Any]] = [{"name": "Deadpond", "age": None, "id": 1}, {"name": "Rusty-Man", "age": 48, "id": 2}]


def alembic(url: URL, *arguments: str, cwd: Path = ROOT) -> str:
    result = run("alembic", *arguments, cwd=cwd, changes={"DATABASE_URL": spell(url)})
    assert result.returncode == 0, result.stdout
    return result.stdout


def on(url: URL, work: Callable[[Connection], Any]) -> Any:
    """Do something with a connection, in a transaction."""

    async def connect_and_work() -> Any:
        engine = create_engine(url, {})
        async with engine.begin() as connection:
            result = await connection.run_sync(work)
        await engine.dispose()
        return result

    return asyncio.run(connect_and_work())


def execute(url: URL, *statements: str) -> None:
    on(url, lambda connection: [connection.execute(text(statement)) for statement in statements])


def describe(url: URL) -> dict[str, Any]:
    """Everything that the catalogue says about the tables, column order aside."""

    def look(connection: Connection) -> dict[str, Any]:
        inspector = inspect(connection)
        return {
            table: {
                "columns": sorted(str(sorted(column.items(), key=str)) for column in inspector.get_columns(table)),
                "key": inspector.get_pk_constraint(table),
                "indexes": sorted(str(index) for index in inspector.get_indexes(table)),
            }
            for table in inspector.get_table_names()
        }

    found: dict[str, Any] = on(url, look)
    return found


def tutorial_tables(url: URL) -> list[str]:
    """Spell the tutorial's tables for a database."""
    return [part.replace("SERIAL", "INTEGER") if is_sqlite(url) else part for part in TUTORIAL_ON_POSTGRES]


def make_tutorial(url: URL) -> None:
    """Make a database as the tutorial leaves it, with two heroes in it."""
    if is_sqlite(url):
        port = free_port()
        arguments = ("uvicorn", "bench.contenders.tutorial:app", "--port", str(port))
        with server(*arguments, port=port, changes={"DATABASE_URL": f"sqlite:///{url.database}"}) as client:
            for row in ROWS:
                response = client.post("/heroes/", json={**row, "secret_name": "Dive Wilson"})
                assert response.json() == row
    else:
        execute(
            url,
            *TUTORIAL_ON_POSTGRES,
            "INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', NULL, 'x'), ('Rusty-Man', 48, 'x')",
        )


class TestCommands:
    def test_up_and_down_and_up_again(self, empty_url: URL) -> None:
        upgraded = alembic(empty_url, "upgrade", "head")
        assert "Running upgrade 0001 -> 0002" in upgraded
        assert "Will assume transactional DDL." in upgraded
        assert alembic(empty_url, "current").endswith(f"{HEAD} (head)\n")
        at_head = describe(empty_url)
        alembic(empty_url, "downgrade", "base")
        assert list(describe(empty_url)) == ["alembic_version"]
        alembic(empty_url, "upgrade", "head")
        assert describe(empty_url) == at_head

    def test_check_finds_no_difference_between_models_and_migrations(self, url: URL) -> None:
        assert "No new upgrade operations detected." in alembic(url, "check")

    def test_sqlite_numbers_rows_as_the_models_say(self, sqlite_url: URL) -> None:
        """`alembic check` doesn't see this one."""
        for table in SQLModel.metadata.sorted_tables:
            made = on(sqlite_url, lambda connection: connection.scalar(DEFINITION, {"name": table.name}))  # noqa: B023
            assert ("AUTOINCREMENT" in made) == bool(table.dialect_options["sqlite"]["autoincrement"])

    def test_history_lists_the_revisions_in_order(self, url: URL) -> None:
        newest, *_, oldest = alembic(url, "history").splitlines()
        assert f" -> {HEAD} (head)" in newest
        assert oldest.startswith("<base> -> 0001")

    def test_the_sql_is_printed_on_postgres_and_refused_on_sqlite(self, empty_url: URL) -> None:
        result = run("alembic", "upgrade", "head", "--sql", changes={"DATABASE_URL": spell(empty_url)})
        if is_sqlite(empty_url):
            assert result.returncode != 0
            assert "--sql works on Postgres only" in result.stdout
        else:
            assert result.returncode == 0
            assert "ALTER TABLE hero ALTER COLUMN id TYPE BIGINT;" in result.stdout
        assert not describe(empty_url)

    def test_the_printed_sql_makes_the_same_schema(self, postgres_databases: Databases, postgres_url: URL) -> None:
        empty_url = postgres_databases.empty()
        result = run("alembic", "upgrade", "head", "--sql", changes={"DATABASE_URL": spell(empty_url)})
        script = "\n".join(line for line in result.stdout.splitlines() if not line.startswith("INFO"))
        statements = [part for part in script.split(";") if part.strip() not in {"", "BEGIN", "COMMIT"}]
        execute(empty_url, *statements)
        assert describe(empty_url) == describe(postgres_url)
        postgres_databases.drop(empty_url)

    def test_a_revision_is_generated_that_imports_and_runs(self, url: URL, tmp_path: Path) -> None:
        project = tmp_path / "project"
        ignore = shutil.ignore_patterns(".*", "*.db*")
        shutil.copytree(ROOT, project, ignore=ignore)
        models = project / "app/heroes/models.py"
        models.write_text(
            models.read_text().replace(
                "    secret_name: str\n",
                "    secret_name: str | None\n    power: str = Field(default='', max_length=50)\n",
                1,
            )
        )
        execute(url, "INSERT INTO hero (name, secret_name) VALUES ('Deadpond', 'Dive Wilson')")
        alembic(url, "revision", "--autogenerate", "--message", "Add power", cwd=project)
        (revision,) = project.glob("migrations/versions/*_add_power.py")
        written = revision.read_text()
        assert "sqlmodel" not in written
        assert "sa.Column('power', sa.String(length=50), nullable=False)" in written
        assert "'secret_name'" in written
        revision.write_text(
            written.replace("length=50), nullable=False)", "length=50), server_default='', nullable=False)")
        )
        alembic(url, "upgrade", "head", cwd=project)
        alembic(url, "downgrade", HEAD, cwd=project)

    def test_a_revision_that_fails_half_way_leaves_nothing_behind(self, url: URL, tmp_path: Path) -> None:
        project = tmp_path / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "*.db*"))
        alembic(url, "revision", "--message", "Fail", cwd=project)
        (revision,) = project.glob("migrations/versions/*_fail.py")
        revision.write_text(
            revision.read_text().replace(
                "    pass\n", "    op.execute('CREATE TABLE side (x INTEGER)')\n    op.execute('nonsense')\n", 1
            )
        )
        before = describe(url)
        assert run("alembic", "upgrade", "head", cwd=project, changes={"DATABASE_URL": spell(url)}).returncode != 0
        assert describe(url) == before
        assert HEAD in alembic(url, "current")


class TestAdoption:
    async def test_a_database_of_the_tutorial_keeps_its_rows_and_becomes_like_a_new_one(
        self, empty_url: URL, url: URL
    ) -> None:
        await asyncio.to_thread(make_tutorial, empty_url)
        await asyncio.to_thread(migrate, empty_url)
        assert await asyncio.to_thread(describe, empty_url) == await asyncio.to_thread(describe, url)
        async with running(create_app(Settings(database_url=empty_url))) as client:
            assert (await client.get("/heroes/")).json() == ROWS
            created = await client.post("/heroes/", json={"name": "Spider-Boy", "secret_name": "Pedro Parqueador"})
            assert created.json()["id"] == 3

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            ("ALTER TABLE hero ADD COLUMN team_id INTEGER", "column team_id: INTEGER here, none there"),
            ("CREATE UNIQUE INDEX ix_hero_secret ON hero (secret_name)", "index ix_hero_secret: secret_name unique"),
            ("ALTER TABLE hero RENAME COLUMN age TO years", "column age: none here, INTEGER there"),
            ("ALTER TABLE hero ADD COLUMN power VARCHAR DEFAULT 'x'", "column power: VARCHAR DEFAULT 'x'"),
        ],
    )
    def test_another_table_of_that_name_is_refused_and_left_as_it_is(
        self, empty_url: URL, change: str, difference: str
    ) -> None:
        execute(empty_url, *tutorial_tables(empty_url), change)
        before = describe(empty_url)
        result = run("alembic", "upgrade", "head", changes={"DATABASE_URL": spell(empty_url)})
        assert result.returncode != 0
        assert difference in result.stdout
        assert "Traceback" not in result.stdout
        assert describe(empty_url) == before

    def test_a_table_with_a_trigger_is_refused_on_sqlite_which_would_lose_it(self, sqlite_databases: Databases) -> None:
        empty_url = sqlite_databases.empty()
        trigger = "CREATE TRIGGER watch AFTER DELETE ON hero BEGIN SELECT 1; END"
        execute(empty_url, *tutorial_tables(empty_url), trigger)
        result = run("alembic", "upgrade", "head", changes={"DATABASE_URL": spell(empty_url)})
        assert result.returncode != 0
        assert "trigger watch: present here, none there" in result.stdout

    def test_the_indexes_that_early_chapters_lack_are_made(self, empty_url: URL, url: URL) -> None:
        execute(empty_url, tutorial_tables(empty_url)[0])
        migrate(empty_url)
        assert describe(empty_url) == describe(url)


class TestFirstRevision:
    def test_it_is_what_create_all_makes_of_the_tutorial(self, databases: Databases) -> None:
        by_create_all, by_alembic = databases.empty(), databases.empty()
        make_tutorial(by_create_all)
        migrate(by_alembic, "0001")
        of_alembic, of_create_all = describe(by_alembic)["hero"], describe(by_create_all)["hero"]
        databases.drop(by_create_all)
        databases.drop(by_alembic)
        if is_sqlite(by_alembic):  # there, create_all gives the key no name
            of_alembic["key"].pop("name")
            of_create_all["key"].pop("name")
        assert of_alembic == of_create_all


class TestIds:
    def test_an_id_past_32_bits_fits(self, url: URL) -> None:
        execute(url, f"INSERT INTO hero (id, name, secret_name) VALUES ({2**40}, 'Far', 'x')")
        if not is_sqlite(url):
            execute(url, f"SELECT setval('hero_id_seq', {2**40})")
        execute(url, "INSERT INTO hero (name, secret_name) VALUES ('Farther', 'x')")
        newest = on(url, lambda connection: connection.scalar(text("SELECT max(id) FROM hero")))
        assert newest == 2**40 + 1

    def test_sqlite_counts_on_where_an_adopted_table_was(self, tmp_path: Path) -> None:
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
        assert on(url, lambda connection: connection.scalar(text("SELECT id FROM hero"))) == 42


def test_there_is_one_head() -> None:
    assert len(SCRIPT.get_heads()) == 1


def test_file_names_sort_in_the_order_of_the_revisions() -> None:
    names = [Path(step.path).name for step in SCRIPT.walk_revisions()]
    assert names == sorted(names, reverse=True)
