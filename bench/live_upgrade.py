"""An upgrade under load: how long it takes, and how long statements of other clients wait meanwhile.

The clients send the SQL of the first release, whose schema is that of revision 0001, directly to the database. They
wait for a lock as long as it takes. The service would answer 503 after its LOCK_TIMEOUT.
"""

import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from bench.databases import ROOT

CLIENTS = 2  # of each kind
PAUSE = 0.01  # seconds between two statements of a client, so that the load does not saturate a small machine
RUNNING = re.compile(r"^(\S+) INFO alembic\S*: Running (?:up|down)grade (\w*) -> (\w+)", re.MULTILINE)
ARGUMENTS: dict[str, dict[str, object]] = {
    "sqlite": {"timeout": 3600},
    # The plan of a prepared statement is refused when a type has changed; the service prepares it again.
    "postgresql": {"prepare_threshold": None},
}
READS = (
    text("SELECT name, age, id FROM hero WHERE id = :id"),
    text("SELECT name, age, id FROM hero WHERE id > :id ORDER BY id LIMIT 100"),
)
WRITES = (
    text("INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', :id % 100, 'Dive Wilson')"),
    text("UPDATE hero SET age = :id % 90 WHERE id = :id"),
    text("DELETE FROM hero WHERE id = :id"),
)


@dataclass
class Waits:
    """What the clients have seen: the longest statement of each kind with its start, and errors."""

    statements: int = 0
    longest: dict[str, tuple[float, float]] = field(default_factory=lambda: defaultdict(lambda: (0.0, 0.0)))
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Upgrade:
    """An upgrade, in seconds.

    Attributes:
        seconds: from the start of the command to its end.
        revisions: of each revision that it began.
        longest: of the longest read and the longest write, with the revision that ran when it began.
        statements: of the clients, while it ran.
        errors: that the clients got.
        failure: its last words, if it failed.
    """

    seconds: float
    revisions: dict[str, float]
    longest: dict[str, tuple[float, str]]
    statements: int
    errors: list[str]
    failure: str | None


def alembic(url: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run alembic in a process of its own."""
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=ROOT, env={"DATABASE_URL": url, **settings}, capture_output=True, text=True, check=False
    )


def upgrade_under_load(url: str, rows: int, **settings: str) -> Upgrade:
    """Upgrade to head while clients read and write."""
    with clients(url, rows) as waits:
        started = time.time()
        finished = alembic(url, "upgrade", "head", **settings)
        ended = time.time()
    begun = {revision: datetime.fromisoformat(at).timestamp() for at, _, revision in RUNNING.findall(finished.stderr)}
    ends = [*begun.values(), ended][1:]
    return Upgrade(
        seconds=ended - started,
        revisions={revision: end - start for (revision, start), end in zip(begun.items(), ends, strict=True)},
        longest={kind: (wait, running_at(begun, at)) for kind, (wait, at) in waits.longest.items()},
        statements=waits.statements,
        errors=waits.errors,
        failure=finished.stderr.strip().rpartition("\n")[2].partition(": ")[2] if finished.returncode else None,
    )


def running_at(begun: Mapping[str, float], at: float) -> str:
    """Tell which revision ran at a time; a statement may begin just before the revision that blocks it."""
    return max((revision for revision, start in begun.items() if start <= at + 0.1), default="before the first")


@contextmanager
def clients(url: str, rows: int) -> Iterator[Waits]:
    """Run clients during a block. At its end, each finishes its statement."""
    waits, stopping, lock = Waits(), threading.Event(), threading.Lock()
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    arguments = ARGUMENTS[engine.dialect.name]
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args=arguments)

    def note(kind: str, started: float, error: str | None) -> None:
        wait = time.time() - started
        with lock:
            waits.statements += 1
            waits.longest[kind] = max(waits.longest[kind], (wait, started))
            if error:
                waits.errors.append(f"{kind} after {wait:.1f} s: {error}")

    def run(kind: str, number: int) -> None:
        statements = READS if kind == "read" else WRITES
        with engine.connect() as connection:
            # Each client deletes and changes heroes of its own: in steps of a prime, over the whole table.
            hero_id = number
            while not stopping.is_set():
                for statement in statements:
                    hero_id = (hero_id + 7919 * 2 * CLIENTS) % rows + 1
                    started, error = time.time(), None
                    try:
                        result = connection.execute(statement, {"id": hero_id})
                        if result.returns_rows:
                            result.all()
                    except SQLAlchemyError as failure:
                        error = str(failure).partition("\n")[0]
                    note(kind, started, error)
                    time.sleep(PAUSE)

    threads = [
        threading.Thread(target=run, args=(kind, number)) for kind in ("read", "write") for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        engine.dispose()
