"""The configuration of logging: one format and one set of levels for the service, its migrations and uvicorn."""

import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from uvicorn.logging import DefaultFormatter

from app.access_log import current_request
from app.logs import describe_with_traceback

# The loggers whose levels are a setting. Of libraries beside these, some log values: aiosqlite does, at DEBUG.
OURS = ("alembic", "app", "migrations", "uvicorn")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LEVEL = re.compile(rf"(?:((?:{'|'.join(OURS)})(?:\.\w+)*)=)?((?i:{'|'.join(LEVELS)}))")


def parse_levels(text: str) -> dict[str, str]:
    """Parse a level, and those of single loggers after it: `INFO,app.sql=DEBUG`. That of the service has no name.

    Raises:
        ValueError: it is of another form.
    """
    found = [LEVEL.fullmatch(word.strip()) for word in text.split(",")]
    levels = {match[1] or "": match[2].upper() for match in found if match}
    if None in found or len(levels) < len(found):
        raise ValueError(
            f"write one of {', '.join(LEVELS)}, and after it those of single loggers, whose names begin with"
            f" {', '.join(OURS)}: INFO,app.sql=DEBUG"
        )
    return {"": "INFO", **levels}


def install(log_format: str, levels: Mapping[str, str]) -> None:
    """Log to standard error, unless logging is already configured. What uvicorn does by default is replaced.

    uvicorn's access log is off in any case: the service has its own, and uvicorn's has paths as clients write them.

    Args:
        log_format: "text", or "json" for an object in each line.
        levels: those of loggers, and under "" that of the service, its migrations and uvicorn.
    """
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False  # as --no-access-log has it
    if is_configured_by_uvicorn():
        uvicorn, errors = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.error")
        uvicorn.handlers, uvicorn.propagate = [], True
        uvicorn.setLevel(logging.NOTSET)
        if errors.level == logging.INFO:  # else --log-level has set it
            errors.setLevel(logging.NOTSET)
    for name, level in (dict.fromkeys(OURS, levels[""]) | {**levels}).items():
        if name and logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(level)
    if not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(RequestFilter())
        handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
        logging.root.addHandler(handler)
        logging.captureWarnings(capture=True)
        sys.unraisablehook = log_unraisable


def is_configured_by_uvicorn() -> bool:
    """Tell whether logging is as uvicorn, or FastAPI's command, configures it by default, and nobody else has."""
    formatters = [handler.formatter for handler in logging.getLogger("uvicorn").handlers]
    return not logging.root.handlers and any(
        isinstance(formatter, DefaultFormatter) and not formatter.usesTime() for formatter in formatters
    )


def log_unraisable(unraisable: Any) -> None:
    """Log an error that nothing can raise, such as one in a finalizer."""
    error = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    logging.getLogger(__name__).error("%s", unraisable.err_msg or "Exception ignored", exc_info=error)


class RequestFilter(logging.Filter):
    """Adds the id of the request that a line is about, and the trace and the span that it belongs to, if there are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them to a record."""
        if request := current_request.get():
            record.request_id = request.id
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.trace_id, record.span_id = trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)
        return True


class Formatter(logging.Formatter):
    """Formats timestamps as ISO 8601, in UTC, with milliseconds, and exceptions without values in their messages."""

    converter = time.gmtime  # type: ignore[assignment]  # documented for UTC
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatException(self, ei: Any) -> str:  # noqa: N802 - overrides
        """Format an exception."""
        return describe_with_traceback(ei[1]) if ei[1] else ""


class TextFormatter(Formatter):
    """Formats a record as text, with the id of its request in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides
        """Format all but exceptions."""
        request_id = getattr(record, "request_id", None)
        record.request = f" [{request_id}]" if request_id else ""
        return super().formatMessage(record)


class JSONFormatter(Formatter, JsonFormatter):
    """Formats a record as a JSON object in one line, with what was logged as `extra` in fields of their own."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
        )
