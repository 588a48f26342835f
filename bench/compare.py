"""What a request costs, here and in other ways to write the same service.

    .venv-bench/bin/python -m bench.compare --help

Each contender is one process of uvicorn with the same options, on the same database, under the same load. Rounds are
interleaved: everybody's first, then everybody's second. What is compared is the server's processor time per request,
since throughput also depends on the load generator and the database, which want the same cores.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import drawing, tables, targets
from bench.contract import check
from bench.databases import DATABASES, Database
from bench.load import OPERATIONS, allow_connections, drive
from bench.results import Cell, Measurement, Results
from bench.servers import APPS, POSTGRES_ALONE, Server

WARM_UP = 1  # second
PACE = 200  # answers per second that a crowd should have time for, so that most of it is answered more than once


def main() -> None:
    """Measure, print the tables and the targets, and save what was measured."""
    options = parse_options()
    allow_connections()
    versions: dict[str, str] = {}
    measurements: list[Measurement] = []
    for name in options.databases:
        with (
            tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
            DATABASES[name](Path(folder)) as database,
        ):
            versions[name] = database.version
            for measurement in measure_all(name, database, Path(folder), options):
                print(tables.progress(measurement), file=sys.stderr)
                measurements.append(measurement)
    results = Results(measurements)
    print(tables.render(results))
    print(targets.render(results))
    options.results.mkdir(parents=True, exist_ok=True)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "databases": versions,
        "seconds": options.seconds,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    (options.results / "compare.json").write_text(json.dumps(document, indent=1) + "\n")
    drawing.draw_costs(results, options.results / "compare.svg")


def parse_options() -> argparse.Namespace:
    """Understand the command line. Without any options everything is measured."""
    parser = argparse.ArgumentParser(description="Measure what a request costs, here and elsewhere.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement; crowds get more")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument("--contenders", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--connections", nargs="+", type=int, default=[32, 64, 1000])
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    return parser.parse_args()


def measure_all(name: str, database: Database, folder: Path, options: argparse.Namespace) -> Iterator[Measurement]:
    """Measure every contender that knows the database, round after round."""
    contenders = [one for one in options.contenders if name == "postgres" or one not in POSTGRES_ALONE]
    for number in range(1, options.rounds + 1):
        for contender in contenders:
            database.renew()
            database.reset()
            with Server(contender, database, folder) as server:
                check(server)
                for operation in options.operations:
                    for connections in options.connections if number == 1 else few(options.connections):
                        cell = Cell(name, contender, operation, connections)
                        seconds = max(options.seconds, connections // PACE)
                        yield measure(cell, number, server, database, seconds)


def few(connections: Sequence[int]) -> list[int]:
    """Leave out the crowds: they take long, and are measured once."""
    return [number for number in connections if number <= PACE]


def measure(cell: Cell, number: int, server: Server, database: Database, seconds: int) -> Measurement:
    """Measure one cell, and leave a server behind that answers."""
    database.reset()
    drive(server.port, cell.operation, connections=cell.connections, seconds=WARM_UP)
    server.settle()
    if server.answers():
        before = server.cpu()
        load = drive(server.port, cell.operation, connections=cell.connections, seconds=seconds)
        server.settle()
        # When wrk ends, each connection has a request under way. The server works these off too, so they count.
        cpu = (server.cpu() - before) / (load.requests + cell.connections)
        if load.requests and server.answers():
            return Measurement(cell, number, load, cpu)
    server.stop()
    server.start()
    return Measurement(cell, number, load=None, cpu=None)


if __name__ == "__main__":
    main()
