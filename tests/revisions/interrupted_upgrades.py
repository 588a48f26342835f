"""Upgrades that are interrupted, stopped or concurrent, in processes forked from one that has imported everything.

python -m tests.revisions.interrupted_upgrades concurrent NUMBER ARGUMENT...
    Runs Alembic's command that many times at once.
python -m tests.revisions.interrupted_upgrades stopped TEXT ARGUMENT...
    Runs it once, and sends it SIGSTOP before each statement that contains the text; or, if the text is
    `connection 1`, after it has opened its first connection.
python -m tests.revisions.interrupted_upgrades every-point SIGNAL STEP ARGUMENT...
    Interrupts it by the signal at each STEP-th point of its run, each time on a fresh copy of the database, and then
    runs it again on that copy. All copies must end like one on which it ran undisturbed.

DATABASE_URL names the database.
"""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from alembic.config import main as run_alembic
from sqlalchemy import URL, Connection, Engine, event, text

import app.main  # noqa: F401 - imported here so that no forked process imports it again
import migrations.locks
import migrations.online
import migrations.rebuilds  # noqa: F401 - likewise
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.processes import TIMEOUT, render_url
from tests.support.sql import describe_schema, execute_autocommit, run_in_transaction

FORK = multiprocessing.get_context("fork")
WORKERS = os.cpu_count() or 1
FAILED = 255  # the status of an `alembic` that says why

# What the catalogue knows of a finished upgrade beyond `describe_schema`.
CATALOGUE_QUERIES = {
    "sqlite": {
        "tables": "SELECT name, sql FROM sqlite_master ORDER BY name",
        "sequences": "SELECT name, seq FROM sqlite_sequence ORDER BY name",
        "damage": "PRAGMA integrity_check",
    },
    "postgresql": {
        "indexes": "SELECT indexrelid::regclass::text, indisvalid AND indisready AND indislive FROM pg_index"
        " WHERE indrelid = 'hero'::regclass ORDER BY 1",
        "constraints": "SELECT conname, convalidated, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'hero'::regclass ORDER BY 1",
        "sequences": "SELECT data_type::text, last_value FROM pg_sequences",
    },
}
COMMON_QUERIES = {"rows": "SELECT * FROM hero ORDER BY id", "revision": "SELECT version_num FROM alembic_version"}


