"""Servers to measure: one process of uvicorn each, with the same options."""

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
import psutil

from bench.databases import ROOT, Database

OURS = "ours"
APPS = {
    OURS: "app.main:app",
    "bare_asgi": "bench.contenders.bare_asgi:app",
    "floor": "bench.contenders.floor:app",
    "litestar_sqlalchemy": "bench.contenders.litestar_sqlalchemy:app",
    "fastapi_tortoise": "bench.contenders.fastapi_tortoise:app",
    "async_port": "bench.contenders.async_port:app",
    "tutorial": "bench.contenders.tutorial:app",
}
POSTGRES_ALONE = {"bare_asgi", "floor"}
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
START = 30  # seconds that a server has to start
ANSWER = 5  # seconds that it has for a request when it has nothing else to do
SETTLE = 30  # seconds that it has to finish what it was given
IDLE = 0.05  # of one core


class Server:
    """A contender's server on a database. It can be started anew when it answers no more."""

    def __init__(
        self, contender: str, database: Database, folder: Path, settings: Mapping[str, str] = NO_SETTINGS
    ) -> None:
        """Keep its log in the folder. Every setting that is not given has its default."""
        self._app = APPS[contender]
        self._environment = {"DATABASE_URL": database.url, **settings}
        self._log = folder / f"{contender}.log"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--no-access-log", "--log-level", "warning")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - these are our own words
                [sys.executable, "-m", "uvicorn", self._app, *options],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=ANSWER)
        deadline = time.monotonic() + START
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{self._app} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once: a contender may be past hearing."""
        self.client.close()
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Send one request, and return the status and the body of the answer."""
        # A connection each: one that is kept would time out while others are measured.
        response = self.client.request(method, path, json=body, headers={"Connection": "close"})
        return response.status_code, response.text

    def answers(self) -> bool:
        """Tell whether it answers a single request."""
        try:
            return self.ask("GET", "/heroes/1")[0] < 500
        except httpx.TransportError:
            return False

    def settle(self) -> None:
        """Wait until it has nothing more to compute."""
        deadline = time.monotonic() + SETTLE
        used = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.4)
            before, used = used, self.cpu()
            if used - before <= IDLE * 0.4:
                return

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used, in all its threads."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Return the bytes of memory that it occupies."""
        return int(psutil.Process(self._process.pid).memory_info().rss)
