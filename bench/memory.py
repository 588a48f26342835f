"""Whether the service's memory stays as it is, over more than 100,000 requests of every kind.

.venv-bench/bin/python -m bench.memory --help
"""

import argparse
import json
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.databases import postgres
from bench.drawing import draw_memory
from bench.load import OPERATIONS, drive
from bench.servers import OURS, Server

CONNECTIONS = 32
MEGABYTE = 1_000_000


def main() -> None:
    """Load one process on Postgres slice after slice, print its memory after each, and save the curve."""
    parser = argparse.ArgumentParser(description="Measure the service's memory over many requests.")
    parser.add_argument("--requests", type=int, default=100_000, help="to answer at least")
    parser.add_argument("--seconds", type=int, default=4, help="of each slice")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    options = parser.parse_args()
    requests, megabytes = measure(options.requests, options.seconds)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "requests": requests,
        "megabytes": megabytes,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "memory.json").write_text(json.dumps(document, indent=1) + "\n")
    draw_memory(requests, megabytes, options.results / "memory.svg")


def measure(enough: int, seconds: int) -> tuple[list[int], list[float]]:
    """Return the number of requests answered so far, and the memory then, after each slice."""
    requests: list[int] = [0]
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        postgres(Path(folder)) as database,
    ):
        database.reset()
        with Server(OURS, database, Path(folder)) as server:
            megabytes = [server.memory() / MEGABYTE]
            while requests[-1] < enough:
                load = drive(server.port, *OPERATIONS, connections=CONNECTIONS, seconds=seconds)
                server.settle()
                requests.append(requests[-1] + load.requests)
                megabytes.append(server.memory() / MEGABYTE)
                print(f"{requests[-1]:7} requests: {megabytes[-1]:6.1f} MB, {load.errors} errors")
    return requests, megabytes


if __name__ == "__main__":
    main()
