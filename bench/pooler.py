"""Measures what a pooler costs: the service through PgBouncer with DATABASE_POOLER, relative to Postgres directly.

    .venv-bench/bin/python -m bench.pooler

Both services run at the same time, on the same database, and take turns in alternating order. CPU is that of the
service's process; PgBouncer and Postgres take theirs from the same cores, which the throughput shows. It prints a table
in Markdown.
"""

import argparse
import logging
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.urls import parse_url
from bench.databases import Database, postgres, temporary_folder
from bench.load import OPERATIONS, run_wrk
from bench.servers import CONTENDERS, OURS, Server
from tests.support.pgbouncer import pgbouncer

CONNECTIONS = 32


@contextmanager
def servers(folder: Path, database: Database) -> Iterator[tuple[Server, Server]]:
    """Run the service directly on a database, and through PgBouncer."""
    folders = folder / "direct", folder / "pooled"
    for each in folders:
        each.mkdir()
    with pgbouncer(parse_url(database.url), default_pool_size="20") as url:
        settings = {"DATABASE_URL": url.render_as_string(hide_password=False), "DATABASE_POOLER": "transaction"}
        with (
            Server(CONTENDERS[OURS], database, folders[0]) as direct,
            Server(CONTENDERS[OURS], database, folders[1], settings) as pooled,
        ):
            yield direct, pooled


def measure(server: Server, operation: str, seconds: int) -> tuple[float, float]:
    """Return the CPU seconds per request, and the requests per second.

    Raises:
        RuntimeError: a request has failed.
    """
    before = server.cpu()
    load = run_wrk(server.port, operation, connections=CONNECTIONS, seconds=seconds)
    server.wait_until_idle()
    if load.errors:
        raise RuntimeError(f"{load.errors} requests failed")
    return (server.cpu() - before) / load.requests, load.throughput


def main() -> None:
    """Measure each operation, and print the medians of the ratios with their ranges."""
    parser = argparse.ArgumentParser(description="Measure what PgBouncer and its setting cost.")
    parser.add_argument("--pairs", type=int, default=7, help="of measurements for each operation")
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # Alembic logs each revision
    ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with temporary_folder() as folder, postgres(folder) as database:
        database.reset()
        with servers(folder, database) as both:
            for pair in range(options.pairs + 1):
                for operation in OPERATIONS:
                    order = both if pair % 2 else both[::-1]
                    measured = {server: measure(server, operation, options.seconds) for server in order}
                    if pair:  # the first one warms up
                        direct, pooled = (measured[server] for server in both)
                        ratios[operation].append((pooled[0] / direct[0], pooled[1] / direct[1]))
    print("| through PgBouncer, relative to Postgres directly | CPU per request | requests per second |")
    print("|---|---:|---:|")
    for operation, found in ratios.items():
        cells = (
            f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in zip(*found, strict=True)
        )
        print(f"| {OPERATIONS[operation]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
