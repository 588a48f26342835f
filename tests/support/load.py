"""Load: clients that send requests to a service until a block ends, and what they saw."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import httpx

from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT

PACE = 0.02  # seconds between two requests of a client, so that the load leaves some CPU to the servers


class Seen(NamedTuple):
    """A response: when it was complete, how long it took, and what it was."""

    ended_at: float
    seconds: float
    status: int
    retry_after: str | None


class Load:
    """Clients that create heroes of unique names, and clients that read them.

    Attributes:
        reads: the responses to those that read.
        writes: the responses to those that write.
        watched: those of them for which there are clients.
        created: the names of the heroes whose creation was acknowledged.
    """

    def __init__(self, port: int, path: str) -> None:
        self.reads: list[Seen] = []
        self.writes: list[Seen] = []
        self.watched: list[list[Seen]] = []
        self.created: list[str] = []
        self.stopped = threading.Event()
        self._port = port
        self._path = path

    def write(self, writer: int) -> None:
        """Create heroes one after the other."""
        with self._client() as client:
            for number in count():
                if self.stopped.is_set():
                    return
                name = f"{self._port}-{writer}-{number}"
                if self._send(client, self.writes, "POST", "/heroes/", {**DEADPOND, "name": name}) == 200:
                    self.created.append(name)

    def read(self, _: int) -> None:
        """Read the path again and again."""
        with self._client() as client:
            while not self.stopped.is_set():
                self._send(client, self.reads, "GET", self._path)

    def statuses(self) -> set[int]:
        """Return the statuses of all responses."""
        return {seen.status for seen in (*self.reads, *self.writes)}

    def wait_for(self, number: int = 20) -> None:
        """Wait until there are as many more responses to each kind of client."""
        goals = [(seen, len(seen) + number) for seen in self.watched]
        wait_until(lambda: all(len(seen) >= goal for seen, goal in goals))

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=TIMEOUT)

    def _send(
        self, client: httpx.Client, seen: list[Seen], method: str, path: str, body: dict[str, object] | None = None
    ) -> int:
        began_at = time.monotonic()
        response = client.request(method, path, json=body)
        ended_at = time.monotonic()
        seen.append(Seen(ended_at, ended_at - began_at, response.status_code, response.headers.get("retry-after")))
        self.stopped.wait(PACE)
        return response.status_code


@contextmanager
def running_load(port: int, *, writers: int = 2, readers: int = 2, path: str = "/heroes/?limit=10") -> Iterator[Load]:
    """Run clients for a block, and wait in the end until each has its last response."""
    load = Load(port, path)
    load.watched = [seen for seen, clients in ((load.reads, readers), (load.writes, writers)) if clients]
    with ThreadPoolExecutor(writers + readers) as pool:
        running = [
            *(pool.submit(load.write, number) for number in range(writers)),
            *(pool.submit(load.read, number) for number in range(readers)),
        ]
        try:
            yield load
        finally:
            load.stopped.set()
    for client in running:
        client.result()
