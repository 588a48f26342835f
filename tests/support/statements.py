"""The statements that the engines of this process execute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


@contextmanager
def recorded_statements() -> Iterator[list[tuple[str, Any]]]:
    """Yield a list that gets each statement of the block with its parameters, but not what watches SQLite's file."""
    statements: list[tuple[str, Any]] = []

    def record(*arguments: Any) -> None:
        if not arguments[2].startswith("PRAGMA"):
            statements.append(arguments[2:4])

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", record)
