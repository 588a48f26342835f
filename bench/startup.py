"""Measure how long the service takes from its start to the first 200 of /readyz, relative to `import fastapi`.

.venv-bench/bin/python -m bench.startup --help
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import httpx

from bench.databases import sqlite, temporary_folder
from bench.servers import CONTENDERS, OURS, Server

IMPORT = (sys.executable, "-c", "import fastapi")
Times = tuple[float, float]  # of the clock, and of the processor


class ReadyServer(Server):
    """A server that has started when it is ready."""

    def responds(self) -> bool:
        """Return whether /readyz is 200."""
        try:
            return self.request("GET", "/readyz")[0] == 200
        except httpx.TransportError:
            return False


def main() -> None:
    """Start both in turn, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description="Measure the start of the service on SQLite.")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with temporary_folder() as folder, sqlite(folder) as database:
        server = ReadyServer(CONTENDERS[OURS], database, folder)
        start_server(server)  # so that the bytecode of both is there
        rounds = [(start_server(server), import_fastapi()) for _ in range(options.rounds)]
    for kind, name in enumerate(("clock", "processor")):
        ready, imported = (statistics.median(times[which][kind] for times in rounds) for which in (0, 1))
        ratio = statistics.median(times[0][kind] / times[1][kind] for times in rounds)
        print(f"{name}: {ready:.2f} s until /readyz is 200, {imported:.2f} s for import fastapi, ratio {ratio:.1f}")


def start_server(server: Server) -> Times:
    """Return the times until the server is ready."""
    begun = time.perf_counter()
    server.start()
    times = time.perf_counter() - begun, server.cpu()
    server.stop()
    return times


def import_fastapi() -> Times:
    """Return the times of a process that only imports FastAPI."""
    begun, used = time.perf_counter(), children_cpu()
    subprocess.run(IMPORT, check=True)  # noqa: S603 - a fixed command
    return time.perf_counter() - begun, children_cpu() - used


def children_cpu() -> float:
    """Return the CPU seconds of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
