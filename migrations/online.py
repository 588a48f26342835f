"""Online operations: what a revision does to a table without blocking the requests that use it.

On Postgres they run outside a transaction and can't be rolled back. So a revision that uses them contains nothing else,
and running it again from its start must be safe. On SQLite they run in the one transaction of the upgrade.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from alembic import context, op
from alembic.util import CommandError
from sqlalchemy import ColumnElement, TextClause, text
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

HAS_WRITTEN = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
EXISTS = text("SELECT to_regclass(quote_ident(:name)) IS NOT NULL")
MIN_ID, MAX_ID = -(2**63), 2**63 - 1


def create_index(
    name: str, table_name: str, columns: Sequence[str | TextClause | ColumnElement[Any]], **options: Any
) -> None:
    """Create an index with CREATE INDEX CONCURRENTLY. It waits for open transactions and blocks none.

    An interrupted build leaves an invalid index, which `IF NOT EXISTS` would accept. So an index of the same name is
    dropped first.

    The arguments are those of `op.create_index`.

    Raises:
        DBAPIError: the build failed, as that of a unique index over duplicate rows does. If a lock prevents dropping
            the invalid index, a warning names it.
    """
    if not _on_postgres():
        op.create_index(name, table_name, list(columns), **options)
        return
    with autocommit(), without_timeouts():
        if not context.is_offline_mode() and op.get_bind().scalar(EXISTS, {"name": name}):
            log.warning("The index %s exists, left by an interrupted build: rebuilding it.", name)
        _drop_index(name, table_name)
        try:
            op.create_index(name, table_name, list(columns), postgresql_concurrently=True, **options)
        except DBAPIError:
            _drop_invalid_index(name, table_name)
            raise


def drop_index(name: str, table_name: str, **options: Any) -> None:
    """Drop an index with DROP INDEX CONCURRENTLY. It waits for open transactions and blocks none.

    The arguments are those of `op.drop_index`. Postgres ignores the options: they describe the index to be dropped.
    """
    if not _on_postgres():
        op.drop_index(name, table_name, **options)
        return
    with autocommit(), without_timeouts():
        _drop_index(name, table_name)


def validate(table: str, constraint: str) -> None:
    """Validate a constraint that was added as NOT VALID, without blocking reads and writes."""
    if _on_postgres():
        with autocommit(), without_timeouts():
            op.execute(f'ALTER TABLE "{table}" VALIDATE CONSTRAINT "{constraint}"')


def backfill(table: str, statement: str, *, batch_size: int = 1000) -> None:
    """Run an UPDATE in batches of ids. Each is committed on its own, so that rows are locked briefly.

    Args:
        table: with a column `id`.
        statement: with `id BETWEEN :first AND :last`, and a condition that skips rows which are done: an interrupted
            backfill runs again from its start.
        batch_size: the number of rows in a batch.
    """
    update = text(statement)
    if context.is_offline_mode():  # printed SQL has no loops
        op.execute(update.bindparams(first=MIN_ID, last=MAX_ID))
        return
    # A revision names its own table.
    batch = f'SELECT id FROM "{table}" WHERE id > :last ORDER BY id LIMIT :size'  # noqa: S608 - see above
    batch_end = text(f"SELECT max(id) FROM ({batch}) AS batch")  # noqa: S608 - see above
    with autocommit():
        last = MIN_ID
        while (end := op.get_bind().scalar(batch_end, {"last": last, "size": batch_size})) is not None:
            op.get_bind().execute(update, {"first": last + 1, "last": end})
            last = end


def _on_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _drop_index(name: str, table_name: str) -> None:
    op.drop_index(name, table_name, if_exists=True, postgresql_concurrently=True)


def _drop_invalid_index(name: str, table_name: str) -> None:
    try:
        _restore("lock_timeout")
        _drop_index(name, table_name)
    except DBAPIError:
        log.warning("The build left the invalid index %s: the next upgrade rebuilds it.", name)


@contextmanager
def autocommit() -> Iterator[None]:
    """Run the block outside a transaction on Postgres.

    Raises:
        CommandError: the revision has changed something before, which would be committed.
    """
    if not _on_postgres():
        yield
        return
    if not context.is_offline_mode() and op.get_bind().scalar(HAS_WRITTEN):
        raise CommandError(
            "An online operation can't be rolled back, and this revision has changed something before it: split it."
        )
    with op.get_context().autocommit_block():
        yield


@contextmanager
def without_timeouts() -> Iterator[None]:
    """Allow a long statement that blocks nothing, and a long wait for its lock."""
    op.execute("SET statement_timeout = 0")
    op.execute(f"SET lock_timeout = {context.config.attributes['limits']['migration_timeout']}")
    try:
        yield
    finally:
        with suppress(DBAPIError):  # a lost connection has no timeouts to restore
            _restore("statement_timeout")
            _restore("lock_timeout")


def _restore(limit: str) -> None:
    """Let a time limit be what the connection began with: `options` of the URL override the settings."""
    if context.is_offline_mode():
        op.execute(f"SET {limit} = {context.config.attributes['limits'][limit]}")
    else:
        op.execute(f"RESET {limit}")
