"""Servers to measure: one uvicorn process each, unless a benchmark asks for more.

The service runs with the options of `make run`, others with none.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
import psutil

from bench.databases import ROOT, Database

OURS = "ours"
PLAIN_PROTOCOL = "ours_on_plain_uvicorn"


@dataclass(frozen=True)
class Contender:
    """An ASGI app to measure, the folder that its modules are imported from, and further options of uvicorn."""

    name: str
    app: str = "app.main:app"
    root: Path = ROOT
    options: tuple[str, ...] = ()


def service(name: str, root: Path = ROOT) -> Contender:
    """Return the service, or a revision of it, with the options that its own Makefile starts it with."""
    app, *options = re.findall(r"^UVICORN := uvicorn (.*)$", (root / "Makefile").read_text(), re.MULTILINE)[0].split()
    return Contender(name, app, root, tuple(options))


CONTENDERS = {
    OURS: service(OURS),
    **{
        name: Contender(name, f"bench.contenders.{name}:app")
        for name in ("bare_asgi", "floor", "litestar_sqlalchemy", "fastapi_tortoise", "async_port", "tutorial")
    },
}
# The service on uvicorn's own protocols. They are measured only if an option names them.
OPTIONAL_CONTENDERS = {
    PLAIN_PROTOCOL: Contender(PLAIN_PROTOCOL),
    "ours_on_h11": Contender("ours_on_h11", options=("--http", "h11")),
}
POSTGRES_ONLY = {"bare_asgi", "floor"}
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
START_TIMEOUT = 30  # seconds
REQUEST_TIMEOUT = 5  # seconds, for a request to a server that is idle
IDLE_TIMEOUT = 30  # seconds that a server has to finish the requests of a load
IDLE_INTERVAL = 0.4  # seconds
IDLE = 0.05  # of one core


class Server:
    """A contender's server on a database. It can be restarted when it has stopped responding."""

    def __init__(
        self,
        contender: Contender,
        database: Database,
        folder: Path,
        settings: Mapping[str, str] = NO_SETTINGS,
        *,
        workers: int = 1,
    ) -> None:
        """Write its log to the folder. Settings that are not given have their defaults."""
        self.contender = contender
        self.database = database
        # Its own access log is off too: no contender has one here.
        self._environment = {"DATABASE_URL": database.url, "LOG_LEVEL": "WARNING", **settings}
        self._workers = ("--workers", str(workers)) if workers > 1 else ()
        self._log = folder / f"{contender.name}.log"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it responds.

        Raises:
            SystemExit: it does not start.
        """
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--no-access-log", "--log-level", "warning")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                [
                    sys.executable,
                    "-m",
                    "uvicorn",
                    self.contender.app,
                    *self.contender.options,
                    *self._workers,
                    *options,
                ],
                cwd=self.contender.root,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=REQUEST_TIMEOUT)
        deadline = time.monotonic() + START_TIMEOUT
        while not self.responds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{self.contender.name} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it with its workers: an overloaded contender may not react to SIGTERM."""
        self.client.close()
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Send one request, and return the status and the body of the response."""
        # A new connection each: the server would close an idle one while others are measured.
        response = self.client.request(method, path, json=body, headers={"Connection": "close"})
        return response.status_code, response.text

    def responds(self) -> bool:
        """Return whether it responds to a single request."""
        try:
            return self.request("GET", "/heroes/1")[0] < 500
        except httpx.TransportError:
            return False

    def wait_until_idle(self) -> None:
        """Wait until it uses no more processor time, up to a limit."""
        deadline = time.monotonic() + IDLE_TIMEOUT
        used = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(IDLE_INTERVAL)
            before, used = used, self.cpu()
            if used - before <= IDLE * IDLE_INTERVAL:
                return

    def cpu(self) -> float:
        """Return the CPU seconds that all threads of its processes have used."""
        parent = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)
