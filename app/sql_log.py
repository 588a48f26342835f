"""The SQL log: each statement with its duration, at DEBUG, and never a value."""

import logging
import time
from collections.abc import Mapping

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("app.sql")

STARTED_AT = "started_at"  # key of `Connection.info`: when its statement was sent
MAX_LENGTH = 1000  # characters of a statement that are logged: one of a batch can have a hundred thousand


def log_statements(engine: AsyncEngine) -> None:
    """Log the statements of an engine, with placeholders for values, if the level asks for them now."""
    if not log.isEnabledFor(logging.DEBUG):
        return

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def start(connection: Connection, *_: object) -> None:
        connection.info[STARTED_AT] = time.perf_counter()

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def log_executed(connection: Connection, cursor: DBAPICursor, statement: str, *_: object) -> None:
        rows = {"rows": cursor.rowcount} if cursor.rowcount >= 0 else {}  # SQLite does not count those of a SELECT
        log_statement(connection, statement, rows)

    @event.listens_for(engine.sync_engine, "handle_error")
    def log_failed(error: ExceptionContext) -> None:
        if error.connection is not None and not error.connection.invalidated and error.statement is not None:
            log_statement(error.connection, error.statement, {"error": type(error.original_exception).__name__})


def log_statement(connection: Connection, statement: str, outcome: Mapping[str, object]) -> None:
    """Log a statement that has ended, with its number of rows or its error."""
    now = time.perf_counter()
    fields = {"duration_ms": round((now - connection.info.pop(STARTED_AT, now)) * 1000, 2), **outcome}
    text = " ".join(statement.split())
    if len(text) > MAX_LENGTH:
        text = f"{text[:MAX_LENGTH]}... ({len(text)} characters)"
    described = "".join(f", {name} {value}" for name, value in outcome.items())
    log.debug("%s ms%s: %s", fields["duration_ms"], described, text, extra=fields)
