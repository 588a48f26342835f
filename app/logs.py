"""Logs: the one format in which this service writes them, the one that serves as well as the one that migrates."""

import logging
import time

OURS = ("alembic", "app", "migrations")


def install() -> None:
    """Write to standard error, unless whoever started this process has decided where logs go."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    for name in OURS:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.INFO)


class Formatter(logging.Formatter):
    """Dates in UTC, to the millisecond, as ISO 8601 has them."""

    converter = time.gmtime  # type: ignore[assignment]  # the library's own way to say UTC
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"
