"""Alembic's commands."""

from functools import partial
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import URL, Connection, text
from sqlmodel import SQLModel

from app.schema import read_revisions
from app.urls import is_sqlite
from tests.support.alembic_commands import HEAD, SCRIPT, alembic, alembic_config
from tests.support.processes import render_url, run
from tests.support.project import copy_project
from tests.support.sql import describe_schema, run_in_transaction

DEFINITION = text("SELECT sql FROM sqlite_master WHERE name = :name")


def read_sqlite_definition(connection: Connection, name: str) -> str:
    return str(connection.scalar(DEFINITION, {"name": name}))


class TestCommands:
    @pytest.mark.slow
    def test_the_command_line_upgrades_and_downgrades(self, empty_url: URL) -> None:
        upgraded = alembic(empty_url, "upgrade", "head")
        assert upgraded.count(": Running upgrade ") == len(list(SCRIPT.walk_revisions()))
        assert "Will assume transactional DDL." in upgraded
        assert alembic(empty_url, "current").endswith(f"{HEAD} (head)\n")
        alembic(empty_url, "-x", "lose-data", "downgrade", "base")
        assert list(describe_schema(empty_url)) == ["alembic_version"]

    def test_check_finds_no_difference_between_models_and_migrations(self, url: URL) -> None:
        command.check(alembic_config(url))

    def test_sqlite_uses_autoincrement_where_the_models_do(self, sqlite_url: URL) -> None:
        """`alembic check` does not compare this."""
        for table in SQLModel.metadata.sorted_tables:
            read_definition = partial(read_sqlite_definition, name=table.name)
            made = run_in_transaction(sqlite_url, read_definition)
            assert ("AUTOINCREMENT" in made) == bool(table.dialect_options["sqlite"]["autoincrement"])

    @pytest.mark.slow
    def test_the_sql_is_printed_on_postgres_and_refused_on_sqlite(self, empty_url: URL) -> None:
        result = run("alembic", "upgrade", "head", "--sql", changes={"DATABASE_URL": render_url(empty_url)})
        if is_sqlite(empty_url):
            assert result.returncode != 0
            assert "--sql works on Postgres only" in result.stdout
        else:
            assert result.returncode == 0
            assert "CREATE TABLE hero (" in result.stdout
        assert not describe_schema(empty_url)

    @pytest.mark.slow
    def test_a_failed_revision_leaves_nothing_behind(self, url: URL, tmp_path: Path) -> None:
        project = copy_project(tmp_path / "project")
        alembic(url, "revision", "--message", "Fail", cwd=project)
        (revision,) = project.glob("migrations/versions/*_fail.py")
        revision.write_text(
            revision.read_text().replace(
                "    pass\n", "    op.execute('CREATE TABLE side (x INTEGER)')\n    op.execute('nonsense')\n", 1
            )
        )
        before = describe_schema(url)
        assert run("alembic", "upgrade", "head", cwd=project, changes={"DATABASE_URL": render_url(url)}).returncode != 0
        assert describe_schema(url) == before
        assert run_in_transaction(url, read_revisions) == {HEAD}


def test_there_is_one_head() -> None:
    assert len(SCRIPT.get_heads()) == 1


def test_file_names_sort_in_the_order_of_the_revisions() -> None:
    names = [Path(step.path).name for step in SCRIPT.walk_revisions()]
    assert names == sorted(names, reverse=True)
