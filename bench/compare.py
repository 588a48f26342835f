"""Compares the service with other implementations of the same API, and with its own older revisions.

    .venv-bench/bin/python -m bench.compare --help

Each contender is one uvicorn process on the same database, under the same load. The service and its revisions run with
the options that their Makefile has, the others on uvicorn's own protocol. What is compared is the server's CPU time per
request: throughput also depends on the load generator and the database, which share its cores.

The machine's speed drifts, so contenders are compared in pairs that are close in time. All servers are up at once, but
only one has load. A load is measured on one after the other, and then again in the opposite order: two rounds. Ratios
are taken within a round, and their median counts. Then servers restart, since two processes of the same program differ
by a few percent in memory layout and hash seed. To resolve a small difference, use many short rounds: `--rounds 20
--seconds 1`. For less noise still, without sockets, see `bench.inprocess`. These contenders show what the service's own
protocol costs:

    .venv-bench/bin/python -m bench.compare --contenders ours ours_on_plain_uvicorn ours_on_h11 --results FOLDER
"""

import argparse
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import charts, tables, targets
from bench.contract import check
from bench.databases import DATABASES, databases_for, temporary_folder
from bench.load import OPERATIONS, raise_file_limit, run_wrk
from bench.results import Cell, Measurement, Results
from bench.revisions import check_out, resolve
from bench.servers import CONTENDERS, OPTIONAL_CONTENDERS, POSTGRES_ONLY, Server, service

ROUNDS_PER_START = 2
WARM_UP = 1  # second
MIN_RATE = 200  # requests per second: a load is long enough for most connections to get several responses at this rate


def main() -> None:
    """Measure, print the tables and the targets, and save the results."""
    options = parse_options()
    revision = options.revision and resolve(options.revision)
    raise_file_limit()
    versions: dict[str, str] = {}
    measurements: list[Measurement] = []
    with temporary_folder() as folder:
        contenders = [(CONTENDERS | OPTIONAL_CONTENDERS)[name] for name in options.contenders]
        if revision:
            contenders.insert(1, service(revision, check_out(revision, folder)))
        for name in options.databases:
            supported = [one for one in contenders if name == "postgres" or one.name not in POSTGRES_ONLY]
            with databases_for([one.name for one in supported], name, folder) as databases:
                servers = [Server(one, databases[one.name], folder) for one in supported]
                versions[name] = servers[0].database.version
                for measurement in measure_all(name, servers, options):
                    print(tables.progress(measurement), file=sys.stderr)
                    measurements.append(measurement)
    results = Results(measurements)
    print(tables.render(results))
    print(targets.render(results, revision))
    options.results.mkdir(parents=True, exist_ok=True)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "databases": versions,
        "revision": revision,
        "seconds": options.seconds,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    (options.results / "compare.json").write_text(json.dumps(document, indent=1) + "\n")
    charts.plot_cpu(results, options.results / "compare.svg")


def parse_options() -> argparse.Namespace:
    """Parse the command line. Without options everything is measured."""
    parser = argparse.ArgumentParser(description="Compare the CPU per request of implementations of the heroes API.")
    parser.add_argument("--revision", help="a commit of this repository as one more contender")
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each cell (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="per measurement; more for many connections")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    names = [*CONTENDERS, *OPTIONAL_CONTENDERS]
    parser.add_argument("--contenders", nargs="+", choices=names, default=list(CONTENDERS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--connections", nargs="+", type=int, default=[32, 64, 1000])
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    return parser.parse_args()


def measure_all(name: str, servers: Sequence[Server], options: argparse.Namespace) -> Iterator[Measurement]:
    """Measure all rounds, and restart the servers between them."""
    for first in range(1, options.rounds + 1, ROUNDS_PER_START):
        rounds = range(first, min(first + ROUNDS_PER_START, options.rounds + 1))
        with ExitStack() as stack:
            for server in servers:
                stack.enter_context(server)
                server.database.reset()
                check(server)
            for operation, connections in itertools.product(options.operations, options.connections):
                cells = {Cell(name, server.contender.name, operation, connections): server for server in servers}
                if connections <= MIN_RATE:
                    yield from measure_load(cells, rounds, options.seconds)
                elif first == 1:  # these take long, so they are measured once
                    yield from measure_load(cells, rounds[:1], max(options.seconds, connections // MIN_RATE))


def measure_load(cells: Mapping[Cell, Server], rounds: Sequence[int], seconds: int) -> Iterator[Measurement]:
    """Warm up the servers under one load, and then measure them in turns."""
    for database in {server.database for server in cells.values()}:
        database.reset()
    for cell, server in cells.items():
        run_wrk(server.port, cell.operation, connections=cell.connections, seconds=WARM_UP)
        server.wait_until_idle()
    for number in rounds:
        for cell, server in list(cells.items())[:: 1 if number % 2 else -1]:
            yield measure(cell, number, server, seconds)


def measure(cell: Cell, number: int, server: Server, seconds: int) -> Measurement:
    """Measure one cell, and restart the server if it stops responding."""
    if server.responds():
        before = server.cpu()
        load = run_wrk(server.port, cell.operation, connections=cell.connections, seconds=seconds)
        server.wait_until_idle()
        # When wrk ends, each connection has a request in flight. The server completes these too, so they count.
        cpu = (server.cpu() - before) / (load.requests + cell.connections)
        if load.requests and server.responds():
            return Measurement(cell, number, load, cpu)
    server.stop()
    server.start()
    return Measurement(cell, number, load=None, cpu=None)


if __name__ == "__main__":
    main()
