"""Locks: one migration at a time, and no lock that requests wait for longer than the lock timeout."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

log = logging.getLogger(__name__)

KEY = int.from_bytes(b"alembic")  # shared by all applications that migrate the same database
TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
POLL_INTERVAL = (0.1, 0.5)  # seconds, with jitter
BACKOFF = (0.5, 30.0)  # seconds: the first and the longest pause between two tries

RETRYABLE = {"40P01": "a deadlock", "55P03": "a lock"}
OLDEST_TRANSACTIONS = text(
    "SELECT format('  process %s (%s), open for %s s: %s', pid,"
    " coalesce(nullif(application_name, ''), nullif(backend_type, 'client backend'), 'unnamed'),"
    " coalesce(extract(epoch FROM now() - xact_start)::int::text, '?'), coalesce(state, 'another role'))"
    " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'virtualxid' AND granted) ORDER BY xact_start LIMIT 5"
)


@contextmanager
def migration_lock(connection: Connection, timeout: float) -> Iterator[None]:
    """Hold the migration lock of the database for the length of a block.

    On Postgres it is an advisory lock of the session, which ends with the connection. On SQLite it is the write lock
    of the file: the block is one transaction, committed at its end.

    Args:
        connection: a direct one. A transaction pooler would leave the lock with another client.
        timeout: seconds to wait for the lock.
    """
    if connection.dialect.name == "postgresql":
        # Polled: CREATE INDEX CONCURRENTLY would wait for a statement that waits for the lock.
        _acquire(lambda: _try_advisory_lock(connection), timeout, "Another migration is running.")
        yield
        return
    _acquire(lambda: _try_write_lock(connection), timeout, "Another process is writing to the file.")
    rollback_causes: list[BaseException] = []

    @event.listens_for(connection.engine, "handle_error")
    def note_rollback(failure: ExceptionContext) -> None:
        # SQLite rolls back by itself on a full disk. Alembic's cleanup then fails too, and hides the cause.
        driver_connection = connection.connection.driver_connection
        if failure.sqlalchemy_exception and driver_connection and not driver_connection.in_transaction:
            rollback_causes.append(failure.sqlalchemy_exception)

    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException as error:
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql("ROLLBACK")
        if rollback_causes and not isinstance(error, CommandError):
            raise rollback_causes[0] from None
        raise


def _acquire(try_lock: Callable[[], bool], timeout: float, obstacle: str) -> None:
    started = time.monotonic()
    waiting = False
    while not try_lock():
        if time.monotonic() - started > timeout:
            raise CommandError(f"{obstacle} Gave up after {timeout:g} s; nothing was changed. Try again later.")
        if not waiting:
            log.info("%s Waiting up to %g s for the migration lock.", obstacle, timeout)
            waiting = True
        time.sleep(random.uniform(*POLL_INTERVAL))  # noqa: S311 - jitter, not a secret
    if waiting:
        log.info("Acquired the migration lock after %.1f s.", time.monotonic() - started)


def _try_advisory_lock(connection: Connection) -> bool:
    acquired = connection.scalar(TRY_LOCK, {"key": KEY})
    connection.commit()
    return bool(acquired)


def _try_write_lock(connection: Connection) -> bool:
    try:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # readers don't wait for the migration
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        if not getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise
        return False
    return True


def retry_on_lock(connection: Connection, run: Callable[[], None], timeout: float) -> None:
    """Call `run` until it is not blocked by a lock or a deadlock. In the pauses, queued requests proceed.

    Raises:
        CommandError: it is still blocked after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause, longest = BACKOFF
    while True:
        try:
            return run()
        except DBAPIError as error:
            obstacle = RETRYABLE.get(getattr(error.orig, "sqlstate", ""))
            if obstacle is None:
                raise
        connection.rollback()
        if time.monotonic() + pause > deadline:
            transactions = connection.scalars(OLDEST_TRANSACTIONS).all()
            connection.rollback()
            raise CommandError(
                f"Gave up after {timeout:g} s: still blocked by {obstacle}. Completed revisions and committed batches"
                " are kept. Try again later. The oldest open transactions:\n" + ("\n".join(transactions) or "  none")
            )
        log.warning("Blocked by %s; retrying in %.1f s.", obstacle, pause)
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
        pause = min(pause * 2, longest)
