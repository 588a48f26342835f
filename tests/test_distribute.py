"""The command that distributes the tables refuses what it can't do. tests/test_citus.py has it on a cluster."""

import asyncio
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import URL
from sqlmodel import SQLModel

from app.urls import parse_url
from migrations.distribute import distributed_tables, main
from tests.support.alembic_commands import HEAD
from tests.support.databases import Databases
from tests.support.processes import free_port, render_url, run
from tests.support.sql import execute


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[[URL], str]:
    """Return the message that the command ends with, without a process of its own."""

    def run_main(url: URL) -> str:
        monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
        monkeypatch.setenv("DATABASE_URL", render_url(url))
        with pytest.raises(SystemExit) as exit_:
            asyncio.run(main())
        return str(exit_.value)

    return run_main


def test_sqlite_is_refused(sqlite_url: URL, refusal: Callable[[URL], str]) -> None:
    assert refusal(sqlite_url) == (
        "DATABASE_URL names a SQLite file: only Postgres with the extension Citus can distribute tables."
    )


def test_a_postgres_without_citus_is_refused(postgres_url: URL, refusal: Callable[[URL], str]) -> None:
    assert refusal(postgres_url) == "The database has no Citus: run CREATE EXTENSION citus, and add the workers."


def test_a_schema_that_is_not_at_head_is_refused(postgres_databases: Databases, refusal: Callable[[URL], str]) -> None:
    url = postgres_databases.empty()
    remedy = f"not {HEAD}: run 'alembic upgrade head' first."
    assert refusal(url) == f"The database is at revision none, {remedy}"
    postgres_databases.drop(url)


def test_a_schema_of_a_newer_release_is_refused(postgres_url: URL, refusal: Callable[[URL], str]) -> None:
    execute(postgres_url, "UPDATE alembic_version SET version_num = '9999'")
    assert refusal(postgres_url) == (
        "The database is at revision 9999, which this release does not know: run this command in the release that does."
    )


def test_a_database_that_does_not_answer_is_reported_in_one_line_without_its_password(
    refusal: Callable[[URL], str],
) -> None:
    reported = refusal(parse_url(f"postgresql://heroes:s3cret@127.0.0.1:{free_port()}/heroes"))
    assert len(reported.splitlines()) == 1
    assert "s3cret" not in reported


@pytest.mark.slow
def test_the_command_fails_with_one_line() -> None:
    url = f"postgresql://heroes@127.0.0.1:{free_port()}/heroes"
    result = run(sys.executable, "-m", "migrations.distribute", changes={"DATABASE_URL": url})
    assert (result.returncode, len(result.stdout.splitlines())) == (1, 1)


def test_a_table_is_distributed_by_a_column_of_its_primary_key() -> None:
    """Citus requires it of every unique constraint."""
    assert distributed_tables().items() >= {"hero": "id", "idempotency_key": "key"}.items()
    for name, key in distributed_tables().items():
        assert key in SQLModel.metadata.tables[name].primary_key.columns
