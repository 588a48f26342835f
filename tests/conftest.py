"""Fixtures: migrated databases, and the app on them."""

import gc
import os
import sys
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL

from app.log_config import RequestFilter
from app.main import create_app
from app.settings import Settings
from app.urls import parse_url
from tests.support.app_client import running
from tests.support.databases import CitusDatabase, Databases
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import running_postgres
from tests.support.sql import POOLER

# A cluster that TEST_CITUS_URL names takes the place of both.
KINDS = ["citus"] if "TEST_CITUS_URL" in os.environ else ["sqlite", "postgres"]


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore sys.path after each test: Alembic prepends its folder on each run, which slows every later import."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A Postgres server: the one that TEST_DATABASE_URL names, or one that runs for the session."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        yield parse_url(named)
        return
    with running_postgres() as server:
        yield server.url


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Creates SQLite files."""
    return Databases(None, tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def pooler(postgres: URL) -> Iterator[URL | None]:
    """A PgBouncer in front of that server, if DATABASE_POOLER asks the service to expect one."""
    if POOLER is None:
        yield None
        return
    with pgbouncer(postgres, default_pool_size="20") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_databases(
    postgres: URL, pooler: URL | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Databases]:
    """Creates Postgres databases."""
    databases = Databases(postgres, tmp_path_factory.mktemp("databases"), pooler=pooler)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def citus_databases() -> Databases:
    """The database of a Citus cluster that TEST_CITUS_URL names."""
    return CitusDatabase(parse_url(os.environ["TEST_CITUS_URL"]))


@pytest.fixture(scope="session", params=KINDS)
def databases(request: pytest.FixtureRequest) -> Databases:
    """Creates databases of either kind, so that each test that uses it runs on both."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    return databases


@pytest.fixture
def sqlite_url(sqlite_databases: Databases) -> Iterator[URL]:
    """A SQLite file at head, without rows."""
    url = sqlite_databases.migrated()
    yield url
    sqlite_databases.drop(url)


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[URL]:
    """A Postgres database at head, without rows."""
    url = postgres_databases.migrated()
    yield url
    postgres_databases.drop(url)


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[URL]:
    """A database without tables."""
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
def url(databases: Databases) -> Iterator[URL]:
    """A database at head, without rows."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture(scope="module")
def module_url(databases: Databases) -> Iterator[URL]:
    """A database at head, which the tests of a module share: no test may depend on what others have written."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture
async def app(url: URL) -> FastAPI:
    """A new app on a migrated database, before its startup, for tests that change it."""
    return create_app(Settings(database_url=url))


@lru_cache(maxsize=8)  # a database that was not reused never comes back
def unchanged_app(url: URL) -> FastAPI:
    """Create an app for all tests on a database: its first requests, which prepare the routes, take 40 ms of CPU."""
    return create_app(Settings(database_url=url))


@pytest.fixture
async def client(url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the running app on a migrated database."""
    async with running(unchanged_app(url)) as client:
        yield client


@pytest.fixture
def request_ids(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Records in caplog have the id of their request, as in the log of a service."""
    caplog.handler.addFilter(request_filter := RequestFilter())
    yield
    caplog.handler.removeFilter(request_filter)


def pytest_collection_finish() -> None:
    """Keep what the collection has created out of the garbage collections of all tests."""
    gc.freeze()
