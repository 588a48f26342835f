"""Failures: what a command that has failed says."""

import asyncio

from sqlalchemy.exc import DBAPIError, SQLAlchemyError


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
        remedy = (
            "The statement was cancelled or has timed out: choose a quieter time, or raise MIGRATION_STATEMENT_TIMEOUT."
        )
    return f"{message}{f' [{statement}]' if statement else ''}. {outcome} {remedy}"
