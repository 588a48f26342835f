"""Upgrades in processes that are killed, stopped or many. They are forked, so that all of them import but once.

python -m tests.kills together NUMBER ARGUMENT...     Alembic's command, so many times at once
python -m tests.kills stopped TEXT ARGUMENT...        until SIGCONT, before each of its statements with the text, or
                                                      behind its first connection if the text is `connection 1`
python -m tests.kills everywhere SIGNAL STEP ARGUMENT...
    On a copy of the database for each: the command, which sends itself the signal at every STEP-th thing that it does,
    and then the command again, after which the copy must be like one on which nobody has disturbed it.

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

import app.main  # noqa: F401 - the rest of what Alembic will import
import migrations.locks
import migrations.online
import migrations.rebuilds  # noqa: F401
from app.settings import Settings
from app.urls import is_sqlite
from tests.conftest import execute
from tests.migrating import describe, on
from tests.processes import PATIENCE, spell

FORK = multiprocessing.get_context("fork")
LANES = os.cpu_count() or 1

# What the catalogue says of a finished upgrade, and Alembic's `describe` does not.
CATALOGUE = {
    "sqlite": {
        "tables": "SELECT name, sql FROM sqlite_master ORDER BY name",
        "numbers": "SELECT name, seq FROM sqlite_sequence ORDER BY name",
        "damage": "PRAGMA integrity_check",
    },
    "postgresql": {
        "indexes": "SELECT indexrelid::regclass::text, indisvalid AND indisready AND indislive FROM pg_index"
        " WHERE indrelid = 'hero'::regclass ORDER BY 1",
        "constraints": "SELECT conname, convalidated, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'hero'::regclass ORDER BY 1",
        "numbers": "SELECT data_type::text, last_value FROM pg_sequences",
    },
}
IN_ALL = {"rows": "SELECT * FROM hero ORDER BY id", "revision": "SELECT version_num FROM alembic_version"}


def together(number: int, arguments: list[str]) -> None:
    """Run so many at once. The status is 0 if all of theirs are."""
    processes = [FORK.Process(target=run_alembic, args=(arguments,)) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    sys.exit(any(process.exitcode != 0 for process in processes))


def stopped(words: str, arguments: list[str]) -> None:
    """Run one that stops in the middle."""
    connections = itertools.count(1)

    def come_by(point: str) -> None:
        if words in point:
            signal.raise_signal(signal.SIGSTOP)

    event.listen(Engine, "before_cursor_execute", lambda *happened: come_by(happened[2]))
    event.listen(Engine, "engine_connect", lambda _: come_by(f"connection {next(connections)}"))
    run_alembic(arguments)


def everywhere(number: signal.Signals, step: int, arguments: list[str]) -> None:
    """Kill one at every point, or at some. The status is 0 if all went on to the same end."""
    logging.disable(logging.WARNING)
    template = Settings.from_environment().database_url
    url = copy(template, 0)
    status, points = in_child(lambda: disturbed(url, arguments, number, None))
    assert status == 0
    _, wanted = in_child(lambda: look(url))
    drop(template, url)
    chosen = range(1, len(points) + 1, step)

    def kill(mine: range) -> None:
        sys.exit(sum(not heals(template, arguments, number, at, wanted) for at in mine))

    lanes = [FORK.Process(target=kill, args=(chosen[lane::LANES],)) for lane in range(LANES)]
    for process in lanes:
        process.start()
    for process in lanes:
        process.join()
    print(f"{number.name} at {len(chosen)} of {len(points)} points")  # noqa: T201
    sys.exit(any(process.exitcode for process in lanes))


def heals(template: URL, arguments: list[str], number: signal.Signals, at: int, wanted: dict[str, Any]) -> bool:
    """Kill one at a point, run it again, and tell whether what was wanted is there."""
    url = copy(template, at)
    killed, _ = in_child(lambda: disturbed(url, arguments, number, at))
    again, _ = in_child(lambda: disturbed(url, arguments, number, None))
    _, found = in_child(lambda: look(url))
    found = found or {}
    different = [name for name in wanted if found.get(name) != wanted[name]]
    as_wanted = killed == -number and again == 0 and not different
    print(f"{at}: killed: {killed}, again: {again}, different: {different}", flush=True)  # noqa: T201
    drop(template, url)
    return as_wanted


def disturbed(url: URL, arguments: list[str], number: signal.Signals, at: int | None) -> list[str]:
    """Run one that sends itself the signal at the given point. Return the points that it has passed."""
    passed: list[str] = []

    def come_by(point: str) -> None:
        passed.append(point)
        if len(passed) == at:
            os.kill(os.getpid(), number)

    def come_by_a_file(name: str, happened: tuple[Any, ...]) -> None:
        files = {"open", "os.rename", "os.remove", "sqlite3.connect"}
        if name in files and os.fsdecode(happened[0]).startswith(str(url.database)):
            come_by(name)

    event.listen(Engine, "before_cursor_execute", lambda *happened: come_by(happened[2]))
    event.listen(Engine, "commit", lambda _: come_by("commit"))
    if is_sqlite(url):
        sys.addaudithook(come_by_a_file)
    os.environ["DATABASE_URL"] = spell(url)
    try:
        run_alembic(arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as Python does when nobody has caught it
        signal.raise_signal(signal.SIGINT)
    return passed


def look(url: URL) -> dict[str, Any]:
    """Take down all that must be the same in the end, and what is wrong with the backups."""

    def ask(connection: Connection) -> dict[str, Any]:
        questions = CATALOGUE[connection.dialect.name] | IN_ALL
        return {name: [tuple(row) for row in connection.execute(text(sql))] for name, sql in questions.items()}

    return {"schema": describe(url), **on(url, ask), "damaged backups": [str(file) for file in damaged_backups(url)]}


def damaged_backups(url: URL) -> list[Path]:
    """Find the backups of a SQLite file that are not complete."""
    damaged = []
    for file in files_of(url):
        if file.suffix == ".bak":
            with closing(sqlite3.connect(file)) as backup:
                whole = backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                rows = backup.execute("SELECT count(*) FROM hero").fetchone()
                damaged += [file] if not whole or rows == (0,) else []
    return damaged


def in_child(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """Do something in a process of its own, and return its status and what it returned."""
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
    execute(server_of(template), f"CREATE DATABASE {url.database} TEMPLATE {template.database}")
    return url


def drop(template: URL, url: URL) -> None:
    """Drop a copy."""
    for file in files_of(url):
        file.unlink()
    if not is_sqlite(url):
        execute(server_of(template), f"DROP DATABASE {url.database} WITH (FORCE)")


def files_of(url: URL) -> list[Path]:
    """List what a SQLite file consists of, and its backups."""
    if not is_sqlite(url) or not url.database:
        return []
    return list(Path(url.database).parent.glob(f"{Path(url.database).name}*"))


def server_of(template: URL) -> URL:
    """A database that is there on every server, since nobody may be connected to one that is copied."""
    return template.set(database="postgres")


if __name__ == "__main__":
    what, how, *rest = sys.argv[1:]
    if what == "together":
        together(int(how), rest)
    elif what == "stopped":
        stopped(how, rest)
    else:
        everywhere(signal.Signals[how], int(rest[0]), rest[1:])
