"""Refusals: which HTTP status says what the database said, and what of it may be written down.

What a database says of a request's statement is never written down: it repeats values, as `Failing row contains (…)`.
"""

from sqlalchemy.exc import DBAPIError

# By the beginning of Postgres's SQLSTATE or of SQLite's name for the error; where it has neither, of its class. The
# longest that fits counts. Where none fits, the service is at fault.
STATUSES = {
    "08": 503,  # the connection broke
    "22": 422,  # a value that the column can't hold
    "23": 409,  # a value that another row stands against
    "23502": 422,  # not null
    "23514": 422,  # check
    "25006": 503,  # a server that only reads
    "28": 503,  # a server that doesn't let the service in
    "3D": 503,  # a server that doesn't have the database
    "40": 503,  # a deadlock, or two transactions that can't both have happened
    "53": 503,  # no connection, memory or disk left
    "54": 422,  # a value too large for an index
    "55P03": 503,  # a lock that was not to be had in time
    "57": 503,  # a statement that took too long, a server that goes down or comes up
    "InvalidCachedStatementError": 503,  # a migration has changed the columns under a prepared statement
    "SQLITE_BUSY": 503,
    "SQLITE_CANTOPEN": 503,
    "SQLITE_CONSTRAINT": 409,
    "SQLITE_CONSTRAINT_CHECK": 422,
    "SQLITE_CONSTRAINT_NOTNULL": 422,
    "SQLITE_FULL": 503,
    "SQLITE_IOERR": 503,
    "SQLITE_READONLY": 503,
    "SQLITE_TOOBIG": 422,
}


def status_of(error: BaseException) -> int | None:
    """Find the status that tells the client what the database refused; None if it is the service that is at fault."""
    if not isinstance(error, DBAPIError):
        return None
    if error.connection_invalidated:
        return 503
    code = code_of(error)
    for length in range(len(code), 1, -1):
        if code[:length] in STATUSES:
            return STATUSES[code[:length]]
    return None


def code_of(error: DBAPIError) -> str:
    """Read the database's own code for an error, or the name of the error where it has none."""
    name = type(error.orig).__name__
    return str(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None) or name)


def describe(error: BaseException) -> str:
    """Say what can be written down of an error: its class, and the database's code for it, but not its message."""
    name = type(error).__name__
    return f"{name} {code_of(error)}" if isinstance(error, DBAPIError) else name
