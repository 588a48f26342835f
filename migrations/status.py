"""Status: the revision of the database, the pending revisions, and what they lock.

python -m migrations.status
"""

import asyncio
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

from app.database import build_engine
from app.main import load_script_directory
from app.schema import read_revisions
from app.settings import Settings
from app.urls import is_sqlite


async def main() -> None:
    """Print the status of the database.

    Raises:
        SystemExit: the database does not answer, or there is none.
    """
    settings = Settings.from_environment()
    url = settings.migration_database_url or settings.database_url
    if is_sqlite(url):
        refuse_missing_file(Path(str(url.database)))
    engine = build_engine(url, {}, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            current = await connection.run_sync(read_revisions)
            invalid = await connection.run_sync(invalid_indexes)
    except SQLAlchemyError as error:
        raise SystemExit(f"The database does not answer: {getattr(error, 'orig', error)}") from None
    script = load_script_directory()
    print(*describe(script, current), sep="\n")
    for index in invalid:
        print(f"invalid: {index}, left by an interrupted build. If its revision is pending, the upgrade rebuilds it.")


def refuse_missing_file(path: Path) -> None:
    """Raise `SystemExit` if there is no file: SQLite would create it."""
    if not path.exists():
        raise SystemExit(f"There is no file at {path}: 'alembic upgrade head' creates it.")


def describe(script: ScriptDirectory, current: frozenset[str]) -> list[str]:
    """Describe the current revision, the head, and the pending revisions between them."""
    revisions = {revision.revision: revision for revision in script.walk_revisions()}
    unknown = current - revisions.keys()
    pending = reversed(list(script.iterate_revisions("heads", tuple(current & revisions.keys()) or "base")))
    return [
        f"current: {', '.join(sorted(current)) or 'none'}{' (of a newer release)' if unknown else ''}",
        f"head:    {', '.join(script.get_heads())}",
        *([] if unknown else [line for revision in pending for line in summarize(revision)]),
    ]


def summarize(revision: Script) -> list[str]:
    """Describe a revision by the first line and the Locks paragraph of its docstring."""
    locks = next(
        (part for part in revision.longdoc.split("\n\n") if part.startswith("Locks:")), "Locks: not documented."
    )
    return ["", f"pending: {revision.revision}  {revision.longdoc.splitlines()[0]}", *locks.splitlines()]


def invalid_indexes(connection: Connection) -> list[str]:
    """List the indexes that an interrupted CREATE INDEX CONCURRENTLY has left."""
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
