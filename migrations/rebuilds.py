"""Rebuilds: SQLite alters a table by making it anew, and what must not get lost by that."""

import logging
import os
import re
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, Table, event
from sqlalchemy.exc import OperationalError

log = logging.getLogger(__name__)

# How many columns and foreign keys a table has, and what is said in the definitions of it and of its indexes.
Rules = tuple[tuple[int, ...], dict[str, Counter[str]]]

DROP = re.compile(r"\s*(DROP\s+TABLE\s(?!\s*_alembic_tmp_)|ALTER\s+TABLE\s+.*\sDROP\s)", re.IGNORECASE | re.DOTALL)
DROP_TRIGGER = re.compile(r"\s*DROP\s+TRIGGER\s+(?:IF\s+EXISTS\s+)?\W?(\w+)", re.IGNORECASE)
# What Alembic and SQLAlchemy say when they leave something of the old table out of the new one.
LEFT_OUT = "Unnamed CHECK constraint|Skipped unsupported reflection"
# What they leave out without a word: whatever is said of a column beside it, and how an index sorts.
UNSEEN = re.compile(
    r"\b(COLLATE(?! \W?BINARY)|ON CONFLICT(?! ABORT)|ON (?:DELETE|UPDATE)(?! NO ACTION)|INITIALLY DEFERRED|DESC)\b",
    re.IGNORECASE,
)
LOSS = "A table that is made anew would lose something, so nothing was changed: {}."
NEW_NAME = "_alembic_tmp_"
# Alembic cuts the name off after 50 characters.
OLD_TABLES = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND substr(? || name, 1, 50) = ?"
IS_NUMBERED = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? AND sql LIKE '%AUTOINCREMENT%'"
DEFINITIONS = (
    "SELECT name, sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('table', 'index') AND sql IS NOT NULL"
)
PARTS = "SELECT (SELECT count(*) FROM pragma_table_info(?)), (SELECT count(*) FROM pragma_foreign_key_list(?))"
NAMES = "SELECT name FROM sqlite_master WHERE type = ?"
RENAME = re.compile(rf"ALTER TABLE \W?{NEW_NAME}.* RENAME TO ")
OWN_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name <> 'alembic_version'"


@contextmanager
def kept_safe(connection: Connection, revision: str) -> Iterator[None]:
    """Back the file up before the first table is dropped, and lose nothing but what a revision drops.

    The block is part of a transaction, and foreign keys are not enforced on its connection: with `foreign_keys=ON`, to
    drop a table is to delete the rows that refer to it.

    Args:
        connection: to the file.
        revision: where the database is, for the name of the backup.

    Raises:
        CommandError: something else would be lost, or the file can't be backed up.
    """
    watch = Watch(connection, revision)
    listeners: list[tuple[Any, str, Callable[..., None]]] = [
        (connection, "before_cursor_execute", watch.before_statement),
        (connection, "after_cursor_execute", watch.after_statement),
        (Table, "before_create", watch.before_table),
    ]
    for listener in listeners:
        event.listen(*listener)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", LEFT_OUT)
            yield
    except Warning as warning:
        raise CommandError(LOSS.format(warning)) from None
    finally:
        for listener in listeners:
            event.remove(*listener)
    watch.compare()


