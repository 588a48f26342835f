"""Locks: one upgrade at a time, and none that the service waits for longer than it can bear."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from app.database import in_transaction

log = logging.getLogger(__name__)

# One lock for all who migrate this database, whichever application they are.
KEY = int.from_bytes(b"alembic")
TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
POLL = (0.1, 0.5)  # seconds between two tries, at random so that several don't try together
BACKOFF = (0.5, 30.0)  # seconds before the second try of a revision, and at most before any other

TRY_AGAIN = {"40P01": "a deadlock", "55P03": "a lock that others hold"}
OLDEST_TRANSACTIONS = text(
    "SELECT format('  process %s (%s), for %s s: %s', pid, coalesce(nullif(application_name, ''), 'unnamed'),"
    " coalesce(extract(epoch FROM now() - xact_start)::int::text, '?'), coalesce(state, 'of another role'))"
    " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'virtualxid' AND granted) ORDER BY xact_start LIMIT 5"
)


@contextmanager
def one_at_a_time(connection: Connection, seconds: float) -> Iterator[None]:
    """Be the only one who migrates the database, for the length of a block.

    On Postgres the lock belongs to the connection, and goes when it does; what is done stays done, revision by
    revision. On SQLite it is the write lock of the file, and the block is one transaction.

    Args:
        connection: a direct one. Behind a pooler that lends it for a transaction at a time, the lock would stay with
            somebody else.
        seconds: how long to wait for the lock.

    Raises:
        CommandError: it was not to be had.
    """
    if connection.dialect.name == "postgresql":
        # Asked for again and again: a statement that waited would be waited for by CREATE INDEX CONCURRENTLY.
        _wait(lambda: _try_advisory_lock(connection), seconds, "Another upgrade is at work.")
        yield
        return
    _wait(lambda: _try_write_lock(connection), seconds, "Somebody else is writing to the file.")
    driver = connection.connection.driver_connection
    causes: list[SQLAlchemyError] = []

    def note_the_cause(failure: ExceptionContext) -> None:
        # On a full disk, SQLite rolls back by itself: what is tried after that, for the sake of order, fails too.
        if not causes and isinstance(failure.sqlalchemy_exception, SQLAlchemyError) and not in_transaction(driver):
            causes.append(failure.sqlalchemy_exception)

    event.listen(connection.engine, "handle_error", note_the_cause)
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql("ROLLBACK")
        if causes:
            raise causes[0] from None
        raise
    finally:
        event.remove(connection.engine, "handle_error", note_the_cause)


def _wait(take: Callable[[], bool], seconds: float, obstacle: str) -> None:
    started = time.monotonic()
    said = False
    while not take():
        if time.monotonic() - started > seconds:
            raise CommandError(f"{obstacle} After {seconds:g} s of waiting, nothing was changed: try again later.")
        if not said:
            log.info("%s Waiting for up to %g s.", obstacle, seconds)
            said = True
        time.sleep(random.uniform(*POLL))  # noqa: S311 - nobody has to guess it
    if said:
        log.info("It is our turn, after %.1f s.", time.monotonic() - started)


def _try_advisory_lock(connection: Connection) -> bool:
    taken = connection.scalar(TRY_LOCK, {"key": KEY})
    connection.commit()
    return bool(taken)


def _try_write_lock(connection: Connection) -> bool:
    try:
        # With a write-ahead log, those who read don't wait for those who migrate.
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        if not getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise
        return False
    return True


def try_again(connection: Connection, run: Callable[[], None], seconds: float) -> None:
    """Run until no lock stands in the way, with pauses in which the traffic that has queued up behind gets through.

    Raises:
        CommandError: a lock stands in the way for longer than the seconds.
    """
    deadline = time.monotonic() + seconds
    pause, longest = BACKOFF
    while True:
        try:
            return run()
        except DBAPIError as error:
            obstacle = TRY_AGAIN.get(getattr(error.orig, "sqlstate", ""))
            if obstacle is None:
                raise
        connection.rollback()
        if time.monotonic() + pause > deadline:
            transactions = connection.scalars(OLDEST_TRANSACTIONS).all()
            connection.rollback()
            blockers = "\n".join(transactions) or "  none any more"
            raise CommandError(
                f"Gave up after {seconds:g} s: {obstacle}, each time. What ran before is kept, nothing of the revision"
                f" that failed is: try again later. The oldest open transactions:\n{blockers}"
            )
        log.warning("In the way: %s. Trying again in %.1f s.", obstacle, pause)
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - nobody has to guess it
        pause = min(pause * 2, longest)
