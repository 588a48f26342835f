"""Alembic's entry point: the service's own settings and models, one transaction a revision."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

import app.main  # noqa: F401 - what is served is what Alembic sees
from app.database import create_engine, is_sqlite
from app.settings import Settings

logging.basicConfig(format="%(levelname)s [%(name)s] %(message)s")
logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)

URL = context.config.attributes.get("url") or Settings.from_environment().database_url


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write SQLModel's types as SQLAlchemy's, so that a revision needs no import and outlives SQLModel."""
    if kind == "type" and type(item).__module__.startswith("sqlmodel."):
        return f"sa.{item.impl!r}"
    return False


OPTIONS: dict[str, Any] = {
    "target_metadata": SQLModel.metadata,
    "compare_server_default": True,
    "render_as_batch": True,  # SQLite alters a table by making it anew
    "render_item": render_item,
    "transaction_per_migration": True,
    "transactional_ddl": True,  # on SQLite too, since create_engine's transactions begin where they say
}


def migrate(connection: Connection) -> None:
    """Run the command that Alembic was called for."""
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_online() -> None:
    """Connect without the service's time limits: a revision takes the time that it takes."""
    # WAL at once: to turn a file that somebody uses into one with a write-ahead log waits for no timeout.
    session = {"busy_timeout": 60_000, "journal_mode": "WAL"} if is_sqlite(URL) else {}
    engine = create_engine(URL, session, poolclass=NullPool)
    try:
        connection = await engine.connect()
    except SQLAlchemyError as error:
        raise CommandError(f"The database does not answer: {getattr(error, 'orig', error)}") from None
    async with aclosing(connection):
        await connection.run_sync(migrate)


def migrate_offline() -> None:
    """Print the SQL instead of running it."""
    if is_sqlite(URL):
        raise CommandError("--sql works on Postgres only: on SQLite a revision looks at the tables that it makes anew.")
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    migrate_offline()
else:
    asyncio.run(migrate_online())
