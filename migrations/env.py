"""Alembic's environment: its async template, with a lock, timeouts, retries and guards around the migrations."""

import asyncio
import logging
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

import app.main  # noqa: F401 - registers the models in SQLModel.metadata
from app import log_config
from app.database import build_engine
from app.settings import Settings
from app.urls import is_sqlite
from migrations import autogenerate
from migrations.failures import explain
from migrations.guards import refuse_data_loss, refuse_incomplete_schema
from migrations.locks import migration_lock, retry_on_lock
from migrations.rebuilds import guard_rebuilds

config = context.config
settings = Settings.from_environment()
log_config.install(settings.log_format, settings.log_level)
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
log = logging.getLogger("migrations.env")

URL = config.attributes.get("url") or settings.migration_database_url or settings.database_url
SQLITE = is_sqlite(URL)
TIMEOUT = settings.migration_timeout
LIMITS = {
    "lock_timeout": int(settings.migration_lock_timeout * 1000),
    "statement_timeout": int(settings.migration_statement_timeout * 1000),
}
config.attributes["limits"] = LIMITS | {"migration_timeout": int(TIMEOUT * 1000)}  # for migrations.online

OPTIONS: dict[str, Any] = {
    "target_metadata": SQLModel.metadata,
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    "compare_server_default": autogenerate.compare_server_default,
    "include_name": autogenerate.include_name,
    "process_revision_directives": autogenerate.process_revision_directives,
    "render_as_batch": True,
    "render_item": autogenerate.render_item,
    "transactional_ddl": True,
    "transaction_per_migration": not SQLITE,  # on SQLite, the migration lock is one transaction around all revisions
}


def run_migrations_offline() -> None:
    """Print the SQL, with the time limits, instead of running it."""
    if SQLITE:
        raise CommandError("--sql works on Postgres only: on SQLite, a rebuild reads the table that it copies.")
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    for name, milliseconds in LIMITS.items():
        context.execute(f"SET {name} = {milliseconds}")
    with context.begin_transaction():
        context.run_migrations()


def do_run_migrations(connection: Connection) -> None:
    """Run the command that Alembic was called for, with the migration lock if it changes the schema."""
    context.configure(connection=connection, **OPTIONS)
    if connection.in_transaction():  # Alembic would leave its commit to what has begun it
        raise CommandError("env.py uses the connection before Alembic does: nothing would be committed.")
    try:
        target = context.get_revision_argument()
    except KeyError:  # `current`, `check` and `revision` take no target, only read, and need no lock
        context.run_migrations()
        return
    try:
        with migration_lock(connection, TIMEOUT):
            migrate(connection, target)
    except SQLAlchemyError as error:
        raise CommandError(explain(error, describe_failure(connection))) from None


def migrate(connection: Connection, target: str | tuple[str, ...] | None) -> None:
    """Run the revisions up to or down to a target, under the guards."""
    migration = context.get_context()
    heads = migration.get_current_heads()
    known = {script.revision for script in context.script.walk_revisions()}
    if not known.issuperset(heads) and target == context.get_head_revision():
        found = f"{describe(heads)}, which this release does not know"
        refuse_incomplete_schema(connection, SQLModel.metadata, found)
        log.warning("%s, but it has every table and column that this release needs: nothing to do.", found)
        return
    # Alembic has no public way to its plan. Without it, a downgrade is refused only at its first destructive step.
    steps = list(migration.opts["fn"](heads, migration))
    if "lose-data" not in context.get_x_argument(as_dictionary=True):
        refuse_data_loss(steps)
    if SQLITE:
        with guard_rebuilds(connection, "-".join(heads) or "new"):
            context.run_migrations()
    else:
        # A retry would resolve a relative target again, from the revision that the first try has reached.
        relative = bool(set(target or "") & set("+-"))
        retry_on_lock(connection, context.run_migrations, 0 if relative else TIMEOUT)
    if not steps:
        log.info("%s: nothing to do.", describe(heads))


def describe(heads: tuple[str, ...]) -> str:
    """Say which revision the database has."""
    return f"The database is at {', '.join(heads) or 'no revision'}"


def describe_failure(connection: Connection) -> str:
    """Say what a failed upgrade has left."""
    if SQLITE:
        return "Nothing was changed."
    try:
        connection.rollback()
        heads = context.get_context().get_current_heads()
    except SQLAlchemyError:
        return "The current revision could not be read; completed revisions are kept."
    return f"{describe(heads)}; nothing of the failed revision remains, except committed batches."


async def run_migrations_online() -> None:
    """Create an engine and run the migrations on one connection."""
    if SQLITE:  # the migration lock begins and commits the transaction
        session = {"busy_timeout": LIMITS["lock_timeout"]}
        engine = build_engine(URL, session, isolation_level="AUTOCOMMIT")
    else:
        # Postgres notices within a second that this process was killed, and within a minute that its host is gone.
        session = {**LIMITS, "client_connection_check_interval": 1000, "idle_in_transaction_session_timeout": 60_000}
        engine = build_engine(URL, session)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(do_run_migrations)
    except SQLAlchemyError as error:
        raise CommandError(explain(error, "Nothing was changed.")) from None


if context.is_offline_mode():
    run_migrations_offline()
else:
    try:
        asyncio.run(run_migrations_online())
    except KeyboardInterrupt:
        # It may have come during a COMMIT.
        raise CommandError(
            "Interrupted: 'alembic current' shows what was completed. Run the same command again."
        ) from None
