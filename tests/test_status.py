"""The command that says what an upgrade would do."""

import asyncio
import sys

import asyncpg
import pytest
from sqlalchemy import URL

from tests.conftest import migrate
from tests.migrating import HEAD, SCRIPT, execute, on
from tests.processes import free_port, run, spell


def status(url: URL) -> str:
    result = run(sys.executable, "-m", "migrations.status", changes={"DATABASE_URL": spell(url)})
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_it_lists_what_is_pending_and_what_that_locks(empty_url: URL) -> None:
    migrate(empty_url, "0001")
    found = status(empty_url)
    assert "current: 0001\n" in found
    assert f"head:    {HEAD}\n" in found
    assert "pending: 0001" not in found
    for revision in SCRIPT.iterate_revisions(HEAD, "0001"):
        assert f"pending: {revision.revision}  {revision.doc}" in found
    assert found.count("\nLocks: ") == found.count("\npending: ")


@pytest.mark.slow
def test_of_an_empty_database_everything_is_pending_in_the_order_in_which_it_runs(empty_url: URL) -> None:
    found = status(empty_url)
    assert "current: none\n" in found
    pending = [line.split()[1] for line in found.splitlines() if line.startswith("pending: ")]
    assert pending == [revision.revision for revision in reversed(list(SCRIPT.walk_revisions()))]


@pytest.mark.slow
def test_at_head_nothing_is_pending(url: URL) -> None:
    found = status(url)
    assert f"current: {HEAD}\n" in found
    assert "pending" not in found


@pytest.mark.slow
def test_a_newer_release_s_database_is_told_as_such(url: URL) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    found = status(url)
    assert "current: 9999 (of a newer release)\n" in found
    assert "pending" not in found


@pytest.mark.slow
def test_it_changes_nothing(empty_url: URL) -> None:
    status(empty_url)
    assert on(empty_url, lambda connection: connection.dialect.get_table_names(connection)) == []


def test_an_index_that_was_begun_and_never_finished_is_named(postgres_url: URL) -> None:
    execute(postgres_url, "INSERT INTO hero (name, secret_name) VALUES ('twice', 'x'), ('twice', 'x')")

    async def fail() -> None:
        connection = await asyncpg.connect(postgres_url.set(drivername="postgresql").render_as_string())
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_broken ON hero (name)")
        await connection.close()

    asyncio.run(fail())
    assert "not valid: ix_broken." in status(postgres_url)


def test_a_database_that_does_not_answer_is_told_in_one_sentence() -> None:
    url = f"postgresql://heroes:s3cret@127.0.0.1:{free_port()}/heroes"
    result = run(sys.executable, "-m", "migrations.status", changes={"DATABASE_URL": url})
    assert result.returncode != 0
    assert result.stdout.startswith("The database does not answer: ")
    assert "Traceback" not in result.stdout
    assert "s3cret" not in result.stdout
