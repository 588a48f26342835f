"""Create databases: SQLite files, or databases on a Postgres server."""

import secrets
import shutil
from pathlib import Path

from sqlalchemy import URL

from app.urls import parse_url
from tests.support.alembic_commands import migrate
from tests.support.sql import execute_autocommit


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