class Watch:
    """What was there before, and is to be there afterwards."""

    def __init__(self, connection: Connection, revision: str) -> None:
        self._connection = connection
        self._revision = revision
        self._backup: Path | None = None
        self._triggers = _names(connection, "trigger")
        self._orphans = _orphans(connection)
        self._numbers = _numbers(connection)
        self._rules: dict[str, Rules] = {}

    def before_statement(self, *arguments: Any) -> None:
        """Back the file up, once; and let SQLite not fail over views that name a table while it is away."""
        if not self._backup and DROP.match(arguments[2]):
            self._backup = back_up(Path(self._connection.engine.url.database or ""), self._revision)
        if RENAME.match(arguments[2]):
            self._connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
        if dropped := DROP_TRIGGER.match(arguments[2]):
            self._triggers.discard(dropped[1])

    def after_statement(self, *arguments: Any) -> None:
        """Let SQLite look at views again."""
        if RENAME.match(arguments[2]):
            self._connection.exec_driver_sql("PRAGMA legacy_alter_table = OFF")

    def before_table(self, table: Table, *_: Any, **__: Any) -> None:
        """Let a table that is made anew number its rows as before, unless the revision says how, and note its rules."""
        for name, definition in self._connection.exec_driver_sql(OLD_TABLES, (NEW_NAME, table.name)).all():
            if "sqlite_autoincrement" not in list(table.kwargs):
                table.kwargs["sqlite_autoincrement"] = "AUTOINCREMENT" in definition.upper()
            self._rules.setdefault(name, _rules(self._connection, name))

    def compare(self) -> None:
        """Refuse to have lost something, and count on where each table was.

        Raises:
            CommandError: something is lost.
        """
        if lost := sorted(self._triggers - _names(self._connection, "trigger")):
            raise CommandError(f"These triggers would get lost, so nothing was changed: {', '.join(lost)}.")
        for table, rules in self._rules.items():
            if forgotten := _forgotten(rules, _rules(self._connection, table)):
                advice = " Let the revision say it (reflect_args, or drop_index and create_index)."
                raise CommandError(LOSS.format(", ".join(forgotten)) + advice)
        for (table, parent), rows in (_orphans(self._connection) - self._orphans).items():
            raise CommandError(f"{rows} rows of {table} would refer to nothing in {parent}, so nothing was changed.")
        for table, number in self._numbers.items():
            count_on(self._connection, table, number)


def count_on(connection: Connection, table: str, number: int) -> None:
    """Let a table that was made anew remember the numbers that it gave to rows which are gone."""
    if connection.exec_driver_sql(IS_NUMBERED, (table,)).scalar() is None:
        return
    parameters = (number, table)
    if not connection.exec_driver_sql(
        "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", parameters
    ).rowcount:
        connection.exec_driver_sql("INSERT INTO sqlite_sequence (seq, name) VALUES (?, ?)", parameters)


def back_up(file: Path, revision: str) -> Path:
    """Copy what is committed into a file beside it, by SQLite's own backup, while others read and write.

    Returns:
        The copy. It is complete as soon as it has its name.

    Raises:
        CommandError: it could not be written.
    """
    copy = file.with_name(f"{file.name}.{revision}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.bak")
    part = copy.with_name(f"{copy.name}.part")
    try:
        with closing(sqlite3.connect(file)) as source:
            if source.execute(OWN_TABLES).fetchone() == (0,):
                return file  # there is nothing in it yet
            os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o600))  # read by nobody who can't read the file
            try:
                part.chmod(file.stat().st_mode)
                with closing(sqlite3.connect(part)) as target:
                    source.backup(target)
                part.rename(copy)
            finally:
                part.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"The database could not be saved, so nothing was changed: {error}") from None
    log.info("The database was saved as %s", copy)
    return copy


def _names(connection: Connection, kind: str) -> set[str]:
    return set(connection.exec_driver_sql(NAMES, (kind,)).scalars())


def _numbers(connection: Connection) -> dict[str, int]:
    if "sqlite_sequence" not in _names(connection, "table"):
        return {}
    return {row.name: row.seq for row in connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")}


def _orphans(connection: Connection) -> Counter[tuple[str, str]]:
    """Count by table and parent: a row may have another number when its table was made anew."""
    orphans: Counter[tuple[str, str]] = Counter()
    for table in _names(connection, "table"):
        with suppress(OperationalError):  # another application's, that refers to what can't be referred to
            found = connection.exec_driver_sql(f"PRAGMA foreign_key_check('{table}')")
            orphans.update((child, parent) for child, _row, parent, _key in found)
    return orphans


def _rules(connection: Connection, table: str) -> Rules:
    return tuple(connection.exec_driver_sql(PARTS, (table, table)).one()), {
        name: Counter(found.upper() for found in UNSEEN.findall(" ".join(sql.split())))
        for name, sql in connection.exec_driver_sql(DEFINITIONS, (table,))
    }


def _forgotten(before: Rules, after: Rules) -> list[str]:
    """List what a table and its indexes don't say any more, unless a part of the table has gone with it."""
    if any(now < then for then, now in zip(before[0], after[0], strict=True)):
        return []
    return [
        f"{words} of {name}"
        for name in before[1].keys() & after[1].keys()
        for words in before[1][name] - after[1][name]
    ]
