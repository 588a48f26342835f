"""The status command: current and pending revisions, and what they lock."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import URL

from app.urls import parse_url
from migrations.status import main
from tests.support.alembic_commands import BASE, HEAD, SCRIPT, migrate
from tests.support.processes import free_port, render_url
from tests.support.sql import execute, run_in_transaction


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[URL], str]:
    """Return what the command prints, without a process of its own."""

    def run_main(url: URL) -> str:
        monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
        monkeypatch.setenv("DATABASE_URL", render_url(url))
        asyncio.run(main())
        return capsys.readouterr().out

    return run_main


def test_status_lists_pending_revisions_and_their_locks(empty_url: URL, status: Callable[[URL], str]) -> None:
    migrate(empty_url, BASE)
    found = status(empty_url)
    assert f"current: {BASE}\n" in found
    assert f"head:    {HEAD}\n" in found
    assert f"pending: {BASE}" not in found
    for revision in SCRIPT.iterate_revisions(HEAD, BASE):
        assert f"pending: {revision.revision}  {revision.doc}" in found
    assert found.count("\nLocks: ") == found.count("\npending: ")


def test_a_database_that_was_never_migrated_has_all_revisions_pending_in_order(
    empty_url: URL, status: Callable[[URL], str]
) -> None:
    execute(empty_url, "CREATE TABLE theirs (id INTEGER)")
    found = status(empty_url)
    assert "current: none\n" in found
    pending = [line.split()[1] for line in found.splitlines() if line.startswith("pending: ")]
    assert pending == [revision.revision for revision in reversed(list(SCRIPT.walk_revisions()))]


def test_a_database_at_head_has_nothing_pending(url: URL, status: Callable[[URL], str]) -> None:
    found = status(url)
    assert f"current: {HEAD}\n" in found
    assert "pending" not in found


def test_a_database_of_a_newer_release_is_marked(url: URL, status: Callable[[URL], str]) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    found = status(url)
    assert "current: 9999 (of a newer release)\n" in found
    assert "pending" not in found


def test_status_changes_nothing(empty_url: URL, status: Callable[[URL], str]) -> None:
    execute(empty_url, "CREATE TABLE theirs (id INTEGER)")
    status(empty_url)
    tables = run_in_transaction(empty_url, lambda connection: connection.dialect.get_table_names(connection))
    assert tables == ["theirs"]


def test_a_file_that_is_not_there_is_reported_and_not_created(tmp_path: Path, status: Callable[[URL], str]) -> None:
    path = tmp_path / "heroes.db"
    with pytest.raises(
        SystemExit, match=f"^There is no file at {re.escape(str(path))}: 'alembic upgrade head' creates it.$"
    ):
        status(URL.create("sqlite+aiosqlite", database=str(path)))
    assert not path.exists()


def test_an_invalid_index_is_listed(postgres_url: URL, status: Callable[[URL], str]) -> None:
    execute(postgres_url, "INSERT INTO hero (name, secret_name) VALUES ('twice', 'x'), ('twice', 'x')")

    async def fail() -> None:
        connection = await asyncpg.connect(postgres_url.set(drivername="postgresql").render_as_string())
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_broken ON hero (name)")
        await connection.close()

    asyncio.run(fail())
    assert "invalid: ix_broken, left by an interrupted build." in status(postgres_url)


def test_an_unreachable_database_is_reported_in_one_line_without_its_password(
    status: Callable[[URL], str],
) -> None:
    with pytest.raises(SystemExit, match=r"^The database does not answer: [^\n]+$") as reported:
        status(parse_url(f"postgresql://heroes:s3cret@127.0.0.1:{free_port()}/heroes"))
    assert "s3cret" not in str(reported.value)
