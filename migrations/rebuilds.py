"""Rebuilds: on SQLite, Alembic alters a table by copying it. Nothing is lost by that, or the upgrade is refused."""

import logging
import os
import re
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, Inspector, Table, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError

log = logging.getLogger(__name__)

NAME = r"(\".+?\"|\[.+?\]|`.+?`|[^\s;(]+)"
DROP_TABLE = re.compile(rf"\s*DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?{NAME}", re.IGNORECASE)
DROP_COLUMN = re.compile(rf"\s*ALTER\s+TABLE\s+{NAME}.*\sDROP\s", re.IGNORECASE | re.DOTALL)
DROP_TRIGGER = re.compile(rf"\s*DROP\s+TRIGGER\s+(?:IF\s+EXISTS\s+)?{NAME}", re.IGNORECASE)
ALTER_TABLE = re.compile(rf"\s*ALTER\s+TABLE\s(?:.+\sRENAME\s+TO\s+{NAME})?", re.IGNORECASE)
# What Alembic and SQLAlchemy warn of when they leave something out of the copy.
LEFT_OUT = "Unnamed CHECK constraint|Skipped unsupported reflection"
# What they leave out without a warning.
RULE = re.compile(
    r"\b(COLLATE(?! \W?BINARY)|ON CONFLICT(?! ABORT)|ON (?:DELETE|UPDATE)(?! NO ACTION)|INITIALLY DEFERRED|DESC)\b",
    re.IGNORECASE,
)
LOSS = "A rebuild would lose {}. Nothing was changed."
NAMES = "SELECT name FROM sqlite_master WHERE type = ?"
AUTOINCREMENT = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? AND sql LIKE '%AUTOINCREMENT%'"
RAISE_SEQUENCE = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?"
ADD_SEQUENCE = "INSERT INTO sqlite_sequence (seq, name) VALUES (?, ?)"
COLUMN, FOREIGN_KEY = ("", "column"), ("", "foreign key")
SIZES = "SELECT (SELECT count(*) FROM pragma_table_info(?)), (SELECT count(*) FROM pragma_foreign_key_list(?))"
DEFINITIONS = (
    "SELECT name, sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('table', 'index') AND sql IS NOT NULL"
)


@contextmanager
def guard_rebuilds(connection: Connection, revision: str) -> Iterator[None]:
    """Back the file up before the first table or column is dropped, and refuse a rebuild that loses something.

    If the block or the COMMIT after it fails, nothing was changed, and the backup is deleted.

    The block is part of a transaction, on a connection that does not enforce foreign keys: with `foreign_keys=ON`,
    dropping a table deletes the rows that refer to it.

    Args:
        connection: to the file.
        revision: of the database, for the name of the backup.
    """
    guard = RebuildGuard(connection, revision)
    event.listen(connection, "before_cursor_execute", guard.before_cursor_execute)
    event.listen(Table, "column_reflect", guard.column_reflect)
    event.listen(connection.engine, "handle_error", guard.handle_error)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", LEFT_OUT)
            yield
        guard.check()
    except BaseException as error:
        guard.delete_backup()
        if isinstance(error, Warning):
            raise CommandError(LOSS.format("something: " + str(error).rstrip("."))) from None
        if guard.refusal:
            raise guard.refusal from None
        raise
    finally:
        event.remove(Table, "column_reflect", guard.column_reflect)


