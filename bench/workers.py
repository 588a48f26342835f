"""Measures what several processes serve, relative to one: requests per second of `--workers`, with wrk.

The service, the load generator and Postgres share the machine. The counts alternate within each round, and the median
of the ratios of the rounds is reported.

    .venv-bench/bin/python -m bench.workers
"""

import logging
import os
import statistics
from pathlib import Path

from bench.databases import DATABASES, Database, temporary_folder
from bench.load import OPERATIONS, run_wrk
from bench.servers import CONTENDERS, OURS, Server

WORKERS = (1, 2, 4)
CONNECTIONS = 64
SECONDS = 3
ROUNDS = 3


def measure(database: Database, folder: Path, workers: int) -> dict[str, float]:
    """Return the requests per second of each operation.

    Raises:
        RuntimeError: a request failed.
    """
    throughput: dict[str, float] = {}
    with Server(CONTENDERS[OURS], database, folder, workers=workers) as server:
        for operation in OPERATIONS:
            database.reset()
            run_wrk(server.port, operation, connections=CONNECTIONS, seconds=1)  # its connections are opened
            load = run_wrk(server.port, operation, connections=CONNECTIONS, seconds=SECONDS)
            if load.errors:
                raise RuntimeError(f"{load.errors} of {load.requests} requests failed")
            throughput[operation] = load.throughput
    return throughput


def main() -> None:
    """Measure on both databases, and print a table for each."""
    logging.disable(logging.INFO)  # Alembic logs each revision
    print(f"{os.cpu_count()} cores")
    with temporary_folder() as folder:
        for name, create in DATABASES.items():
            with create(folder) as database:
                rounds = [{workers: measure(database, folder, workers) for workers in WORKERS} for _ in range(ROUNDS)]
            print(f"\n{name}: requests/s of one process, and times as many with {WORKERS[1:]}")
            for operation, title in OPERATIONS.items():
                alone = statistics.median(each[WORKERS[0]][operation] for each in rounds)
                ratios = (
                    statistics.median(each[workers][operation] / each[WORKERS[0]][operation] for each in rounds)
                    for workers in WORKERS[1:]
                )
                print(f"{title:8} {alone:6.0f} " + " ".join(f"{ratio:5.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
