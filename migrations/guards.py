"""Guards: what a migration refuses to do, and how it reports a failure."""

import asyncio
from collections.abc import Iterable
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError


def refuse_incomplete_schema(connection: Connection, metadata: MetaData, found: str) -> None:
    """Refuse a database at an unknown revision, unless it has every table and column of the models.

    Raises:
        CommandError: a column is missing.
    """
    inspector = inspect(connection)
    missing = [
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if not inspector.has_table(table.name)
        or column.name not in {existing["name"] for existing in inspector.get_columns(table.name)}
    ]
    if missing:
        raise CommandError(
            f"{found}, and it lacks {', '.join(missing)}. It may belong to another application. Nothing was changed."
        )


def refuse_data_loss(steps: Iterable[Any]) -> None:
    """Refuse a downgrade that destroys data, before its first step.

    Args:
        steps: the steps that Alembic has planned. A revision whose downgrade keeps all data has `reversible = True`.

    Raises:
        CommandError: a step destroys data.
    """
    migrations = [step.info for step in steps if not step.info.is_stamp]
    destructive = [
        str(migration.up_revision_id)
        for migration in migrations
        if not migration.is_upgrade and not getattr(migration.up_revision.module, "reversible", False)
    ]
    if destructive:
        raise CommandError(
            f"Downgrading {', '.join(destructive)} destroys data, so nothing was changed. An older release runs on the"
            " newer schema. To downgrade and lose the data: alembic -x lose-data downgrade ..."
        )


def explain(error: SQLAlchemyError, outcome: str) -> str:
    """Describe a failure in one line: the error, the statement, the outcome, the remedy. It contains no row values.

    Args:
        error: raised by a statement, or by the cleanup after it.
        outcome: the state of the database, as a sentence.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError | asyncio.CancelledError):
        cause = cause.__context__
    if not isinstance(cause, DBAPIError):
        raise cause or error from None
    message = str(cause.orig).partition("\n")[0]  # asyncpg appends the DETAIL, which contains values
    statement = " ".join((cause.statement or "").split())[:200]
    remedy = "Fix the cause and run the same command again."
    if getattr(cause.orig, "sqlstate", None) == "57014":
        remedy = "The statement timed out: choose a quieter time, or raise MIGRATION_STATEMENT_TIMEOUT."
    return f"{message}{f' [{statement}]' if statement else ''}. {outcome} {remedy}"
