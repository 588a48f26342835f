"""The revisions on a Citus cluster. tests/test_citus.py has the rest."""

import sys

import pytest
from sqlalchemy import URL

from tests.support.alembic_commands import alembic
from tests.support.databases import Databases
from tests.support.processes import render_url, run
from tests.support.sql import execute, fetch_value

pytestmark = pytest.mark.citus


@pytest.fixture
def url(citus_databases: Databases) -> URL:
    """The database of the cluster at head, with distributed tables without rows."""
    return citus_databases.migrated()


def distribute(url: URL) -> tuple[int, str]:
    result = run(sys.executable, "-m", "migrations.distribute", changes={"DATABASE_URL": render_url(url)})
    return result.returncode, result.stdout


def test_the_revisions_after_0002_run_on_distributed_tables(url: URL) -> None:
    execute(url, "INSERT INTO hero (name, secret_name) SELECT 'x', 'x' FROM generate_series(1, 100)")
    alembic(url, "-x", "lose-data", "downgrade", "0002")
    alembic(url, "upgrade", "head")
    assert distribute(url) == (0, "hero: is distributed by id already.\nidempotency_key: distributed by key.\n")
    assert fetch_value(url, "SELECT count(*) FROM hero WHERE version = 1") == 100
    assert "No new upgrade operations detected." in alembic(url, "check")


def test_the_revisions_that_rename_a_column_keep_every_value(url: URL) -> None:
    """The example of docs/migrations.md: expand, backfill, index, check, validate, swap, contract."""
    execute(url, "INSERT INTO hero (name, secret_name) SELECT 'x', i::text FROM generate_series(1, 2500) AS i")
    alembic(url, "-c", "docs/rename/alembic.ini", "upgrade", "rename_7")
    assert fetch_value(url, "SELECT count(DISTINCT alias) FROM hero") == 2500
