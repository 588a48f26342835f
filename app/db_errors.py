"""Database errors: what each means to the client of a request."""

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError


class Refusal(Enum):
    """Why the database refused a statement, as far as its client is concerned."""

    CONFLICT = auto()  # it violates a constraint together with other rows
    FULL = auto()  # no disk, or no id for another row, is left
    INVALID = auto()  # a value that the column can't hold
    UNAVAILABLE = auto()  # the same statement may succeed soon


# By a prefix of Postgres's SQLSTATE or of SQLite's name for the error; where it has neither, of the name of its class.
# The longest match counts. Where nothing matches, the service is at fault.
REFUSALS = {
    "08": Refusal.UNAVAILABLE,  # the connection broke
    "22": Refusal.INVALID,  # a value that the column can't hold
    "2200H": Refusal.FULL,  # a sequence at its end
    "23": Refusal.CONFLICT,  # a constraint
    "23502": Refusal.INVALID,  # not null
    "23514": Refusal.INVALID,  # check
    "25006": Refusal.UNAVAILABLE,  # a read-only server
    "28": Refusal.UNAVAILABLE,  # the server does not accept the role
    "3D": Refusal.UNAVAILABLE,  # the server does not have the database
    "40": Refusal.UNAVAILABLE,  # a deadlock or a serialization failure
    "53": Refusal.UNAVAILABLE,  # no connection or memory left
    "53100": Refusal.FULL,  # no disk left
    "54": Refusal.INVALID,  # a limit of the server, such as a value too large for an index
    "55P03": Refusal.UNAVAILABLE,  # a lock that could not be acquired in time
    "57": Refusal.UNAVAILABLE,  # a statement that took too long, a server that shuts down or starts up
    "InvalidCachedStatementError": Refusal.UNAVAILABLE,  # a migration has changed the columns of a prepared statement
    "SQLITE_BUSY": Refusal.UNAVAILABLE,
    "SQLITE_CANTOPEN": Refusal.UNAVAILABLE,
    "SQLITE_CONSTRAINT": Refusal.CONFLICT,
    "SQLITE_CONSTRAINT_CHECK": Refusal.INVALID,
    "SQLITE_CONSTRAINT_NOTNULL": Refusal.INVALID,
    "SQLITE_FULL": Refusal.FULL,  # no disk left, or AUTOINCREMENT at its end: SQLite has one code for both
    "SQLITE_IOERR": Refusal.UNAVAILABLE,
    "SQLITE_READONLY": Refusal.UNAVAILABLE,
    "SQLITE_TOOBIG": Refusal.INVALID,
}

# Citus gives these the code of an internal error (XX000): a worker is lost at the end of a transaction.
LOST_WORKER = (
    "could not commit transaction for shard ",
    "failed to prepare transaction ",
    "failure on connection marked as essential: ",
)


def classify(error: BaseException) -> Refusal | None:
    """Tell why the database refused a statement; None if the service is at fault."""
    if not isinstance(error, DBAPIError):
        return None
    if error.connection_invalidated:
        return Refusal.UNAVAILABLE
    code = code_of(error.orig) or type(error.orig).__name__
    if code == "XX000" and any(message in str(error.orig) for message in LOST_WORKER):
        return Refusal.UNAVAILABLE
    for length in range(len(code), 1, -1):
        if code[:length] in REFUSALS:
            return REFUSALS[code[:length]]
    return None


def code_of(error: BaseException | None) -> str:
    """Return a driver's code for its error, a SQLSTATE or SQLite's name for it, or nothing."""
    return str(getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None) or "")


def is_too_many_connections(error: BaseException | None) -> bool:
    """Tell whether the server has refused a connection because it grants no more."""
    return isinstance(error, DBAPIError) and code_of(error.orig) == "53300"


def may_succeed_elsewhere(error: DBAPIError) -> bool:
    """Tell whether another server may answer a statement: not one that took too long, nor a write."""
    return classify(error) is Refusal.UNAVAILABLE and code_of(error.orig) not in {"57014", "25006"}
