"""Status: where the database is, what an upgrade would do, and whom that would keep waiting.

python -m migrations.status
"""

import asyncio

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, NullPool, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

from app.database import create_engine
from app.main import ALEMBIC_INI
from app.schema import read_revisions
from app.settings import Settings


async def main() -> None:
    """Print the status of the database that the settings name.

    Raises:
        SystemExit: it does not answer.
    """
    engine = create_engine(
        Settings.from_environment().database_url, {}, poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    try:
        async with engine.connect() as connection:
            have = await connection.run_sync(read_revisions)
            invalid = await connection.run_sync(invalid_indexes)
    except SQLAlchemyError as error:
        raise SystemExit(f"The database does not answer: {getattr(error, 'orig', error)}") from None
    script = ScriptDirectory.from_config(Config(ALEMBIC_INI))
    print(*describe(script, have), sep="\n")
    for index in invalid:
        print(f"not valid: {index}. A build was stopped: if its revision is pending, the upgrade builds it anew.")


def describe(script: ScriptDirectory, have: frozenset[str]) -> list[str]:
    """Say where a database is, where this release wants it to be, and what is between the two."""
    revisions = {revision.revision: revision for revision in script.walk_revisions()}
    unknown = have - revisions.keys()
    done = {step.revision for known in have & revisions.keys() for step in script.iterate_revisions(known, "base")}
    pending = [revision for revision in reversed(revisions.values()) if revision.revision not in done]
    return [
        f"current: {', '.join(sorted(have)) or 'none'}{' (of a newer release)' if unknown else ''}",
        f"head:    {', '.join(script.get_heads())}",
        *([] if unknown else [line for revision in pending for line in summarize(revision)]),
    ]


def summarize(revision: Script) -> list[str]:
    """Say in a few lines what a revision does, and what it locks."""
    locks = next(
        (part for part in revision.longdoc.split("\n\n") if part.startswith("Locks:")), "Locks: it does not say."
    )
    return ["", f"pending: {revision.revision}  {revision.longdoc.splitlines()[0]}", *locks.splitlines()]


def invalid_indexes(connection: Connection) -> list[str]:
    """List the indexes of Postgres that were begun and never finished."""
    inspector = inspect(connection)
    return [
        str(index["name"])
        for table in SQLModel.metadata.tables
        if inspector.has_table(table)
        for index in inspector.get_indexes(table)
        if index.get("dialect_options", {}).get("postgresql_invalid")
    ]


if __name__ == "__main__":
    asyncio.run(main())
