"""A roll-out: workers of two releases on one database, and a load that records every failed request."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from sqlalchemy import URL, text

from tests.support.polling import wait_until_async
from tests.support.processes import ROOT, TIMEOUT
from tests.support.service import Service, running_service
from tests.support.sql import execute, run_in_transaction

SEED_ROWS = 2500  # three batches of a backfill
CLIENTS = 8
PAUSE = 0.005  # seconds between a client's requests, so that the load does not saturate a small machine
SEED = (
    "INSERT INTO hero (name, age, secret_name)"
    f" WITH RECURSIVE number (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < {SEED_ROWS})"
    " SELECT 'seed', i % 100, 'x' FROM number"
)
CREATED = text(f"SELECT id, age FROM hero WHERE id > {SEED_ROWS}")


@contextmanager
def two_workers(url: URL, folder: Path, release: Path = ROOT) -> Iterator[list[Service]]:
    """Start two processes of a release, in parallel because each takes a while."""
    managers = [running_service(url, folder / f"worker {number}.log", "--app-dir", str(release)) for number in (1, 2)]
    with ExitStack() as stack:
        with ThreadPoolExecutor() as threads:
            workers = list(threads.map(stack.enter_context, managers))
        yield workers


class Load:
    """Clients that create, read, update and delete heroes of their own, round robin over the workers.

    Every response is compared with the expected one, which is known since no client changes another's heroes.

    Attributes:
        responses: the number of responses of each kind.
        failures: the responses that differed, and the requests that got none.
    """

    def __init__(self, url: URL, *workers: Service) -> None:
        """Take the database, which is seeded before and checked afterwards, and the first workers."""
        self.responses: Counter[str] = Counter()
        self.failures: list[str] = []
        self._url = url
        self._ages: dict[int, int] = {}  # of the heroes that must exist, by id
        self._ports = [worker.port for worker in workers]
        self._next_worker = itertools.count()
        self._in_flight: Counter[int] = Counter()
        self._stopping = False

    async def __aenter__(self) -> Self:
        """Seed the database and start the clients."""
        await asyncio.to_thread(execute, self._url, SEED)
        self._http = httpx.AsyncClient(timeout=TIMEOUT)
        self._clients = [asyncio.create_task(self._run_client(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop each client after its current hero."""
        self._stopping = True
        await asyncio.gather(*self._clients)
        await self._http.aclose()

    async def make_progress(self) -> None:
        """Wait until each client has sent requests of every kind, about four times each."""
        target = self.responses.total() + 25 * CLIENTS

        async def has_progressed() -> bool:
            return self.responses.total() >= target

        await wait_until_async(has_progressed)

    async def remove_worker(self, worker: Service) -> None:
        """Send a worker no more requests, and wait until it has none in flight."""

        async def is_idle() -> bool:
            return not self._in_flight[worker.port]

        self._ports.remove(worker.port)
        await wait_until_async(is_idle)

    async def add_worker(self, worker: Service) -> None:
        """Wait until a worker is ready, and send it requests."""

        async def is_ready() -> bool:
            return (await self._http.get(f"http://127.0.0.1:{worker.port}/readyz")).status_code == 200

        await wait_until_async(is_ready)
        self._ports.append(worker.port)

    def assert_nothing_failed_or_was_lost(self) -> None:
        """Check the responses, and the rows in the database; call it after the load has stopped."""
        assert not self.failures, f"{len(self.failures)} of {self.responses}: {self.failures[:10]}"
        assert self.responses.total() > 300
        assert min(self.responses[kind] for kind in ("POST", "GET", "GET all", "PATCH", "DELETE")) > 20
        rows = run_in_transaction(self._url, lambda connection: connection.execute(CREATED).all())
        assert dict(rows) == self._ages

    async def _run_client(self, number: int) -> None:
        for age in itertools.count():
            if self._stopping:
                return
            hero = {"name": f"hero of client {number}", "age": age}
            created = await self._request("POST", "/heroes/", {**hero, "secret_name": "Dive Wilson"}, expected=hero)
            if created is None:
                continue
            path, hero["id"] = f"/heroes/{created['id']}", created["id"]
            await self._request("GET", path, expected=hero)
            hero["age"] = age + 1
            await self._request("PATCH", path, {"age": age + 1}, expected=hero)
            await self._request("GET", path, expected=hero)
            await self._request("GET all", "/heroes/", expected=list(range(1, 101)))
            if age % 2:
                await self._request("DELETE", path, expected={"ok": True})
            else:
                self._ages[created["id"]] = age + 1

    async def _request(self, kind: str, path: str, body: object = None, *, expected: object) -> Any:
        await asyncio.sleep(PAUSE)
        port = self._ports[next(self._next_worker) % len(self._ports)]
        self._in_flight[port] += 1
        try:
            response = await self._http.request(kind.removesuffix(" all"), f"http://127.0.0.1:{port}{path}", json=body)
        except httpx.TransportError as error:
            self.failures.append(f"{kind} {path}: {error!r}")
            return None
        finally:
            self._in_flight[port] -= 1
            self.responses[kind] += 1
        if response.status_code == 200 and matches(found := response.json(), expected):
            return found
        self.failures.append(f"{kind} {path}: {response.status_code} {response.text[:200]}")
        return None


def matches(found: Any, expected: object) -> bool:
    """Compare the ids of a list, or the expected fields of an object: a newer release may add fields."""
    if isinstance(expected, list):
        return [hero["id"] for hero in found] == expected
    return isinstance(expected, dict) and expected.items() <= found.items()
