"""Processes as people start them: servers on free ports, and commands that end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from sqlalchemy import URL

from app.settings import Settings

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PATIENCE = 60  # seconds: for a process that hangs, not for one that is slow


def spell(url: URL) -> str:
    """Write a URL as it stands in the environment."""
    return url.render_as_string(hide_password=False)


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with changes, and with the virtual environment's commands first on the path."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    ours = {"MAKEFLAGS", "MAKELEVEL", *(name.upper() for name in Settings.model_fields)}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | {"PATH": path, **changes}


def run(
    *command: str, cwd: Path = ROOT, changes: Mapping[str, str], patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with changes to the environment, and join standard error to standard output."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience,
        check=False,
    )


def free_port() -> int:
    """Find a port on loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(
    *command: str, port: int, cwd: Path = ROOT, changes: Mapping[str, str], output: IO[bytes] | None = None
) -> Iterator[httpx.Client]:
    """Start a server and wait until it answers on the port. At the end stop it, and all that it started."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(changes), start_new_session=True, stdout=output, stderr=output
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until_answering(client, process)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def wait_until_answering(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Return at the first answer, whatever it says."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            client.get("/livez")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not answer")
