"""The service in a process of its own, with the options of `make run`."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from sqlalchemy import URL

from tests.support.polling import wait_until
from tests.support.processes import ROOT, TIMEOUT, environment, free_port, render_url, wait_until_responding

UVICORN = re.findall(r"^UVICORN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()


@dataclass(frozen=True)
class Service:
    """A running service: one process, or the parent of several."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def count_connections(self) -> int:
        """Count the established connections to it."""
        found = psutil.Process(self.process.pid).net_connections("tcp4")
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)

    def wait_for_log(self, words: str) -> None:
        """Wait until its log contains the words."""
        wait_until(lambda: words in self.log.read_text(), self.log.read_text)


@contextmanager
def running_service(url: URL, log: Path, *options: str, port: int | None = None, **settings: str) -> Iterator[Service]:
    """Start the service and wait until it responds. On exit, stop its process group if it still runs.

    Args:
        url: its database.
        log: the file that its output is appended to.
        options: further options of uvicorn, which override those of `make run`.
        port: the port it listens on; by default any that is free.
        settings: further environment variables.
    """
    port = port or free_port()
    command = (*UVICORN, *options, "--port", str(port))
    changes = {"DATABASE_URL": render_url(url), **settings}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(changes), start_new_session=True, stdout=output, stderr=output
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until_responding(client, process)
        yield Service(port, process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
