"""CPU per request of the working tree against an older revision, in-process on Postgres.

    .venv-bench/bin/python -m bench.inprocess --revision a662f08
    .venv-bench/bin/python -m bench.inprocess --python /path/to/another/environment/bin/python

The second line compares the committed tree with itself on another Python, which has the same requirements installed.

No sockets, no load generator: the ASGI app is called directly, and `time.process_time` is read around a few dozen
requests. Both trees are ready at the same time, each in a process of its own, and take turns of some 20 ms in
alternating order: what else the machine does then meets both alike. This resolves differences of one or two percent,
which wrk does not, but leaves out what uvicorn costs.
"""

import argparse
import logging
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Self

from bench.databases import ROOT, postgres, temporary_folder
from bench.load import OPERATIONS
from bench.revisions import check_out, resolve

DRIVER = Path(__file__).with_name("asgi_driver.py")


class Driver:
    """A process that drives the app of one tree."""

    def __init__(self, root: Path, url: str, log_level: str, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this project's own script
            # -P: the tree's modules are found, and not those beside the script.
            [python, "-P", str(DRIVER)],
            cwd=root,
            env={"DATABASE_URL": url, "LOG_LEVEL": log_level, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return the driver, which is killed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def measure(self, operation: str, requests: int, clients: int) -> float:
        """Return the CPU seconds per request.

        Raises:
            SystemExit: the process has ended; its traceback is on standard error.
        """
        print(operation, requests, clients, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"the driver failed at {operation}")
        return float(line)


def main() -> None:
    """Measure, and print µs per request and the ratio of each operation."""
    parser = argparse.ArgumentParser(description="Compare CPU per request with a revision, in-process on Postgres.")
    parser.add_argument("--revision", default="HEAD", help="a commit of this repository (default: HEAD)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs it (default: this one)")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--starts", type=int, default=4, help="process starts: each has its own memory layout")
    parser.add_argument("--rounds", type=int, default=60, help="pairs per start")
    parser.add_argument("--requests", type=int, default=50, help="per measurement")
    parser.add_argument("--clients", type=int, default=1, help="concurrent clients that share the requests")
    parser.add_argument("--log-level", default="WARNING", help="INFO logs each request to standard error")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # Alembic logs each revision
    revision = resolve(options.revision)
    pairs: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with temporary_folder() as folder, postgres(folder) as database:
        roots = (ROOT, check_out(revision, folder))
        for _ in range(options.starts):
            database.reset()
            level = options.log_level
            with (
                Driver(roots[0], database.url, level) as ours,
                Driver(roots[1], database.url, level, options.python) as theirs,
            ):
                for number in range(options.rounds + 1):
                    for operation in options.operations:
                        found = {}
                        for driver in (ours, theirs) if number % 2 else (theirs, ours):
                            found[driver] = driver.measure(operation, options.requests, options.clients)
                        if number:  # the first round is the warm-up
                            pairs[operation].append((found[ours], found[theirs]))
    other = revision if options.python == sys.executable else "--python"
    print(f"{'µs of CPU per request':22} {'ours':>6} {other:>8}  ours / {other}")
    for operation, times in pairs.items():
        mine, theirs = (statistics.median(side) * 1e6 for side in zip(*times, strict=True))
        ratios = sorted(pair[0] / pair[1] for pair in times)
        # The rank where a 95 % confidence interval of the median begins, counted from either end.
        rank = max(0, round(len(ratios) / 2 - math.sqrt(len(ratios))))
        print(
            f"{OPERATIONS[operation]:22} {mine:6.0f} {theirs:8.0f}  {statistics.median(ratios):.3f}"
            f" (95 % of the median: {ratios[rank]:.3f} to {ratios[-1 - rank]:.3f};"
            f" range {ratios[0]:.2f} to {ratios[-1]:.2f}; {len(ratios)} pairs)"
        )


if __name__ == "__main__":
    main()
