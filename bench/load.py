"""The load generator: wrk, and the throughput and latency that it measures."""

import json
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
OPERATIONS = {"get": "GET one", "list": "GET 100", "post": "POST", "patch": "PATCH"}
OPEN_FILES = 4096  # enough for a thousand connections
TIMEOUT = 30  # seconds after which a request counts as an error


@dataclass(frozen=True)
class Load:
    """What wrk measured. Times are in seconds; error statuses, broken connections and timeouts are errors."""

    requests: int
    errors: int
    seconds: float
    p50: float
    p99: float

    @property
    def throughput(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def run_wrk(port: int, *operations: str, connections: int, seconds: int) -> Load:
    """Send the operations in turn. Each connection sends its next request as soon as it has a response."""
    options = (f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT}s", f"--script={SCRIPT}")
    command = ("wrk", "-t1", *options, f"http://127.0.0.1:{port}", "--", *operations)
    wrk = subprocess.run(  # noqa: S603 - a fixed command
        command, capture_output=True, text=True, check=True, timeout=seconds + TIMEOUT
    )
    return Load(**json.loads(wrk.stdout.splitlines()[-1]))


def raise_file_limit() -> None:
    """Let this process and its children open as many files as a thousand connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
