"""Downgrades: destructive ones need `-x lose-data`, reversible ones keep every row."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, inspect, text

from app.urls import is_sqlite
from tests.support.alembic_commands import HEAD, SCRIPT, alembic_config, try_alembic
from tests.support.processes import ROOT
from tests.support.sql import describe_schema, execute, run_in_transaction

EXAMPLE_INI = ROOT / "docs/rename/alembic.ini"
EXAMPLE = ScriptDirectory.from_config(Config(EXAMPLE_INI))
REVISIONS = [
    *reversed(list(SCRIPT.walk_revisions())),
    *reversed(list(EXAMPLE.iterate_revisions("rename_7", "rename_1", inclusive=True))),
]

REVISION = '''"""A revision that a test needs."""

revision = "test"
down_revision = "{head}"
{reversible}


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
'''
HEROES: list[dict[str, Any]] = [
    {"name": "Deadpond", "age": None, "secret_name": "Dive Wilson"},
    {"name": "Rusty-Man", "age": 48, "secret_name": "Tommy Sharp"},
    {"name": "Šúperhrdina 'quoted' \\ 😀", "age": 2**31 - 1, "secret_name": ""},
    {"name": "To be deleted", "age": 0, "secret_name": "x"},
]
# What `describe` leaves out.
NUMBERS = {
    "sqlite": "SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE name = 'hero'",
    "postgresql": "SELECT data_type::text || ' to ' || max_value FROM pg_sequences",
}
CHECKS = {
    "sqlite": "SELECT NULL",
    "postgresql": "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'hero_alias_check'",
}


def name(revision: Script) -> str:
    return revision.revision


def is_reversible(revision: Script) -> bool:
    return bool(revision.module.reversible)


def upgrade(url: URL, revision: str) -> None:
    command.upgrade(Config(EXAMPLE_INI, attributes={"url": url}), revision)


def downgrade(url: URL, revision: str, *arguments: str) -> None:
    command.downgrade(Config(EXAMPLE_INI, cmd_opts=Namespace(x=arguments), attributes={"url": url}), revision)


def current_revision(url: URL) -> str | None:
    found: str | None = run_in_transaction(
        url, lambda connection: connection.scalar(text("SELECT version_num FROM alembic_version"))
    )
    return found


def schema(url: URL) -> dict[str, Any]:
    """Everything that the catalog contains, except for the name of the primary key on SQLite."""

    def ask(questions: dict[str, str]) -> Any:
        return run_in_transaction(url, lambda connection: connection.scalar(text(questions[connection.dialect.name])))

    tables = describe_schema(url)
    if is_sqlite(url):
        for table in tables.values():
            table["key"].pop("name")
    return {**tables, "numbers": ask(NUMBERS), "checks": ask(CHECKS)}


def rows(url: URL) -> list[dict[str, Any]]:
    """The heroes, with the columns that they have."""

    def read(connection: Connection) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(text("SELECT * FROM hero ORDER BY id")).mappings()]

    found: list[dict[str, Any]] = run_in_transaction(url, read)
    return found


def fill(url: URL) -> None:
    """Insert heroes at any revision, and delete the newest."""

    def insert(connection: Connection) -> None:
        columns = {column["name"] for column in inspect(connection).get_columns("hero")}
        for hero in HEROES:
            row = {key: value for key, value in {**hero, "alias": "An alias"}.items() if key in columns}
            places = ", ".join(f":{key}" for key in row)
            connection.execute(text(f"INSERT INTO hero ({', '.join(row)}) VALUES ({places})"), row)
        connection.execute(text("DELETE FROM hero WHERE name = 'To be deleted'"))

    run_in_transaction(url, insert)
    assert len(rows(url)) == 3


@pytest.mark.slow
class TestDestructive:
    def test_a_destructive_downgrade_is_refused_before_its_first_step(self, url: URL) -> None:
        fill(url)
        before, found = schema(url), rows(url)
        result = try_alembic(url, "downgrade", "base")
        assert result.returncode != 0
        assert re.search("FAILED: Downgrading .*0001 destroys data, so nothing was changed.", result.stdout)
        assert "To downgrade and lose the data: alembic -x lose-data downgrade" in result.stdout
        assert "Traceback" not in result.stdout
        assert "Running downgrade" not in result.stdout
        assert current_revision(url) == HEAD
        assert (schema(url), rows(url)) == (before, found)

    @pytest.mark.parametrize("target", ["base", "0001-1", "-2"])
    def test_a_destructive_downgrade_is_refused_for_every_kind_of_target(self, url: URL, target: str) -> None:
        with pytest.raises(CommandError, match=r"^Downgrading .* destroys data, so nothing was changed\."):
            downgrade(url, target)
        assert current_revision(url) == HEAD

    def test_a_refusal_lists_all_destructive_revisions(self, empty_url: URL) -> None:
        upgrade(empty_url, "rename_7")
        destructive = ", ".join(name(revision) for revision in reversed(REVISIONS) if not is_reversible(revision))
        with pytest.raises(CommandError, match=f"^Downgrading {destructive} destroys data"):
            downgrade(empty_url, "base")
        assert current_revision(empty_url) == "rename_7"

    def test_another_x_argument_does_not_allow_data_loss(self, url: URL) -> None:
        with pytest.raises(CommandError, match="lose-data"):
            downgrade(url, "base", "keep-data")

    def test_a_destructive_downgrade_runs_with_lose_data(self, url: URL) -> None:
        fill(url)
        downgrade(url, "base", "lose-data")
        assert current_revision(url) is None
        assert list(describe_schema(url)) == ["alembic_version"]

    def test_a_revision_without_reversible_counts_as_destructive(self, url: URL, tmp_path: Path) -> None:
        folders = f"{ROOT}/migrations/versions:{tmp_path}"
        (tmp_path / "alembic.ini").write_text(
            f"[alembic]\nscript_location = {ROOT}/migrations\nversion_locations = {folders}\npath_separator = :\n"
        )
        config = Config(tmp_path / "alembic.ini", cmd_opts=Namespace(x=[]), attributes={"url": url})
        for line, destructive in [("", True), ("reversible = False", True), ("reversible = True", False)]:
            (tmp_path / "test.py").write_text(REVISION.format(head=HEAD, reversible=line))
            command.upgrade(config, "test")
            if destructive:
                with pytest.raises(CommandError, match=r"^Downgrading test destroys data,"):
                    command.downgrade(config, HEAD)
                assert current_revision(url) == "test"
            else:
                command.downgrade(config, HEAD)
                assert current_revision(url) == HEAD


class TestReversible:
    @pytest.fixture
    def second_url(self, empty_url: URL) -> URL:
        """A database at the revision that widens ids."""
        upgrade(empty_url, "0002")
        return empty_url

    def test_narrowing_the_ids_keeps_every_row(self, second_url: URL) -> None:
        fill(second_url)
        found = rows(second_url)
        downgrade(second_url, "0001")
        assert current_revision(second_url) == "0001"
        assert rows(second_url) == found

    def test_ids_beyond_32_bits_are_kept(self, second_url: URL) -> None:
        """Postgres refuses to narrow them, and on SQLite they fit."""
        execute(second_url, f"INSERT INTO hero (id, name, secret_name) VALUES ({2**31}, 'Far', 'x')")
        before, found = schema(second_url), rows(second_url)
        if is_sqlite(second_url):
            downgrade(second_url, "0001")
        else:
            with pytest.raises(CommandError, match="out of range"):
                command.downgrade(alembic_config(second_url), "0001")
            assert current_revision(second_url) == "0002"
            assert schema(second_url) == before
        upgrade(second_url, "0002")
        assert rows(second_url) == found

    def test_each_reversible_revision_keeps_every_row_down_and_up(self, empty_url: URL) -> None:
        for revision in REVISIONS:
            upgrade(empty_url, name(revision))
            if is_reversible(revision):
                execute(empty_url, "DELETE FROM hero")
                fill(empty_url)
                found = rows(empty_url)
                downgrade(empty_url, str(revision.down_revision))
                assert current_revision(empty_url) == revision.down_revision
                assert rows(empty_url) == found, name(revision)
                upgrade(empty_url, name(revision))
                assert rows(empty_url) == found, name(revision)
        assert current_revision(empty_url) == "rename_7"


@pytest.mark.slow
class TestUpAndDown:
    def test_each_revision_up_down_and_up_gives_the_same_schema(self, empty_url: URL) -> None:
        below: dict[str, Any] = {}
        for revision in REVISIONS:
            upgrade(empty_url, name(revision))
            above = schema(empty_url)
            downgrade(empty_url, str(revision.down_revision or "base"), "lose-data")
            if is_reversible(revision):  # a validated constraint may stay validated
                assert schema(empty_url) | {"checks": ...} == below | {"checks": ...}, name(revision)
            upgrade(empty_url, name(revision))
            assert schema(empty_url) == above, name(revision)
            below = above
            if revision is REVISIONS[0]:
                fill(empty_url)
        assert current_revision(empty_url) == "rename_7"

    def test_all_revisions_down_and_up_give_the_same_schema(self, empty_url: URL) -> None:
        upgrade(empty_url, "rename_7")
        top = schema(empty_url)
        downgrade(empty_url, "base", "lose-data")
        assert list(describe_schema(empty_url)) == ["alembic_version"]
        upgrade(empty_url, "rename_7")
        assert schema(empty_url) == top
