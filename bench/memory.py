"""Measures the service's resident memory over more than 100,000 requests of all operations.

.venv-bench/bin/python -m bench.memory --help
"""

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

from bench.charts import plot_memory
from bench.databases import postgres, temporary_folder
from bench.load import OPERATIONS, run_wrk
from bench.servers import CONTENDERS, OURS, Server

CONNECTIONS = 32
MEGABYTE = 1_000_000


def main() -> None:
    """Load one process on Postgres in slices, print its memory after each, and save the curve."""
    parser = argparse.ArgumentParser(description="Measure the service's memory over many requests.")
    parser.add_argument("--requests", type=int, default=100_000, help="minimum number of requests")
    parser.add_argument("--seconds", type=int, default=4, help="per slice")
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
    plot_memory(requests, megabytes, options.results / "memory.svg")


def measure(total: int, seconds: int) -> tuple[list[int], list[float]]:
    """Return the number of requests served so far and the memory, after each slice."""
    requests: list[int] = [0]
    with temporary_folder() as folder, postgres(folder) as database:
        database.reset()
        with Server(CONTENDERS[OURS], database, folder) as server:
            megabytes = [server.memory() / MEGABYTE]
            while requests[-1] < total:
                load = run_wrk(server.port, *OPERATIONS, connections=CONNECTIONS, seconds=seconds)
                server.wait_until_idle()
                requests.append(requests[-1] + load.requests)
                megabytes.append(server.memory() / MEGABYTE)
                print(f"{requests[-1]:7} requests: {megabytes[-1]:6.1f} MB, {load.errors} errors")
    return requests, megabytes


if __name__ == "__main__":
    main()
