"""Create databases: SQLite files, databases on a Postgres server, or the one of a Citus cluster."""

import asyncio
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import asyncpg
from sqlalchemy import URL, Connection, MetaData, inspect

from app.database import build_engine
from app.schema import read_revisions
from app.urls import parse_url
from migrations.distribute import distribute, distributed_tables, read_distribution
from tests.support.alembic_commands import HEAD, migrate
from tests.support.backends import EMPTYING_NAME
from tests.support.processes import TIMEOUT
from tests.support.sql import execute, execute_autocommit, render_dsn, run_in_transaction

# All that a test can change of a Postgres database but its rows: what ANALYZE has found is in pg_class.
# A table that has grown keeps its size, and the plans that fit it.
SCHEMA = """
SELECT md5(string_agg(entry, ' ' ORDER BY entry)) FROM (
    SELECT pg_class::text || (pg_relation_size(oid) > 1000000) AS entry FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT pg_attribute::text FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT pg_attrdef::text FROM pg_attrdef
    UNION ALL SELECT pg_constraint::text FROM pg_constraint
    UNION ALL SELECT pg_trigger::text FROM pg_trigger
    UNION ALL SELECT pg_proc::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT pg_namespace::text FROM pg_namespace
    UNION ALL SELECT pg_db_role_setting::text FROM pg_db_role_setting
) AS entries
"""
DISCONNECT_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Databases:
    """Creates databases of one kind, empty or migrated, each used by one test at a time."""

    def __init__(self, server: URL | None, folder: Path, *, pooler: URL | None = None) -> None:
        """Create Postgres databases on the server, or SQLite files in the folder if there is no server.

        Args:
            server: a URL of it.
            folder: for the files.
            pooler: a URL of the server through a pooler, which migrated databases are used through.
        """
        self._server = server
        self._pooler = pooler
        self._folder = folder
        self._unused: list[URL] = []
        self.template = self.empty()
        migrate(self.template)
        self._delete_rows = run_in_transaction(self.template, render_deletes)
        self._schema = None if server is None else execute_autocommit(self.template, SCHEMA)
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # not the event loop of a test
        self._connections: dict[URL, asyncpg.Connection] = {}  # one to each database, which empties it

    def empty(self) -> URL:
        """Create a database without tables."""
        name = f"test_{secrets.token_hex(6)}"
        if self._server is None:
            return parse_url(f"sqlite:///{self._folder / name}.db")
        execute_autocommit(self._server, f"CREATE DATABASE {name}")
        return self._server.set(database=name)

    def migrated(self) -> URL:
        """Create a database at head, without rows, as a copy of the template, or take one that is no longer used."""
        if self._server is None:
            url = self._unused.pop() if self._unused else self.empty()
            assert self.template.database
            assert url.database
            shutil.copyfile(self.template.database, url.database)
            return url
        if self._unused:
            return self._unused.pop()
        name = f"test_{secrets.token_hex(6)}"
        execute_autocommit(self._server, f"CREATE DATABASE {name} TEMPLATE {self.template.database} STRATEGY file_copy")
        return (self._pooler or self._server).set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a database, or empty it for the next test if only its rows have changed.

        Postgres takes 100 ms of CPU to create one, and 4 ms to empty it over a connection that stays open.
        """
        if self._server is None:
            for path in self._folder.glob(f"{Path(str(url.database)).name}*"):
                path.unlink()
            self._unused.append(url)
            return
        if self._runner.run(self._empty_unchanged(self._server.set(database=url.database))):
            self._unused.append(url)
        else:
            execute_autocommit(self._server, f"DROP DATABASE {url.database} WITH (FORCE)")

    async def _empty_unchanged(self, url: URL) -> bool:
        """Delete the rows of a database, unless something else has changed, or the connection is gone."""
        connection = self._connections.pop(url, None)
        if connection is None:
            connection = await asyncpg.connect(render_dsn(url), server_settings={"application_name": EMPTYING_NAME})
        try:
            if self._pooler is None:  # a pooler keeps its connections
                await connection.execute(DISCONNECT_OTHERS)
            if await connection.fetchval(SCHEMA) == self._schema:
                await connection.execute(self._delete_rows)
                self._connections[url] = connection
                return True
            await connection.close()
        except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, OSError):
            connection.terminate()
        return False

    async def _disconnect(self) -> None:
        for connection in self._connections.values():
            await connection.close()

    def close(self) -> None:
        """Drop the databases that are not used."""
        self._runner.run(self._disconnect())
        self._runner.close()
        assert self._server
        for url in (self.template, *self._unused):
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


def render_deletes(connection: Connection) -> str:
    """Return the SQL that leaves of all rows only the revision, and lets ids start at 1."""
    metadata = MetaData()
    metadata.reflect(connection)
    tables = [table.name for table in reversed(metadata.sorted_tables) if table.name != "alembic_version"]
    return ";".join(
        (
            *(f"DELETE FROM {table}" for table in tables),
            "DELETE FROM alembic_version",
            f"INSERT INTO alembic_version VALUES ('{HEAD}')",
            "SELECT setval(seqrelid, seqstart, false) FROM pg_sequence",
        )
    )


def describe(connection: Connection) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return the revision of the database, and what Citus has distributed."""
    return read_revisions(connection), read_distribution(connection)


def distribute_tables(url: URL) -> None:
    """Distribute the tables, like the command."""

    async def connect_and_distribute() -> None:
        engine = build_engine(url, {})
        async with engine.connect() as connection:
            await connection.run_sync(distribute, TIMEOUT)

    asyncio.run(connect_and_distribute())
