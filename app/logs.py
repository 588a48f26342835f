"""Logs: how errors are described in them, and counts of those that repeat."""

import asyncio
import logging
from contextvars import Context
from traceback import extract_tb, format_tb

from fastapi.exceptions import ValidationException
from pydantic import ValidationError
from sqlalchemy.exc import StatementError

from app.db_errors import code_of

# SQLSTATEs whose messages repeat values in their first line: data exceptions, and what a function raises. The others
# repeat values only in later lines, such as `DETAIL: Failing row contains (…)`.
REPEATS_VALUES = ("22", "P0")

REPORT_INTERVAL = 10.0  # seconds between two counts of an event that repeats


class Repetitions:
    """Counts events that repeat, so that an outage is a line at its start, one in each interval, and one at its end."""

    def __init__(self, log: logging.Logger, *, limit: int) -> None:
        """Take the logger of the counts, and how many equal events have lines of their own before they are counted."""
        self._log = log
        self._limit = limit
        # The loop is part of the key because the timer of the next report belongs to it.
        self._counts: dict[tuple[asyncio.AbstractEventLoop, str], int] = {}

    def should_log(self, event: str) -> bool:
        """Tell whether an event has a line of its own. Otherwise it is counted, and reported within an interval."""
        loop = asyncio.get_running_loop()
        if (loop, event) not in self._counts:
            self._counts[loop, event] = 0
            self._report_later(loop, event, 0)
        self._counts[loop, event] += 1
        return self._counts[loop, event] <= self._limit

    def _report_later(self, loop: asyncio.AbstractEventLoop, event: str, earlier: int) -> None:
        # Without the context of the request: the report is about others too.
        loop.call_later(REPORT_INTERVAL, self._report, loop, event, earlier, context=Context())

    def _report(self, loop: asyncio.AbstractEventLoop, event: str, earlier: int) -> None:
        more = self._counts.pop((loop, event)) - self._limit
        if more > 0:
            self._log.warning("%d more in %g s: %s", more, REPORT_INTERVAL, event)
            self._counts[loop, event] = self._limit
            self._report_later(loop, event, earlier + more)
        elif earlier:
            self._log.info("None in %g s, after %d more: %s", REPORT_INTERVAL, earlier, event)


def describe_error(error: BaseException) -> str:
    """Describe an error in one line, without the values that databases and validators repeat in their messages."""
    name = type(error).__name__
    original = error.orig if isinstance(error, StatementError) else error
    if code := code_of(original):
        message = str(original).partition("\n")[0]
        return f"{name} {code}" if code.startswith(REPEATS_VALUES) else f"{name} {code}: {message}"
    if isinstance(error, StatementError):
        return f"{name} {type(original).__name__}"
    if isinstance(error, ValidationError | ValidationException):
        found = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return f"{name}: {'; '.join(found)}"
    message = " ".join(str(error).splitlines())
    return f"{name}: {message}" if message else name


def describe_with_traceback(error: BaseException) -> str:
    """Describe an error, what caused it and what is in its group, and then where each of them was raised."""
    descriptions: list[str] = []
    tracebacks: list[str] = []
    seen: set[int] = set()

    def add(prefix: str, found: BaseException) -> None:
        if id(found) in seen:
            return
        seen.add(id(found))
        descriptions.append(prefix + describe_error(found))
        tracebacks.append("".join(format_tb(found.__traceback__)))
        if isinstance(found, BaseExceptionGroup):
            for each in found.exceptions:
                add("  with ", each)
        if (cause := cause_of(found)) is not None:
            add("  caused by ", cause)

    add("", error)
    return "\n".join([*descriptions, "".join(tracebacks)])


def describe_origin(error: BaseException) -> str:
    """Describe an error by its class and the line that raised it, so that equal ones have equal descriptions."""
    frames = extract_tb(error.__traceback__, limit=-1)
    return " ".join([type(error).__name__, *(f"at {frame.filename}:{frame.lineno}" for frame in frames)])


def cause_of(error: BaseException) -> BaseException | None:
    """Return what caused an error. The causes of a database error are the driver's own, and can repeat values."""
    if isinstance(error, StatementError) or code_of(error):
        return None
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)