def run_concurrently(number: int, arguments: list[str]) -> None:
    """Run this number at once. Exit with status 0 if all of them do."""
    processes = [FORK.Process(target=run_alembic, args=(arguments,)) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    sys.exit(any(process.exitcode != 0 for process in processes))


def run_stopped(words: str, arguments: list[str]) -> None:
    """Run one that stops itself at each point that contains the words."""
    connections = itertools.count(1)

    def pass_point(point: str) -> None:
        if words in point:
            signal.raise_signal(signal.SIGSTOP)

    event.listen(Engine, "before_cursor_execute", lambda *details: pass_point(details[2]))
    event.listen(Engine, "engine_connect", lambda _: pass_point(f"connection {next(connections)}"))
    run_alembic(arguments)


def interrupt_at_every_point(number: signal.Signals, step: int, arguments: list[str]) -> None:
    """Interrupt one at each STEP-th point. Exit with status 0 if all recovered to the same end."""
    logging.disable(logging.WARNING)
    template = Settings.from_environment().database_url
    url = copy(template, 0)
    status, points = in_child(lambda: run_interrupted(url, arguments, number, None))
    assert status == 0
    _, expected = in_child(lambda: read_state(url))
    drop(template, url)
    chosen = range(1, len(points) + 1, step)

    def interrupt(share: range) -> None:
        sys.exit(sum(not recovers(template, arguments, number, at, expected) for at in share))

    workers = [FORK.Process(target=interrupt, args=(chosen[worker::WORKERS],)) for worker in range(WORKERS)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    print(f"{number.name} at {len(chosen)} of {len(points)} points")  # noqa: T201 - the output of a command
    sys.exit(any(process.exitcode for process in workers))


def recovers(template: URL, arguments: list[str], number: signal.Signals, at: int, expected: dict[str, Any]) -> bool:
    """Interrupt one at a point, run it again, and return whether the database has the expected state."""
    url = copy(template, at)
    interrupted, _ = in_child(lambda: run_interrupted(url, arguments, number, at))
    rerun, _ = in_child(lambda: run_interrupted(url, arguments, number, None))
    _, found = in_child(lambda: read_state(url))
    found = found or {}
    different = [name for name in expected if found.get(name) != expected[name]]
    recovered = interrupted == (FAILED if number is signal.SIGINT else -number) and rerun == 0 and not different
    print(f"{at}: interrupted: {interrupted}, rerun: {rerun}, different: {different}", flush=True)  # noqa: T201 - ditto
    drop(template, url)
    return recovered


def run_interrupted(url: URL, arguments: list[str], number: signal.Signals, at: int | None) -> list[str]:
    """Run one that sends itself the signal at the given point. Return the points that it has passed."""
    passed: list[str] = []

    def pass_point(point: str) -> None:
        passed.append(point)
        if len(passed) == at:
            os.kill(os.getpid(), number)

    def pass_file_operation(name: str, details: tuple[Any, ...]) -> None:
        operations = {"open", "os.rename", "os.remove", "sqlite3.connect"}
        if name in operations and os.fsdecode(details[0]).startswith(str(url.database)):
            pass_point(name)

    event.listen(Engine, "before_cursor_execute", lambda *details: pass_point(details[2]))
    event.listen(Engine, "commit", lambda _: pass_point("commit"))
    if is_sqlite(url):
        sys.addaudithook(pass_file_operation)
    os.environ["DATABASE_URL"] = render_url(url)
    run_alembic(arguments)
    return passed


def read_state(url: URL) -> dict[str, Any]:
    """Read all that must be the same after every run, and list the damaged backups."""

    def query(connection: Connection) -> dict[str, Any]:
        queries = CATALOGUE_QUERIES[connection.dialect.name] | COMMON_QUERIES
        return {name: [tuple(row) for row in connection.execute(text(sql))] for name, sql in queries.items()}

    damaged = [str(file) for file in damaged_backups(url)]
    return {"schema": describe_schema(url), **run_in_transaction(url, query), "damaged backups": damaged}


def damaged_backups(url: URL) -> list[Path]:
    """List the backups of a SQLite file that are damaged or without rows."""
    damaged = []
    for file in files_of(url):
        if file.suffix == ".bak":
            with closing(sqlite3.connect(file)) as backup:
                intact = backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                rows = backup.execute("SELECT count(*) FROM hero").fetchone()
                damaged += [file] if not intact or rows == (0,) else []
    return damaged


def in_child(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """Call a function in a forked process. Return the process's exit status and the function's result."""
    receiver, sender = FORK.Pipe(duplex=False)

    def work_and_send(sender: Pipe) -> None:
        sender.send(work())

    process = FORK.Process(target=work_and_send, args=(sender,))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    return process.exitcode, result


def copy(template: URL, number: int) -> URL:
    """Copy a database."""
    assert template.database
    if is_sqlite(template):
        file = Path(template.database).with_suffix(f".{number}.db")
        shutil.copyfile(template.database, file)
        return template.set(database=str(file))
    url = template.set(database=f"{template.database}_{number}")
    execute_autocommit(maintenance_url(template), f"CREATE DATABASE {url.database} TEMPLATE {template.database}")
    return url


def drop(template: URL, url: URL) -> None:
    """Drop a copy."""
    for file in files_of(url):
        file.unlink()
    if not is_sqlite(url):
        execute_autocommit(maintenance_url(template), f"DROP DATABASE {url.database} WITH (FORCE)")


def files_of(url: URL) -> list[Path]:
    """List the files of a SQLite database, and its backups."""
    if not is_sqlite(url) or not url.database:
        return []
    return list(Path(url.database).parent.glob(f"{Path(url.database).name}*"))


def maintenance_url(template: URL) -> URL:
    """Return the URL of the server's maintenance database: Postgres copies no database that has connections."""
    return template.set(database="postgres")


if __name__ == "__main__":
    mode, parameter, *rest = sys.argv[1:]
    if mode == "concurrent":
        run_concurrently(int(parameter), rest)
    elif mode == "stopped":
        run_stopped(parameter, rest)
    else:
        interrupt_at_every_point(signal.Signals[parameter], int(rest[0]), rest[1:])
