"""Measures what several processes serve, relative to one: requests per second, and CPU time per request, with wrk.

The service, the load generator and the database share the machine. The counts alternate within each round, and the
median of the ratios of the rounds is reported. Requests per second need an idle machine. The CPU time says how much
more a request costs when several processes share the work: 1 means that they scale with the cores that they get.

    .venv-bench/bin/python -m bench.workers
"""

import logging
import os
import statistics
from pathlib import Path
from typing import NamedTuple

from bench.databases import DATABASES, Database, temporary_folder
from bench.load import OPERATIONS, run_wrk
from bench.servers import CONTENDERS, OURS, Server

WORKERS = (1, 2, 4)
CONNECTIONS = 64
SECONDS = 2
ROUNDS = 3


class Measurement(NamedTuple):
    """Requests per second, and the microseconds of CPU time that the service's processes spend on each."""

    throughput: float
    cost: float


def measure(database: Database, folder: Path, workers: int) -> dict[str, Measurement]:
    """Measure each operation.

    Raises:
        RuntimeError: a request failed.
    """
    measured: dict[str, Measurement] = {}
    with Server(CONTENDERS[OURS], database, folder, workers=workers) as server:
        for operation in OPERATIONS:
            database.reset()
            run_wrk(server.port, operation, connections=CONNECTIONS, seconds=1)  # its connections are opened
            before = server.cpu()
            load = run_wrk(server.port, operation, connections=CONNECTIONS, seconds=SECONDS)
            if load.errors:
                raise RuntimeError(f"{load.errors} of {load.requests} requests failed")
            cost = (server.cpu() - before) * 1e6 / load.requests
            measured[operation] = Measurement(load.throughput, cost)
            server.wait_until_idle()  # else the last POSTs take ids that the next reset means to give
    return measured


def main() -> None:
    """Measure on both databases, and print a table for each."""
    logging.disable(logging.INFO)  # Alembic logs each revision
    print(f"{os.cpu_count()} cores; relative to one process: {WORKERS[1:]}")
    with temporary_folder() as folder:
        for name, create in DATABASES.items():
            with create(folder) as database:
                rounds = [{workers: measure(database, folder, workers) for workers in WORKERS} for _ in range(ROUNDS)]
            print(f"\n{name}")
            for operation, title in OPERATIONS.items():
                for field, unit in (("throughput", "requests/s"), ("cost", "us of CPU")):
                    values = [{count: getattr(each[count][operation], field) for count in WORKERS} for each in rounds]
                    alone = statistics.median(each[WORKERS[0]] for each in values)
                    ratios = (
                        statistics.median(each[count] / each[WORKERS[0]] for each in values) for count in WORKERS[1:]
                    )
                    print(f"{title:8} {alone:6.0f} {unit:10} " + " ".join(f"{ratio:5.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
