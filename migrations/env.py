"""Alembic's entry point: the service's own settings and models, one upgrade at a time, all of a revision or nothing."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

import app.main  # noqa: F401 - what is served is what Alembic sees
from app import logs
from app.database import create_engine
from app.schema import read_revisions
from app.settings import Settings
from app.urls import is_sqlite
from migrations import autogenerate, locks, rebuilds
from migrations.refusals import explain, refuse_to_lose_data, refuse_what_lacks

logs.install()
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
log = logging.getLogger("migrations.env")

SETTINGS = Settings.from_environment()
URL = context.config.attributes.get("url") or SETTINGS.database_url
SQLITE = is_sqlite(URL)
PATIENCE = SETTINGS.migration_timeout
LIMITS = {
    "lock_timeout": int(SETTINGS.migration_lock_timeout * 1000),
    "statement_timeout": int(SETTINGS.migration_statement_timeout * 1000),
}
if SQLITE:
    SESSION = {"busy_timeout": LIMITS["lock_timeout"]}
else:
    # Who was killed lets go of his locks within a second, and within a minute if his machine is gone.
    SESSION = {**LIMITS, "client_connection_check_interval": 1000, "idle_in_transaction_session_timeout": 60_000}

OPTIONS: dict[str, Any] = {
    "target_metadata": SQLModel.metadata,
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    "compare_server_default": autogenerate.compare_server_default,
    "include_name": autogenerate.include_name,
    "process_revision_directives": autogenerate.split,
    "render_as_batch": True,  # SQLite alters a table by making it anew
    "render_item": autogenerate.render_item,
    "transactional_ddl": True,
    "transaction_per_migration": not SQLITE,  # there, the lock is one transaction around all of them
    "limits": LIMITS | {"patience": int(PATIENCE * 1000)},  # for migrations.online
}


def run(connection: Connection) -> tuple[set[str], set[str]]:
    """Run the command that Alembic was called for.

    Returns:
        The revisions that the database had, and those that it has then.

    Raises:
        CommandError: it was refused, or has failed.
    """
    context.configure(connection=connection, **OPTIONS)
    if context.get_context().opts.get("destination_rev") is None:
        context.run_migrations()  # it only looks, so it waits for nobody
        return set(), set()
    try:
        with locks.one_at_a_time(connection, PATIENCE):
            return change(connection, context.get_context())
    except SQLAlchemyError as error:
        raise CommandError(explain(error, kept(connection))) from None


def change(connection: Connection, migration: MigrationContext) -> tuple[set[str], set[str]]:
    """Change the schema, with the lock in hand, and return the revisions that it had, and those that it has then."""
    have = migration.get_current_heads()
    target = migration.opts["destination_rev"]
    if target in {"head", "heads"} and unknown(have):
        found = f"The database is at {spell(have)}, which this release does not know"
        refuse_what_lacks(connection, SQLModel.metadata, found)
        log.warning("%s, but it has all that this release needs: nothing to do.", found)
        return set(have), set(have)
    steps = list(migration.opts["fn"](have, migration))
    if "lose-data" not in context.get_x_argument(as_dictionary=True):
        refuse_to_lose_data(steps)
    connection.rollback()  # of what was read: on Postgres, each revision begins its own transaction
    if SQLITE:
        with rebuilds.kept_safe(connection, "-".join(have) or "new"):
            context.run_migrations()
    elif set(target) & set("+-"):
        context.run_migrations()  # once: the second time, it would be relative to what the first has done
    else:
        locks.try_again(connection, context.run_migrations, PATIENCE)
    if not steps:
        log.info("The database is at %s: nothing to do.", spell(have))
    return set(have), set(migration.get_current_heads())


def unknown(revisions: tuple[str, ...]) -> bool:
    """Tell whether revisions come from elsewhere, as from a newer release."""
    return not {script.revision for script in context.script.walk_revisions()}.issuperset(revisions)


def spell(revisions: tuple[str, ...]) -> str:
    """Write revisions as people read them."""
    return ", ".join(revisions) or "no revision"


def kept(connection: Connection) -> str:
    """Say what is left of an upgrade that failed."""
    if SQLITE:
        return "Nothing was changed."
    try:
        connection.rollback()
        have = spell(context.get_context().get_current_heads())
    except SQLAlchemyError:
        lost = "The connection is lost" if connection.invalidated else "The revision can't be read"
        return f"{lost}; the revisions that ran before are kept."
    return f"The database is at {have}; of the next revision nothing is left, but for batches that it has finished."


async def run_online() -> None:
    """Connect, run the command, and look whether what was asked for is there.

    Raises:
        CommandError: it is not, as when something has begun a transaction before Alembic's own.
    """
    # On SQLite, the one transaction is begun by hand.
    engine = create_engine(URL, SESSION, poolclass=NullPool, **({"isolation_level": "AUTOCOMMIT"} if SQLITE else {}))
    try:
        connection = await engine.connect()
    except SQLAlchemyError as error:
        raise CommandError(f"The database does not answer: {explain(error, 'Nothing was changed.')}") from None
    async with aclosing(connection):
        had, expected = await connection.run_sync(run)
    if had != expected:
        async with engine.connect() as connection:
            have = await connection.run_sync(read_revisions)
        if have == had:  # if it is elsewhere, the next upgrade has gone on already
            raise CommandError(f"The upgrade was not kept: the database is at {spell(tuple(have))}.")


def run_offline() -> None:
    """Print the SQL instead of running it."""
    if SQLITE:
        raise CommandError("--sql works on Postgres only: on SQLite a revision looks at the tables that it makes anew.")
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    for name, milliseconds in LIMITS.items():
        context.execute(f"SET {name} = {milliseconds}")
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    asyncio.run(run_online())
