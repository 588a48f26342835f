"""Create databases: SQLite files, databases on a Postgres server, or the one of a Citus cluster."""

import asyncio
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, inspect

from app.database import build_engine
from app.schema import read_revisions
from app.urls import parse_url
from migrations.distribute import distribute, distributed_tables, read_distribution
from tests.support.alembic_commands import HEAD, migrate
from tests.support.processes import TIMEOUT
from tests.support.sql import execute, execute_autocommit, run_in_transaction


class Databases:
    """Creates databases of one kind, empty or migrated, each used by one test alone."""

    def __init__(self, server: URL | None, folder: Path, *, pooler: URL | None = None) -> None:
        """Create Postgres databases on the server, or SQLite files in the folder if there is no server.

        Args:
            server: a URL of it.
            folder: for the files.
            pooler: a URL of the server through a pooler, which migrated databases are used through.
        """
        self._server = server
        self._pooler = pooler or server
        self._folder = folder
        self.template = self.empty()
        migrate(self.template)

    def empty(self) -> URL:
        """Create a database without tables."""
        name = f"test_{secrets.token_hex(6)}"
        if self._server is None:
            return parse_url(f"sqlite:///{self._folder / name}.db")
        execute_autocommit(self._server, f"CREATE DATABASE {name}")
        return self._server.set(database=name)

    def migrated(self) -> URL:
        """Create a database at head, without rows, as a copy of the template."""
        if self._server is None:
            url = self.empty()
            assert self.template.database
            assert url.database
            shutil.copyfile(self.template.database, url.database)
            return url
        assert self._pooler
        name = f"test_{secrets.token_hex(6)}"
        execute_autocommit(self._server, f"CREATE DATABASE {name} TEMPLATE {self.template.database} STRATEGY file_copy")
        return self._pooler.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a Postgres database, and close its connections."""
        if self._server is not None:
            execute_autocommit(self._server, f"DROP DATABASE {url.database} WITH (FORCE)")


class CitusDatabase(Databases):
    """The one database of a Citus cluster that the tests may empty, with distributed tables.

    A database on a cluster takes seconds to create, on each of its servers. So all tests use the same one, in turn.
    """

    def __init__(self, url: URL) -> None:
        """Take the database of a coordinator, and drop its tables."""
        assert str(url.database).startswith("test"), "the name of the database has to begin with 'test': it is emptied"
        self.template = url
        self.empty()

    def empty(self) -> URL:
        """Drop the tables."""
        tables = run_in_transaction(self.template, lambda connection: inspect(connection).get_table_names())
        execute(self.template, *(f"DROP TABLE {table} CASCADE" for table in tables))
        return self.template

    def migrated(self) -> URL:
        """Migrate it and distribute its tables, if they are not, and delete all rows."""
        if run_in_transaction(self.template, describe) != ({HEAD}, distributed_tables()):
            self.empty()
            migrate(self.template)
            distribute_tables(self.template)
        execute(self.template, *(f"DELETE FROM {table}" for table in distributed_tables()))
        execute(self.template, "SELECT setval('hero_id_seq', 1, false)")
        return self.template

    def drop(self, url: URL) -> None:
        """Keep it."""


def describe(connection: Connection) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return the revision of the database, and what Citus has distributed."""
    return read_revisions(connection), read_distribution(connection)


def distribute_tables(url: URL) -> None:
    """Distribute the tables, like the command."""

    async def connect_and_distribute() -> None:
        engine = build_engine(url, {}, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.run_sync(distribute, TIMEOUT)

    asyncio.run(connect_and_distribute())
