"""Guards: what a migration refuses to do, and how it reports a failure."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from alembic.util import CommandError
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    cast,
    column,
    func,
    inspect,
    or_,
    select,
)
from sqlalchemy import table as table_of
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.inputs import INT32

MAX_TEXT = 2600  # bytes: a row of a Postgres index has at most 2,704, and a cursor contains the value
LISTED = 20  # ids of rows in a message
NOT_ASCII = "*[^\x01-\x7f]*"  # a pattern of SQLite's GLOB


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


def refuse_unservable_rows(
    connection: Connection, table: str, *, texts: Sequence[str], integers: Sequence[str]
) -> None:
    """Refuse rows that the service can't list, sort by and export. SQLite stores any value in any column.

    Args:
        connection: it is in a transaction.
        table: with a column `id`.
        texts: columns of text: UTF-8 without NUL, and not too long for an index.
        integers: columns of integers of 32 bits, which is all that a column of Postgres can have.

    Raises:
        CommandError: there are such rows. It names them by their ids, and does not repeat their values.
    """
    find = _find_on_sqlite if connection.dialect.name == "sqlite" else _find_on_postgres
    problems = [
        f"{problem} (id {', '.join(map(str, ids[:LISTED]))}{f' and {len(ids) - LISTED} more' * (len(ids) > LISTED)})"
        for problem, ids in find(connection, table, texts, integers).items()
        if ids
    ]
    if problems:
        raise CommandError(
            f"Rows of {table} can't be served: {'; '.join(problems)}. Correct or delete these rows, and run the same"
            " command again."
        )


def _find_on_postgres(
    connection: Connection, table: str, texts: Sequence[str], integers: Sequence[str]
) -> dict[str, Sequence[int]]:
    del integers  # the columns can't have others
    return {
        _too_long(name): _ids_where(connection, table, func.octet_length(column(name)) > MAX_TEXT) for name in texts
    }


def _find_on_sqlite(
    connection: Connection, table: str, texts: Sequence[str], integers: Sequence[str]
) -> dict[str, Sequence[int]]:
    found: dict[str, Sequence[int]] = {}
    for name in texts:
        value: ColumnElement[Any] = column(name)
        stored = cast(value, LargeBinary)
        not_text = or_(func.typeof(value) != "text", func.instr(stored, b"\0") > 0)
        not_ascii = (
            select(column("id", BigInteger), stored).select_from(table_of(table)).where(value.op("GLOB")(NOT_ASCII))
        )
        not_utf8 = [row_id for row_id, text in connection.execute(not_ascii) if not _is_utf8(text)]
        ids = {*_ids_where(connection, table, not_text), *not_utf8}
        found[f"{name} is not text in UTF-8 without NUL"] = sorted(ids)
        found[_too_long(name)] = _ids_where(connection, table, func.length(stored) > MAX_TEXT)
    for name in integers:
        value = column(name)
        is_other = or_(func.typeof(value) != "integer", value < -INT32 - 1, value > INT32)
        found[f"{name} is not an integer of 32 bits"] = _ids_where(connection, table, value.is_not(None) & is_other)
    return found


def _too_long(name: str) -> str:
    return f"{name} has more than {MAX_TEXT:,} bytes"


def _ids_where(connection: Connection, table: str, condition: ColumnElement[bool]) -> Sequence[int]:
    return connection.scalars(select(column("id")).select_from(table_of(table)).where(condition).order_by("id")).all()


def _is_utf8(stored: bytes) -> bool:
    try:
        stored.decode()
    except UnicodeDecodeError:
        return False
    return True


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
