"""Measures how long each revision takes on a table of a million rows, relative to one pass over the table.

The table is that of FastAPI's tutorial before its chapter on indexes, so that the first revision adopts it and creates
the indexes. After the service's own revisions come those of docs/rename. The baseline, in the same run, is
`SELECT sum(length(name))`.

    .venv-bench/bin/python -m bench.upgrade [ROWS]
"""

import logging
import sys
import time

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from app.urls import parse_url
from bench.databases import ROOT, postgres_server, sqlite, temporary_folder

LAST = "rename_7"
ID = {"sqlite": "INTEGER NOT NULL", "postgresql": "SERIAL"}
TABLE = "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id {}, secret_name VARCHAR NOT NULL, PRIMARY KEY (id))"
NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) SELECT i FROM n",
    "postgresql": "SELECT generate_series(1, :rows) AS i",
}
FILL = (
    "INSERT INTO hero (name, age, secret_name) SELECT 'Hero number ' || i, i % 100, 'Secret number ' || i"
    " FROM ({}) AS numbers"
)


def fill(url: str, rows: int) -> float:
    """Create the table with rows in it, and return the seconds of one pass over them."""
    engine = create_engine(url)
    dialect = engine.dialect.name
    with engine.begin() as connection:
        connection.execute(text(TABLE.format(ID[dialect])))
        connection.execute(text(FILL.format(NUMBERS[dialect])), {"rows": rows})
    with engine.connect() as connection:
        for _ in range(2):  # the first pass warms the cache
            started = time.perf_counter()
            connection.execute(text("SELECT sum(length(name)) FROM hero"))
            elapsed = time.perf_counter() - started
    engine.dispose()
    return elapsed


def measure(url: str, rows: int) -> None:
    """Print the seconds of each revision, and how many passes over the table they equal."""
    config = Config(ROOT / "docs/rename/alembic.ini")
    config.attributes["url"] = parse_url(url)
    one_pass = fill(url, rows)
    print(f"\n{config.attributes['url'].get_backend_name()}, {rows:,} rows; one pass over the table: {one_pass:.3f} s")
    script = ScriptDirectory.from_config(config)
    for revision in reversed(list(script.iterate_revisions(LAST, "base"))):
        started = time.perf_counter()
        command.upgrade(config, revision.revision)
        elapsed = time.perf_counter() - started
        print(f"{revision.revision:9} {elapsed:6.2f} s, {elapsed / one_pass:5.0f} passes")


def main() -> None:
    """Measure on both databases."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    logging.disable(logging.INFO)  # Alembic logs each revision
    with temporary_folder() as folder:
        with sqlite(folder / "warm-up"):  # imports what the first revision would wait for
            pass
        measure(f"sqlite:///{folder}/database.db", rows)
        with postgres_server(folder) as url:
            measure(url, rows)


if __name__ == "__main__":
    main()
