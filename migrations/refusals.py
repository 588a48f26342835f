"""Refusals: what an upgrade does not do, and how it says so."""

import asyncio
from collections.abc import Iterable
from typing import Any

from alembic.runtime.migration import RevisionStep
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError


def refuse_what_lacks(connection: Connection, metadata: MetaData, found: str) -> None:
    """Refuse a database at a revision that nobody here knows, unless it has every table and column that is needed.

    Raises:
        CommandError: it lacks some.
    """
    inspector = inspect(connection)
    missing = [
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if not inspector.has_table(table.name)
        or column.name not in {there["name"] for there in inspector.get_columns(table.name)}
    ]
    if missing:
        raise CommandError(f"{found}, and it lacks {', '.join(missing)}: another application's? Nothing was changed.")


def refuse_to_lose_data(steps: Iterable[Any]) -> None:
    """Refuse a downgrade that destroys something, before its first step.

    Args:
        steps: as Alembic plans them. The module of a revision whose downgrade loses nothing says `reversible = True`.

    Raises:
        CommandError: it does.
    """
    losing = [
        step.revision.revision
        for step in steps
        if isinstance(step, RevisionStep)
        and not step.is_upgrade
        and not getattr(step.revision.module, "reversible", False)
    ]
    if losing:
        raise CommandError(
            f"To undo {', '.join(losing)} destroys data, so nothing was changed. To go back to an older release, leave"
            " the schema as it is. If the data is to go: alembic -x lose-data downgrade ..."
        )


def explain(error: SQLAlchemyError, kept: str) -> str:
    """Say what failed, what is left of it and how to go on, but not what is in the rows: secrets may be.

    Args:
        error: of a statement, or one that followed from it.
        kept: what is left, as a sentence.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError | asyncio.CancelledError):
        cause = cause.__context__
    if not isinstance(cause, DBAPIError):
        raise cause or error from None
    what = str(cause.orig).partition("\n")[0]
    statement = " ".join((cause.statement or "").split())[:200]
    advice = "Mend the cause, and run the same command again."
    if getattr(cause.orig, "sqlstate", None) == "57014":
        advice = "It took too long: choose a quieter time, or raise MIGRATION_STATEMENT_TIMEOUT."
    where = f" [{statement}]" if statement else ""
    return f"{what}{where}. {kept} {advice}"
