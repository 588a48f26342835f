"""Online: what a revision does to a table while the service goes on using it.

These belong in revisions with nothing else, since none can be rolled back on Postgres: stopped in the middle, such a
revision is run again from its start. On SQLite they run in the transaction of the whole upgrade.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from alembic import op
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ColumnElement, TextClause

log = logging.getLogger(__name__)

HAS_WRITTEN = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
EXISTS = text("SELECT to_regclass(quote_ident(:name)) IS NOT NULL")
ENDS = {"first": -(2**63), "last": 2**63 - 1}


def create_index(
    name: str, table_name: str, columns: Sequence[str | TextClause | ColumnElement[Any]], **options: Any
) -> None:
    """Make an index while others write to the table. It waits for transactions that are open, and blocks none.

    A build that was killed leaves an index that is not valid, and that `IF NOT EXISTS` would take for a good one: so
    whatever has the name is dropped first.

    Args:
        name: of the index, in `op.f()`.
        table_name: what it is on.
        columns: as `op.create_index` takes them.
        options: of `op.create_index`.

    Raises:
        DBAPIError: the database refused it, as it does a unique index when two rows are alike. If something
            is left, because somebody stands in the way of that too, the log says so.
    """
    if not _on_postgres():
        op.create_index(name, table_name, list(columns), **options)
        return
    with _committed_one_by_one(), _unhurried():
        if not op.get_context().as_sql and op.get_bind().scalar(EXISTS, {"name": name}):
            log.warning("There is an index %s already, left by a build that was stopped: it is built anew.", name)
        _drop(name, table_name)
        try:
            op.create_index(name, table_name, list(columns), postgresql_concurrently=True, **options)
        except DBAPIError:
            _drop_what_is_left(name, table_name)
            raise


def drop_index(name: str, table_name: str, **options: Any) -> None:
    """Drop an index while others use the table. It waits for transactions that are open, and blocks none.

    Args:
        name: of the index, in `op.f()`.
        table_name: what it is on.
        options: of `op.drop_index`. A revision that is generated says how the index was, which nothing here needs.
    """
    if not _on_postgres():
        op.drop_index(name, table_name, **options)
        return
    with _committed_one_by_one(), _unhurried():
        _drop(name, table_name)


def validate(table: str, constraint: str) -> None:
    """Check the rows that were there before a constraint which was added as NOT VALID. Reads and writes go on."""
    if _on_postgres():
        with _committed_one_by_one(), _unhurried():
            op.execute(f'ALTER TABLE "{table}" VALIDATE CONSTRAINT "{constraint}"')


def backfill(table: str, statement: str, *, rows: int = 1000) -> None:
    """Change a table by an UPDATE over ranges of ids, each committed by itself, so that nobody waits long for a row.

    Args:
        table: it has a column `id`.
        statement: with `id BETWEEN :first AND :last`, and a condition that leaves out what is done: it may be stopped,
            and run again.
        rows: how many are locked at a time.
    """
    update = text(statement)
    if op.get_context().as_sql:  # no loops there
        op.execute(update.bindparams(**ENDS))
        return
    newest = text(f'SELECT max(id) FROM (SELECT id FROM "{table}" WHERE id > :after ORDER BY id LIMIT :rows) AS batch')  # noqa: S608 - a revision names its own table
    with _committed_one_by_one():
        last = ENDS["first"]
        while (end := op.get_bind().scalar(newest, {"after": last, "rows": rows})) is not None:
            op.get_bind().execute(update, {"first": last + 1, "last": end})
            last = end


def _on_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _drop(name: str, table_name: str) -> None:
    op.drop_index(name, table_name, if_exists=True, postgresql_concurrently=True)


def _drop_what_is_left(name: str, table_name: str) -> None:
    try:
        op.execute(f"SET lock_timeout = {op.get_context().opts['limits']['lock_timeout']}")
        _drop(name, table_name)
    except DBAPIError:
        log.warning("The build has left %s, an index that is not valid: the next upgrade builds it anew.", name)


@contextmanager
def _committed_one_by_one() -> Iterator[None]:
    if not _on_postgres():
        yield
        return
    if not op.get_context().as_sql and op.get_bind().scalar(HAS_WRITTEN):
        raise CommandError(
            "What can't be rolled back needs a revision of its own, and this one has changed something: split it."
        )
    with op.get_context().autocommit_block():
        yield


@contextmanager
def _unhurried() -> Iterator[None]:
    """Take the time that it takes: nobody waits for what is in the block."""
    limits = op.get_context().opts["limits"]
    op.execute("SET statement_timeout = 0")
    op.execute(f"SET lock_timeout = {limits['patience']}")
    try:
        yield
    finally:
        with suppress(DBAPIError):  # of a connection that is gone: it needs no limits any more
            op.execute(f"SET statement_timeout = {limits['statement_timeout']}")
            op.execute(f"SET lock_timeout = {limits['lock_timeout']}")
