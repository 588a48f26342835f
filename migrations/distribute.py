"""Distribute: let Citus spread the tables over its workers, each by the column that its model names.

python -m migrations.distribute

A model names it in `__table_args__`: {"info": {"distributed_by": "id"}}. The tables of other models stay on the
coordinator, which is where every statement goes.
"""

import asyncio
from collections.abc import Mapping

from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

from app.database import build_engine
from app.main import load_script_directory
from app.schema import read_revisions
from app.settings import Settings
from app.urls import is_sqlite
from migrations.failures import explain
from migrations.locks import migration_lock

HAS_CITUS = text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')")
DISTRIBUTED = text(
    "SELECT CAST(table_name AS text), distribution_column FROM citus_tables WHERE citus_table_type = 'distributed'"
)
# Not colocated: no statement joins two of them, and the type of the column is not the same for all.
DISTRIBUTE = text("SELECT create_distributed_table(CAST(:name AS regclass), :key, colocate_with => 'none')")
# Citus copies the rows to the shards, and leaves the old ones on the coordinator, where nothing reads them. To remove
# them takes a stronger lock, so it has a transaction of its own: if that fails, the next run does it.
HAS_LOCAL_ROWS = text("SELECT pg_relation_size(CAST(:name AS regclass)) > 0")
TRUNCATE_LOCAL = text("SELECT truncate_local_data_after_distributing_table(CAST(:name AS regclass))")


async def main() -> None:
    """Distribute the tables, and print what was done.

    Raises:
        SystemExit: the database is not Citus, not at head, or does not do it. The message is one sentence.
    """
    settings = Settings.from_environment()
    url = settings.migration_database_url or settings.database_url
    if is_sqlite(url):
        raise SystemExit(
            "DATABASE_URL names a SQLite file: only Postgres with the extension Citus can distribute tables."
        )
    limits = {"lock_timeout": int(settings.migration_lock_timeout * 1000)}  # requests queue behind it for as long
    engine = build_engine(url, limits)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(distribute, settings.migration_timeout)
    except CommandError as error:
        raise SystemExit(str(error)) from None
    except SQLAlchemyError as error:
        raise SystemExit(explain(error, "Tables that were distributed before stay so.")) from None


def distribute(connection: Connection, timeout: float) -> None:
    """Distribute the tables of the models, each in a transaction of its own. One that is distributed stays as it is.

    Args:
        connection: to the coordinator.
        timeout: seconds to wait for a migration that is running.

    Raises:
        CommandError: the schema is not at head, there is no Citus, or a table is distributed by another column.
    """
    with migration_lock(connection, timeout):
        refuse_other_revision(connection)
        existing = read_distribution(connection)
        for name, key in distributed_tables().items():
            if name not in existing:
                connection.execute(DISTRIBUTE, {"name": name, "key": key})
                connection.commit()
                print(f"{name}: distributed by {key}.")
            elif existing[name] == key:
                print(f"{name}: is distributed by {key} already.")
            else:
                raise CommandError(
                    f"{name} is distributed by {existing[name]}, and its model says {key}: see Citus's"
                    " alter_distributed_table()."
                )
            if connection.scalar(HAS_LOCAL_ROWS, {"name": name}):
                connection.execute(TRUNCATE_LOCAL, {"name": name})
                connection.commit()


def distributed_tables() -> dict[str, str]:
    """Return the tables that the models distribute, with their distribution columns."""
    return {
        table.name: table.info["distributed_by"]
        for table in SQLModel.metadata.sorted_tables
        if "distributed_by" in table.info
    }


def refuse_other_revision(connection: Connection) -> None:
    """Refuse a schema that is not at head.

    Raises:
        CommandError: it is at another revision.
    """
    script = load_script_directory()
    current, head = read_revisions(connection), script.get_current_head()
    found = f"The database is at revision {', '.join(sorted(current)) or 'none'}"
    if not current <= {revision.revision for revision in script.walk_revisions()}:
        raise CommandError(f"{found}, which this release does not know: run this command in the release that does.")
    if current != {head}:
        raise CommandError(f"{found}, not {head}: run 'alembic upgrade head' first.")


def read_distribution(connection: Connection) -> Mapping[str, str]:
    """Return the tables that Citus distributes, with their distribution columns.

    Raises:
        CommandError: the database has no Citus.
    """
    if not connection.scalar(HAS_CITUS):
        raise CommandError("The database has no Citus: run CREATE EXTENSION citus, and add the workers.")
    return {str(name): str(key) for name, key in connection.execute(DISTRIBUTED)}


if __name__ == "__main__":
    asyncio.run(main())
