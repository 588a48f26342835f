"""Measures what each index on heroes adds to a write: the time of an INSERT with it, relative to without any.

.venv-bench/bin/python -m bench.indexes [ROWS]
"""

import logging
import statistics
import sys
import time
from collections.abc import Mapping

from sqlalchemy import Engine, create_engine, text

from bench.databases import DATABASES, temporary_folder

ROUNDS = 5
# The statements that create the indexes, as the database has them after the last revision.
INDEXES = {
    "postgres": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'hero' AND indexname LIKE 'ix%'",
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'hero' AND sql IS NOT NULL",
}
WRITE_AHEAD = {"postgres": "SELECT 1", "sqlite": "PRAGMA journal_mode = WAL"}  # as the service sets it
FILL = (
    "INSERT INTO hero (name, age, secret_name) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n"
    " WHERE x < :rows) SELECT 'Hero ' || (x * 7919 % 50000), x * 31 % 100, 'x' FROM n"
)


def insert(engine: Engine, indexes: Mapping[str, str], rows: int) -> float:
    """Insert rows into a table with these indexes, and return the seconds."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM hero"))
        for statement in indexes.values():
            connection.execute(text(statement))
    with engine.begin() as connection:
        started = time.perf_counter()
        connection.execute(text(FILL), {"rows": rows})
        elapsed = time.perf_counter() - started
        for name in indexes:
            connection.execute(text(f'DROP INDEX "{name}"'))
    return elapsed


def measure(name: str, url: str, rows: int) -> None:
    """Print the medians."""
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text(WRITE_AHEAD[name]))
    with engine.begin() as connection:
        indexes: dict[str, str] = {row[0]: row[1] for row in connection.execute(text(INDEXES[name]))}
        for index in indexes:
            connection.execute(text(f'DROP INDEX "{index}"'))
    cases = {"none": {}, **{index: {index: indexes[index]} for index in sorted(indexes)}, "all": indexes}
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case, chosen in cases.items():
            times[case].append(insert(engine, chosen, rows))
    engine.dispose()
    baseline = statistics.median(times["none"])
    print(f"\n{name}, {rows:,} rows in one statement; without indexes: {baseline / rows * 1e6:.1f} µs per row")
    for case in cases:
        print(f"{case:22} {statistics.median(times[case]) / baseline:5.2f}")


def main() -> None:
    """Measure on both databases."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    logging.disable(logging.INFO)  # Alembic logs each revision
    with temporary_folder() as folder:
        for name, create in DATABASES.items():
            with create(folder) as database:
                measure(name, database.url, rows)


if __name__ == "__main__":
    main()
