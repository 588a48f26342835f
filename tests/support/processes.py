"""Subprocesses: servers on free ports, and commands that run to completion."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
from sqlalchemy import URL

from app.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMEOUT = 60  # seconds: long enough for a slow machine, so that only a hang exceeds it


def render_url(url: URL) -> str:
    """Render a URL with its password, as DATABASE_URL has it."""
    return url.render_as_string(hide_password=False)


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with changes, and with the virtual environment's commands first on PATH."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    excluded = {"MAKEFLAGS", "MAKELEVEL", *(name.upper() for name in Settings.model_fields)} - {"DATABASE_POOLER"}
    inherited = {name: value for name, value in os.environ.items() if name not in excluded}
    return inherited | {"PATH": path, **changes}


def run(
    *command: str, cwd: Path = ROOT, changes: Mapping[str, str], timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """Run a command to completion, with changes to the environment and standard error merged into standard output."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    """Find an unused port on the loopback interface, below those that the system gives to outgoing connections."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


@contextmanager
def server(
    *command: str, port: int, cwd: Path = ROOT, changes: Mapping[str, str], output: IO[bytes] | None = None
) -> Iterator[httpx.Client]:
    """Start a server and wait until it responds on the port. On exit, stop its process group."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(changes), start_new_session=True, stdout=output, stderr=output
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as client:
            wait_until_responding(client, process)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(TIMEOUT)


def wait_until_responding(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Return after the first response, whatever its status."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server exited with {process.returncode}"
        try:
            client.get("/livez")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not respond")