class RebuildGuard:
    """Watches the statements of an upgrade, and compares the database after them with the one before."""

    def __init__(self, connection: Connection, revision: str) -> None:
        self._connection = connection
        self._revision = revision
        self._backup: Path | None = None
        self.refusal: CommandError | None = None  # Alembic's cleanup after a failed backup may fail too, and hide it
        self._tables = _names(connection, "table")
        self._triggers = _names(connection, "trigger")
        self._orphans = _orphans(connection)
        self._sequences = _sequences(connection)
        self._dropped: dict[str, Counter[tuple[str, str]]] = {}  # their rules

    def before_cursor_execute(self, *arguments: Any) -> None:
        """Note what a statement drops, after a backup if it was there before the upgrade."""
        statement = arguments[2]
        table = _name(DROP_TABLE, statement)
        if table and table not in self._dropped:
            self._dropped[table] = _rules(self._connection, table)
        dropped_from = table or _name(DROP_COLUMN, statement)
        if (
            dropped_from
            and self._backup is None
            and dropped_from not in _names(self._connection, "table") - self._tables
        ):
            try:
                self._backup = back_up(Path(self._connection.engine.url.database or ""), self._revision)
            except CommandError as error:
                self.refusal = error
                raise
        self._triggers.discard(_name(DROP_TRIGGER, statement) or "")
        if ALTER_TABLE.match(statement):
            # SQLite refuses to rename a table while views are broken, as those of a table that its copy replaces are.
            legacy = "ON" if _name(ALTER_TABLE, statement) in self._dropped else "OFF"
            self._connection.exec_driver_sql(f"PRAGMA legacy_alter_table = {legacy}")

    def column_reflect(self, _inspector: Inspector, table: Table, _column: Any) -> None:
        """Let a copy keep AUTOINCREMENT, which is not reflected. A revision's `table_kwargs` take precedence."""
        if _is_numbered(self._connection, table.name):
            table.kwargs["sqlite_autoincrement"] = True

    def handle_error(self, failure: ExceptionContext) -> None:
        """Delete the backup if the COMMIT fails. One that is only interrupted may succeed."""
        if failure.statement == "COMMIT" and failure.sqlalchemy_exception:
            self.delete_backup()

    def delete_backup(self) -> None:
        """Delete the backup of a database that was not changed."""
        if self._backup is not None:
            self._backup.unlink(missing_ok=True)
            log.info("Nothing was changed: deleted the backup.")

    def check(self) -> None:
        """Refuse what was lost, and let AUTOINCREMENT continue from the last id that it has given."""
        if lost := sorted(self._triggers - _names(self._connection, "trigger")):
            raise CommandError(LOSS.format(f"the triggers {', '.join(lost)}"))
        for table, before in self._dropped.items():
            if lost := _lost(before, _rules(self._connection, table)):
                advice = " State it in the revision: reflect_args, or drop_index and create_index."
                raise CommandError(LOSS.format(", ".join(lost)) + advice)
        for (table, parent), rows in (_orphans(self._connection) - self._orphans).items():
            raise CommandError(f"{rows} rows of {table} would refer to missing rows of {parent}. Nothing was changed.")
        for table, last_id in self._sequences.items():
            raised = self._connection.exec_driver_sql(RAISE_SEQUENCE, (last_id, table)).rowcount
            if not raised and _is_numbered(self._connection, table):  # a table without rows
                self._connection.exec_driver_sql(ADD_SEQUENCE, (last_id, table))


def back_up(file: Path, revision: str) -> Path:
    """Copy the committed content of a file by SQLite's backup API. The copy gets its name when it is complete."""
    copy = file.with_name(f"{file.name}.{revision}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.bak")
    part = copy.with_name(f"{copy.name}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o600))  # not readable for others before chmod
        try:
            part.chmod(file.stat().st_mode)
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(part)) as target:
                source.backup(target)
            part.rename(copy)
        finally:
            for left in (part, part.with_name(f"{part.name}-journal")):
                left.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"The database could not be backed up, so nothing was changed: {error}") from None
    log.info("Backed up the database to %s", copy)
    return copy


def _name(pattern: re.Pattern[str], statement: str) -> str | None:
    match = pattern.match(statement)
    return match[1].strip('"[]`') if match and match[1] else None


def _names(connection: Connection, kind: str) -> set[str]:
    return set(connection.exec_driver_sql(NAMES, (kind,)).scalars())


def _is_numbered(connection: Connection, table: str) -> bool:
    return connection.exec_driver_sql(AUTOINCREMENT, (table,)).first() is not None


def _sequences(connection: Connection) -> dict[str, int]:
    if "sqlite_sequence" not in _names(connection, "table"):
        return {}
    return {row.name: row.seq for row in connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")}


def _orphans(connection: Connection) -> Counter[tuple[str, str]]:
    """Count the rows that refer to missing rows, by table and parent: a rebuild may change their rowids."""
    orphans: Counter[tuple[str, str]] = Counter()
    for table in _names(connection, "table"):
        with suppress(OperationalError):  # a foreign key of another application that refers to no unique column
            found = connection.exec_driver_sql(f"PRAGMA foreign_key_check('{table}')")
            orphans.update((child, parent) for child, _row, parent, _key in found)
    return orphans


def _rules(connection: Connection, table: str) -> Counter[tuple[str, str]]:
    """Count the columns and foreign keys of a table, and for the table and each index, itself and its rules."""
    columns, foreign_keys = connection.exec_driver_sql(SIZES, (table, table)).one()
    rules = Counter({COLUMN: columns, FOREIGN_KEY: foreign_keys})
    for name, sql in connection.exec_driver_sql(DEFINITIONS, (table,)):
        rules.update((name, rule.upper()) for rule in ("", *RULE.findall(" ".join(sql.split()))))
    return rules


def _lost(before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]) -> list[str]:
    lost = before - after
    if lost.keys() & {COLUMN, FOREIGN_KEY}:
        return []  # the revision dropped it, perhaps with its rules
    return [f"{rule} of {name}" for name, rule in lost if (name, "") not in lost]
