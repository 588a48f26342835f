"""Load: what wrk sends to a server, and what it sees of the answers."""

import json
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
OPERATIONS = {"get": "GET one", "list": "GET 100", "post": "POST", "patch": "PATCH"}
FILES = 4096  # enough for a thousand connections
TIMEOUT = 30  # seconds after which an answer counts as an error


@dataclass(frozen=True)
class Load:
    """What came of a load. Times are in seconds; refusals, and connections that broke, are errors."""

    requests: int
    errors: int
    seconds: float
    p50: float
    p99: float


def drive(port: int, *operations: str, connections: int, seconds: int) -> Load:
    """Send the operations in turn, on each connection one after the other without a pause."""
    options = (f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT}s", f"--script={SCRIPT}")
    command = ("wrk", "-t1", *options, f"http://127.0.0.1:{port}", "--", *operations)
    wrk = subprocess.run(  # noqa: S603 - these are our own words
        command, capture_output=True, text=True, check=True, timeout=seconds + TIMEOUT
    )
    return Load(**json.loads(wrk.stdout.splitlines()[-1]))


def allow_connections() -> None:
    """Let this process, and those that it starts, open as many files as a thousand connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
