"""Upgrades that run at once, are killed, are blocked by locks, fail, or are refused."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, text

from app.database import build_engine
from app.main import create_app
from app.settings import Settings
from app.urls import is_sqlite
from migrations import locks
from tests.revisions.tutorial import tutorial_ddl
from tests.support.alembic_commands import HEAD, SCRIPT, alembic, migrate, try_alembic
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.polling import wait_until
from tests.support.postgres_server import running_postgres
from tests.support.processes import BIN, ROOT, TIMEOUT, environment, render_url, run
from tests.support.project import copy_project
from tests.support.sql import describe_schema, execute, execute_autocommit, fetch_value, run_in_transaction

INI = "docs/rename/alembic.ini"
RENAME = ("-c", INI, "upgrade")
RENAMES = ScriptDirectory.from_config(Config(ROOT / INI))
COMMAND = str(BIN / "alembic")
INTERRUPTED = (sys.executable, "-m", "tests.revisions.interrupted_upgrades")

HEROES = (
    "INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', NULL, 'Dive Wilson'), ('Rusty-Man', 48, 'Tommy')"
)
HEROES_BY_NUMBER = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE"
    " x < {}) SELECT 'Hero ' || x, x, 'secret ' || x FROM n"
)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
HOLDING = (
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)
VACUUMING = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'hero'::regclass"
INTERRUPTION = "Interrupted: 'alembic current' shows what was completed. Run the same command again."
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{}')"


@dataclass(frozen=True)
class Started:
    """A running process, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log.read_text().count(text) >= times or self.process.poll() is not None)
        assert self.log.read_text().count(text) >= times, self.log.read_text()

    def wait_until_stopped(self) -> None:
        process = psutil.Process(self.process.pid)
        wait_until(lambda: process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE})
        assert self.process.poll() is None, self.log.read_text()

    def end(self) -> tuple[int, str]:
        """Wait for its end, and return its exit code and its output."""
        return self.process.wait(TIMEOUT), self.log.read_text()


