"""Guards: what a migration refuses to do."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.util import CommandError

from app.inputs import INT32

MAX_TEXT = 2600  # bytes: a row of a Postgres index has at most 2,704, and a cursor contains the value
LISTED = 20  # ids of rows in a message


def refuse_incomplete_schema(connection: sa.Connection, metadata: sa.MetaData, found: str) -> None:
    """Refuse a database at an unknown revision, unless it has every table and column of the models.

    Raises:
        CommandError: a column is missing.
    """
    found_columns = sa.inspect(connection).get_multi_columns(filter_names=list(metadata.tables))
    existing = {f"{table}.{column['name']}" for (_, table), columns in found_columns.items() for column in columns}
    missing = [
        str(column) for table in metadata.sorted_tables for column in table.columns if str(column) not in existing
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
    downgrades = [step.info for step in steps if not step.info.is_stamp and not step.info.is_upgrade]
    destructive = [
        str(downgrade.up_revision_id)
        for downgrade in downgrades
        if not getattr(downgrade.up_revision.module, "reversible", False)
    ]
    if destructive:
        raise CommandError(
            f"Downgrading {', '.join(destructive)} destroys data, so nothing was changed. An older release runs on the"
            " newer schema. To downgrade and lose the data: alembic -x lose-data downgrade ..."
        )


def refuse_unservable_rows(
    connection: sa.Connection, table: str, *, texts: Sequence[str], integers: Sequence[str]
) -> None:
    """Refuse rows that the service can't list, sort by and export. SQLite stores any value in any column.

    Args:
        connection: it is in a transaction.
        table: with a column `id`.
        texts: columns of text: UTF-8 without NUL, and not too long for an index.
        integers: columns of integers of 32 bits.

    Raises:
        CommandError: there are such rows. It names them by their ids, and does not repeat their values.
    """
    problems = []
    for problem, condition in _unservable(connection, texts, integers):
        rows = sa.select(sa.column("id", sa.BigInteger)).select_from(sa.table(table)).where(condition)
        ids = connection.scalars(rows.order_by("id")).all()
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        if ids:
            problems.append(f"{problem} (id {', '.join(map(str, ids[:LISTED]))}{more})")
    if problems:
        raise CommandError(
            f"Rows of {table} can't be served: {'; '.join(problems)}. Correct or delete these rows, and run the same"
            " command again."
        )


def _unservable(
    connection: sa.Connection, texts: Sequence[str], integers: Sequence[str]
) -> Iterator[tuple[str, sa.ColumnElement[bool]]]:
    on_sqlite = connection.dialect.name == "sqlite"
    if on_sqlite:
        driver: Any = connection.connection.dbapi_connection
        driver.create_function("is_utf8", 1, _is_utf8, deterministic=True)
    for name in texts:
        value: sa.ColumnElement[Any] = sa.column(name)
        size = sa.func.octet_length(value)
        if on_sqlite:
            stored = sa.cast(value, sa.LargeBinary)
            size = sa.func.length(stored)
            is_other = sa.or_(
                sa.func.typeof(value) != "text", sa.func.instr(stored, b"\0") > 0, sa.func.is_utf8(stored) == 0
            )
            yield f"{name} is not text in UTF-8 without NUL", is_other
        yield f"{name} has more than {MAX_TEXT:,} bytes", size > MAX_TEXT
    for name in integers if on_sqlite else []:  # a column of Postgres has no others
        value = sa.column(name)
        is_other = sa.or_(sa.func.typeof(value) != "integer", value < -INT32 - 1, value > INT32)
        yield f"{name} is not an integer of 32 bits", value.is_not(None) & is_other


def _is_utf8(stored: bytes) -> bool:
    try:
        stored.decode()
    except UnicodeDecodeError:
        return False
    return True