@contextmanager
def started(url: URL, log: Path, *command: str, **settings: str) -> Iterator[Started]:
    """Start a command. At the end, kill it and its children if it still runs."""
    changes = {"DATABASE_URL": render_url(url), **settings}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(changes), start_new_session=True, stdout=output, stderr=output
        )
    try:
        yield Started(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def open_transaction(url: URL, *statements: str) -> Iterator[Callable[[], None]]:
    """Keep a transaction open that has run the statements. On SQLite it holds the write lock too.

    Yields:
        A function that ends it before the end of the block.
    """
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> None:
            connection = await stack.enter_async_context(build_engine(url, {}).connect())
            await connection.begin()
            for statement in statements:
                await connection.execute(text(statement))

        runner.run(begin())
        try:
            yield lambda: runner.run(stack.aclose())
        finally:
            runner.run(stack.aclose())


@contextmanager
def held_migration_lock(url: URL) -> Iterator[Callable[[], None]]:
    """Hold the migration lock in an open transaction."""
    with open_transaction(url, *([] if is_sqlite(url) else [f"SELECT pg_advisory_lock({locks.KEY})"])) as release:
        yield release


def heroes(url: URL) -> list[Any]:
    question = text("SELECT id, name, age, secret_name FROM hero ORDER BY id")
    found: list[Any] = run_in_transaction(url, lambda connection: connection.execute(question).all())
    return found


def revision_of(url: URL) -> str:
    return str(fetch_value(url, "SELECT version_num FROM alembic_version"))


def times_run(said: str, script: ScriptDirectory) -> dict[str, int]:
    """Count how often each revision ran."""
    return {
        step.revision: len(re.findall(f"Running upgrade .* -> {step.revision},", said))
        for step in script.walk_revisions()
    }


def each_once(script: ScriptDirectory, after: str | None = None) -> dict[str, int]:
    """The result of `times_run` if each revision after the given one ran once."""
    before = {step.revision for step in script.iterate_revisions(after, "base")} if after else set()
    return {step.revision: int(step.revision not in before) for step in script.walk_revisions()}


def assert_refused(result: subprocess.CompletedProcess[str], *sentences: str) -> None:
    """The command failed with these sentences and without a traceback."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stdout, result.stdout
    for sentence in sentences:
        assert sentence in result.stdout


def write_revision(folder: Path, *upgrade: str) -> tuple[str, ...]:
    """Write a revision that follows head. Return the arguments that upgrade to it."""
    body = "\n    ".join(upgrade)
    (folder / "own.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\nfrom migrations import online\n\n"
        f"revision = 'own'\ndown_revision = '{HEAD}'\n\n\ndef upgrade():\n    {body}\n"
    )
    (folder / "alembic.ini").write_text((ROOT / INI).read_text().replace("%(here)s/../..", str(ROOT)))
    return ("-c", str(folder / "alembic.ini"), "upgrade", "head")


def upgrade_in_process(url: URL, revision: str, configuration: Path = ROOT / INI) -> None:
    """Upgrade in this process, which is faster than a command."""
    command.upgrade(Config(configuration, attributes={"url": url}), revision)


@pytest.fixture
def half_url(empty_url: URL) -> URL:
    """A database at the first revision, with heroes in it."""
    migrate(empty_url, "0001")
    execute(empty_url, HEROES)
    return empty_url


@pytest.fixture
def half_postgres_url(postgres_databases: Databases) -> Iterator[URL]:
    """A Postgres database at the first revision, with heroes in it."""
    url = postgres_databases.empty()
    migrate(url, "0001")
    execute(url, HEROES)
    yield url
    postgres_databases.drop(url)


class TestConcurrentUpgrades:
    def test_three_upgrades_at_once_run_each_revision_once(self, empty_url: URL, tmp_path: Path) -> None:
        with started(empty_url, tmp_path / "log", *INTERRUPTED, "concurrent", "3", *RENAME, "rename_7") as upgrades:
            status, said = upgrades.end()
        assert status == 0, said
        assert times_run(said, RENAMES) == each_once(RENAMES)
        assert revision_of(empty_url) == "rename_7"

    @pytest.mark.slow
    def test_four_command_lines_at_once_run_each_revision_once(self, empty_url: URL, tmp_path: Path) -> None:
        log = tmp_path / "log"
        with ExitStack() as stack:
            upgrades = [stack.enter_context(started(empty_url, log, COMMAND, "upgrade", "head")) for _ in range(4)]
            assert [upgrade.end()[0] for upgrade in upgrades] == [0] * 4
        assert times_run(log.read_text(), SCRIPT) == each_once(SCRIPT)
        assert revision_of(empty_url) == HEAD

    @pytest.mark.slow
    def test_eight_upgrades_wait_for_the_migration_lock_and_run_each_revision_once(
        self, half_url: URL, tmp_path: Path
    ) -> None:
        before = heroes(half_url)
        with (
            held_migration_lock(half_url) as release,
            started(half_url, tmp_path / "log", *INTERRUPTED, "concurrent", "8", "upgrade", "head") as upgrades,
        ):
            upgrades.wait_for("Waiting up to 600 s for the migration lock.", times=8)
            assert "Running upgrade" not in upgrades.log.read_text()
            release()
            status, said = upgrades.end()
        assert status == 0, said
        assert said.count("Acquired the migration lock after") == 8
        assert times_run(said, SCRIPT) == each_once(SCRIPT, after="0001")
        assert revision_of(half_url) == HEAD
        assert heroes(half_url) == before

    @pytest.mark.slow
    def test_an_upgrade_succeeds_when_another_one_continues_after_it(self, url: URL, tmp_path: Path) -> None:
        stopped = (*INTERRUPTED, "stopped", "UPDATE alembic_version", *RENAME, "rename_1")
        with started(url, tmp_path / "first", *stopped) as first:
            first.wait_until_stopped()
            with started(url, tmp_path / "second", COMMAND, *RENAME, "rename_7") as second:
                second.wait_for("Waiting up to 600 s for the migration lock.")
                first.process.send_signal(signal.SIGCONT)
                status, said = first.end()
                assert second.end()[0] == 0
        assert status == 0, said
        assert revision_of(url) == "rename_7"

    @pytest.mark.slow
    def test_an_upgrade_that_never_gets_the_migration_lock_changes_nothing(self, half_url: URL) -> None:
        before = describe_schema(half_url)
        with held_migration_lock(half_url):
            result = try_alembic(half_url, "upgrade", "head", MIGRATION_TIMEOUT="0.5")
        assert_refused(result, "Gave up after 0.5 s; nothing was changed. Try again later.")
        assert "Running upgrade" not in result.stdout
        assert describe_schema(half_url) == before
        assert revision_of(half_url) == "0001"


@pytest.mark.slow
class TestKilled:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_an_upgrade_that_is_killed_while_it_waits_for_a_table_releases_its_locks(
        self, half_postgres_url: URL, tmp_path: Path, number: signal.Signals
    ) -> None:
        url = half_postgres_url
        with open_transaction(url, "LOCK TABLE hero") as release:
            long_timeouts = {"MIGRATION_LOCK_TIMEOUT": "300", "MIGRATION_STATEMENT_TIMEOUT": "300"}
            with started(url, tmp_path / "killed", COMMAND, "upgrade", "head", **long_timeouts) as killed:
                wait_until(lambda: fetch_value(url, WAITING) == 1)
                assert fetch_value(url, HOLDING) == 1
                killed.process.send_signal(number)
                status, said = killed.end()
            assert status != 0
            if number == signal.SIGINT:
                assert said.splitlines()[-1] == f"FAILED: {INTERRUPTION}"
                assert "Traceback" not in said
            settings = {"MIGRATION_LOCK_TIMEOUT": "0.1", "MIGRATION_TIMEOUT": "30"}
            with started(url, tmp_path / "next", COMMAND, "upgrade", "head", **settings) as upgrade:
                upgrade.wait_for("Blocked by a lock; retrying in")  # so it holds the migration lock
                release()
                status, said = upgrade.end()
        assert status == 0, said
        assert revision_of(url) == HEAD

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_an_upgrade_that_is_killed_while_it_writes_to_a_file_releases_its_lock(
        self, sqlite_databases: Databases, tmp_path: Path, number: signal.Signals
    ) -> None:
        url = sqlite_databases.empty()
        migrate(url, "0001")
        execute(url, HEROES_BY_NUMBER.format(50_000))  # more than SQLite's page cache
        before = heroes(url)
        with (
            started(
                url, tmp_path / "log", *INTERRUPTED, "stopped", "UPDATE alembic_version", "upgrade", "head"
            ) as killed,
            closing(sqlite3.connect(str(url.database), timeout=0)) as connection,
        ):
            killed.wait_until_stopped()
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                connection.execute("BEGIN IMMEDIATE")
            killed.process.send_signal(number)
            killed.process.send_signal(signal.SIGCONT)
            assert killed.end()[0] == -number
        said = alembic(url, "upgrade", "head", MIGRATION_TIMEOUT="5")
        assert times_run(said, SCRIPT) == each_once(SCRIPT, after="0001")
        assert fetch_value(url, "PRAGMA integrity_check") == "ok"
        assert heroes(url) == before

    @pytest.mark.parametrize(("number", "step"), [("SIGKILL", 7), ("SIGINT", 11)])
    def test_after_a_kill_at_any_point_the_next_upgrade_gives_the_same_result(
        self, empty_url: URL, tmp_path: Path, number: str, step: int
    ) -> None:
        execute(empty_url, *tutorial_ddl(empty_url), HEROES_BY_NUMBER.format(2500))  # three batches
        kill = (*INTERRUPTED, "every-point", number, str(step), *RENAME, "rename_7")
        with started(empty_url, tmp_path / "log", *kill) as kills:
            status = kills.process.wait(5 * TIMEOUT)
        said = kills.log.read_text()
        assert status == 0, said
        summary = re.fullmatch(rf"{number} at (\d+) of (\d+) points", said.splitlines()[-1])
        assert summary, said
        killed, points = map(int, summary.groups())
        assert points > 30
        assert killed == len(range(0, points, step))
        assert said.count("rerun: 0, different: []") == killed

    def test_an_index_whose_build_was_killed_is_rebuilt(self, postgres_url: URL, tmp_path: Path) -> None:
        execute(postgres_url, HEROES)
        upgrade_in_process(postgres_url, "rename_2")
        is_valid = IS_VALID.format("ix_hero_alias")
        with (
            open_transaction(postgres_url, "UPDATE hero SET age = 49 WHERE age = 48") as release,
            started(postgres_url, tmp_path / "log", COMMAND, *RENAME, "rename_3") as killed,
        ):
            wait_until(lambda: fetch_value(postgres_url, is_valid) is False)
            killed.process.kill()
            killed.end()
            wait_until(lambda: fetch_value(postgres_url, HOLDING) == 0)  # the server has noticed the kill
            release()
        assert fetch_value(postgres_url, is_valid) is False
        said = alembic(postgres_url, *RENAME, "rename_6")
        assert "The index ix_hero_alias exists, left by an interrupted build: rebuilding it." in said
        assert fetch_value(postgres_url, is_valid) is True
        assert revision_of(postgres_url) == "rename_6"


@pytest.mark.slow
class TestBlocked:
    async def test_a_long_transaction_is_reported_and_requests_are_served_meanwhile(self, postgres_url: URL) -> None:
        before = await asyncio.to_thread(describe_schema, postgres_url)
        statuses = []
        try_upgrade = partial(try_alembic, MIGRATION_TIMEOUT="2", MIGRATION_LOCK_TIMEOUT="0.3")
        reader = build_engine(postgres_url, {})
        app = create_app(Settings(database_url=postgres_url, lock_timeout=2))
        async with running(app) as client, reader.connect() as connection:
            process = await connection.scalar(text("SELECT pg_backend_pid() FROM (SELECT count(*) FROM hero) AS read"))
            upgrade = asyncio.create_task(asyncio.to_thread(try_upgrade, postgres_url, *RENAME, "rename_1"))
            while not upgrade.done():
                statuses.append((await client.get("/heroes/")).status_code)
                await asyncio.sleep(0.01)
        assert_refused(upgrade.result(), "Gave up after 2 s: still blocked by a lock.", f"process {process} (unnamed)")
        assert set(statuses) == {200}
        assert await asyncio.to_thread(describe_schema, postgres_url) == before
        assert await asyncio.to_thread(revision_of, postgres_url) == HEAD

    def test_a_retry_succeeds_after_the_end_of_a_long_transaction(self, postgres_url: URL, tmp_path: Path) -> None:
        settings = {"MIGRATION_LOCK_TIMEOUT": "0.1"}
        with (
            open_transaction(postgres_url, "SELECT * FROM hero") as release,
            started(postgres_url, tmp_path / "log", COMMAND, *RENAME, "rename_1", **settings) as upgrade,
        ):
            upgrade.wait_for("Blocked by a lock; retrying in")
            release()
            status, said = upgrade.end()
        assert status == 0, said
        assert revision_of(postgres_url) == "rename_1"

    def test_an_upgrade_to_a_relative_revision_is_not_retried(self, postgres_url: URL) -> None:
        with open_transaction(postgres_url, "SELECT * FROM hero"):
            result = try_alembic(postgres_url, *RENAME, "+1", MIGRATION_LOCK_TIMEOUT="0.1")
        assert_refused(result, "Gave up after 0 s: still blocked by a lock.")
        assert "retrying" not in result.stdout

    def test_a_transaction_of_another_role_is_reported(self, postgres: URL, postgres_databases: Databases) -> None:
        url = postgres_databases.migrated()
        role = f"{url.database}_owner"
        execute(url, f"CREATE ROLE {role}", *(f"ALTER TABLE {name} OWNER TO {role}" for name in describe_schema(url)))
        owner = url.update_query_dict({"options": f"-c role={role}"})
        try:
            with open_transaction(url.update_query_dict({"application_name": "reports"}), "SELECT * FROM hero"):
                result = try_alembic(owner, *RENAME, "rename_1", MIGRATION_TIMEOUT="0.3", MIGRATION_LOCK_TIMEOUT="0.1")
        finally:
            postgres_databases.drop(url)
            execute(postgres, f"DROP ROLE {role}")
        assert_refused(result, "Gave up after 0.3 s", "(reports)")

    def test_an_autovacuum_gives_way_to_an_upgrade(self) -> None:
        slowly = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
        often = "autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0"
        with running_postgres() as server:
            url = server.url
            execute_autocommit(url, "ALTER SYSTEM SET autovacuum_naptime = 1")
            execute_autocommit(url, "SELECT pg_reload_conf()")
            migrate(url)
            execute(url, f"ALTER TABLE hero SET ({slowly}, {often})", HEROES_BY_NUMBER.format(20_000))
            execute(url, "DELETE FROM hero WHERE id % 3 = 0")
            wait_until(lambda: fetch_value(url, VACUUMING) == 1)
            result = try_alembic(url, *RENAME, "rename_1", MIGRATION_TIMEOUT="6", MIGRATION_LOCK_TIMEOUT="0.1")
            assert_refused(result, "Gave up after 6 s: still blocked by a lock.", "(autovacuum worker)")
            alembic(url, *RENAME, "rename_1", MIGRATION_TIMEOUT="6")

    def test_a_blocked_index_build_reports_the_invalid_index(self, postgres_url: URL, tmp_path: Path) -> None:
        arguments = write_revision(tmp_path, "online.create_index('ix_own', 'hero', ['secret_name'])")
        importer = postgres_url.update_query_dict({"application_name": "imports"})
        with open_transaction(importer, "LOCK TABLE hero IN ROW EXCLUSIVE MODE"):
            result = try_alembic(postgres_url, *arguments, MIGRATION_TIMEOUT="1")
        assert_refused(result, "Gave up after 1 s: still blocked by a lock", "(imports)")
        assert fetch_value(postgres_url, IS_VALID.format("ix_own")) is False
        assert "The build left the invalid index ix_own: the next upgrade rebuilds it." in result.stdout
        upgrade_in_process(postgres_url, "own", tmp_path / "alembic.ini")
        assert fetch_value(postgres_url, IS_VALID.format("ix_own")) is True

    def test_a_statement_that_times_out_is_rolled_back(self, half_postgres_url: URL) -> None:
        url = half_postgres_url
        slowly = "CREATE OR REPLACE FUNCTION slowly(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS"
        # The index is rebuilt with the table, which takes as long as that of a large table.
        execute(url, f"{slowly} 'BEGIN RETURN $1; END'", "CREATE INDEX slow ON hero (slowly(age))")
        execute(url, f"{slowly} 'BEGIN PERFORM pg_sleep(60); RETURN $1; END'")
        before = describe_schema(url)
        result = try_alembic(url, "upgrade", "head", MIGRATION_STATEMENT_TIMEOUT="0.5")
        remedy = (
            "The statement was cancelled or has timed out: choose a quieter time, or raise MIGRATION_STATEMENT_TIMEOUT."
        )
        assert_refused(result, remedy)
        assert "The database is at 0001; nothing of the failed revision remains" in result.stdout
        assert describe_schema(url) == before
        assert revision_of(url) == "0001"

    def test_a_statement_that_is_cancelled_is_rolled_back(self, postgres_url: URL, tmp_path: Path) -> None:
        long_timeouts = {"MIGRATION_LOCK_TIMEOUT": "300", "MIGRATION_STATEMENT_TIMEOUT": "300"}
        with (
            open_transaction(postgres_url, "SELECT * FROM hero"),
            started(postgres_url, tmp_path / "log", COMMAND, *RENAME, "rename_1", **long_timeouts) as upgrade,
        ):
            wait_until(lambda: fetch_value(postgres_url, WAITING) == 1)
            fetch_value(postgres_url, WAITING.replace("count(*)", "pg_cancel_backend(pid)"))
            status, said = upgrade.end()
        assert status != 0
        assert "due to user request" in said
        assert "The statement was cancelled or has timed out: " in said

    def test_options_of_the_url_hold_after_an_online_operation(self, postgres_url: URL, tmp_path: Path) -> None:
        show = "[op.get_bind().exec_driver_sql(f'SHOW {name}_timeout').scalar() for name in ('lock', 'statement')]"
        arguments = write_revision(
            tmp_path, "online.create_index('ix_own', 'hero', ['secret_name'])", f"print('limits:', *{show})"
        )
        url = postgres_url.update_query_dict({"options": "-c lock_timeout=7s -c statement_timeout=0"})
        assert "limits: 7s 0\n" in alembic(url, *arguments)

    def test_a_statement_timeout_that_is_too_short_for_any_query_is_reported(self, half_postgres_url: URL) -> None:
        result = try_alembic(half_postgres_url, "upgrade", "head", MIGRATION_STATEMENT_TIMEOUT="0.001")
        assert_refused(result, "MIGRATION_STATEMENT_TIMEOUT")
        assert revision_of(half_postgres_url) == "0001"


@pytest.mark.slow
class TestFailures:
    @pytest.mark.parametrize("revision", ["rename_1", "rename_2", "rename_3"])
    def test_a_lost_connection_is_reported_in_one_sentence(
        self, postgres_url: URL, tmp_path: Path, revision: str
    ) -> None:
        execute(postgres_url, HEROES)
        before = str(RENAMES.get_revision(revision).down_revision)
        upgrade_in_process(postgres_url, before)
        long_timeouts = {"MIGRATION_LOCK_TIMEOUT": "300", "MIGRATION_STATEMENT_TIMEOUT": "300"}
        with (
            open_transaction(postgres_url, "UPDATE hero SET age = 49"),
            started(postgres_url, tmp_path / "log", COMMAND, *RENAME, revision, **long_timeouts) as upgrade,
        ):
            wait_until(lambda: fetch_value(postgres_url, WAITING) == 1)
            fetch_value(postgres_url, WAITING.replace("count(*)", "pg_terminate_backend(pid)"))
            status, said = upgrade.end()
        assert status != 0
        assert "terminating connection due to administrator command" in said
        assert f"The database is at {before}; nothing of the failed revision remains" in said
        assert "Traceback" not in said
        assert revision_of(postgres_url) == before

    def test_a_lock_on_alembic_version_is_reported_in_one_sentence(self, postgres_url: URL) -> None:
        with open_transaction(postgres_url, "LOCK TABLE alembic_version"):
            settings = {"MIGRATION_TIMEOUT": "1", "MIGRATION_LOCK_TIMEOUT": "0.1"}
            result = run("alembic", "upgrade", "head", changes={"DATABASE_URL": render_url(postgres_url), **settings})
        assert_refused(result, "lock")

    @pytest.mark.parametrize("number", [1_000, 50_000], ids=["at the end", "in the middle"])
    def test_a_full_disk_is_reported_in_one_sentence_and_changes_nothing(
        self, sqlite_databases: Databases, number: int
    ) -> None:
        url = sqlite_databases.empty()
        migrate(url, "0001")
        execute(url, HEROES_BY_NUMBER.format(number))
        blocks = Path(str(url.database)).stat().st_size // 512 * 11 // 10  # room for the backup, not for the new table
        command = f"ulimit -f {blocks} && exec alembic upgrade head"
        result = run("sh", "-c", command, changes={"DATABASE_URL": render_url(url)})
        assert_refused(result, "disk", "Nothing was changed.")
        assert list(Path(str(url.database)).parent.glob(f"{Path(str(url.database)).name}*.bak*")) == []
        assert revision_of(url) == "0001"
        assert len(heroes(url)) == number
        migrate(url)
        assert len(heroes(url)) == number

    def test_a_disk_without_room_for_the_backup_is_reported_and_nothing_is_left(
        self, sqlite_databases: Databases
    ) -> None:
        url = sqlite_databases.empty()
        migrate(url, "0001")
        execute(url, HEROES_BY_NUMBER.format(50_000))
        file = Path(str(url.database))
        before = sorted(file.parent.glob(f"{file.name}*"))
        blocks = file.stat().st_size // 512 * 9 // 10  # room for the copy of the table, not for that of the file
        command = f"ulimit -f {blocks} && exec alembic upgrade head"
        result = run("sh", "-c", command, changes={"DATABASE_URL": render_url(url)})
        assert_refused(result, "The database could not be backed up, so nothing was changed")
        assert sorted(file.parent.glob(f"{file.name}*")) == before
        assert revision_of(url) == "0001"

    def test_a_file_that_is_not_a_database_is_unchanged(self, tmp_path: Path) -> None:
        file = tmp_path / "database.db"
        file.write_bytes(b"This is a letter to my aunt. " * 100)
        before = file.read_bytes()
        url = URL.create("sqlite+aiosqlite", database=str(file))
        assert_refused(try_alembic(url, "upgrade", "head"), "file is not a database")
        assert file.read_bytes() == before


@pytest.mark.slow
class TestRefused:
    def test_a_unique_index_over_duplicate_rows_leaves_no_index_and_reveals_no_secret(
        self, url: URL, tmp_path: Path
    ) -> None:
        execute(url, *["INSERT INTO hero (name, secret_name) VALUES ('x', 'Dive Wilson')"] * 2)
        before = describe_schema(url)
        arguments = write_revision(tmp_path, "online.create_index('ix_own', 'hero', ['secret_name'], unique=True)")
        result = try_alembic(url, *arguments)
        failure = "UNIQUE constraint failed" if is_sqlite(url) else 'could not create unique index "ix_own"'
        assert_refused(result, failure, "Fix the cause and run the same command again.")
        assert "Dive Wilson" not in result.stdout
        assert "DETAIL" not in result.stdout
        assert describe_schema(url) == before
        assert revision_of(url) == HEAD
        execute(url, "UPDATE hero SET secret_name = 'Tommy' WHERE id = 2")
        upgrade_in_process(url, "own", tmp_path / "alembic.ini")
        assert revision_of(url) == "own"

    def test_a_revision_that_mixes_transactional_and_online_operations_is_refused(
        self, postgres_url: URL, tmp_path: Path
    ) -> None:
        arguments = write_revision(
            tmp_path,
            "op.add_column('hero', sa.Column('power', sa.String()))",
            "online.create_index('ix_own', 'hero', ['power'])",
        )
        before = describe_schema(postgres_url)
        assert_refused(
            try_alembic(postgres_url, *arguments), "this revision has changed something before it: split it."
        )
        assert describe_schema(postgres_url) == before
        assert revision_of(postgres_url) == HEAD

    @pytest.mark.parametrize("target", ["head", "0002", "+2"])
    def test_an_upgrade_that_is_not_committed_fails(
        self, postgres_databases: Databases, tmp_path: Path, target: str
    ) -> None:
        project = copy_project(tmp_path / "project")
        for step in SCRIPT.iterate_revisions(HEAD, "0002"):  # online operations among them would commit
            (project / "migrations/versions" / Path(step.path).name).unlink()
        env = project / "migrations/env.py"
        configure = "    context.configure(connection=connection, **OPTIONS)\n"
        read = '    connection.exec_driver_sql("SELECT 1")\n'
        assert configure in env.read_text()
        env.write_text(env.read_text().replace(configure, read + configure))
        url = postgres_databases.empty()
        assert_refused(
            try_alembic(url, "upgrade", target, cwd=project),
            "env.py uses the connection before Alembic does: nothing would be committed.",
        )
        assert describe_schema(url) == {}
        postgres_databases.drop(url)


@pytest.mark.slow
class TestNewerDatabases:
    def test_an_older_release_leaves_a_newer_database_unchanged(self, url: URL) -> None:
        execute(url, "UPDATE alembic_version SET version_num = '9999'")
        before = describe_schema(url)
        said = alembic(url, "upgrade", "head")
        assert "WARNING" in said
        assert "The database is at 9999, which this release does not know" in said
        assert "it has every table and column that this release needs: nothing to do." in said
        assert describe_schema(url) == before
        assert revision_of(url) == "9999"

    def test_a_database_of_another_application_is_refused(self, empty_url: URL) -> None:
        execute(
            empty_url,
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
            "INSERT INTO alembic_version VALUES ('9999')",
        )
        before = describe_schema(empty_url)
        result = try_alembic(empty_url, "upgrade", "head")
        assert_refused(result, "The database is at 9999", "it lacks ", "hero.id", "hero.secret_name", "Nothing was")
        assert describe_schema(empty_url) == before
