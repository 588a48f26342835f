"""A roll-out: workers of two releases on one database, and clients who notice when anything of it gets through."""

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from sqlalchemy import URL, text

from tests.migrating import execute, on
from tests.processes import PATIENCE, ROOT
from tests.services import Service, launched

SEEDS = 2500  # three batches of a backfill
CLIENTS = 8
PAUSE = 0.005  # seconds: the load shall be steady, not more than a small machine can take
SEED = (
    "INSERT INTO hero (name, age, secret_name)"
    f" WITH RECURSIVE number (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < {SEEDS})"
    " SELECT 'seed', i % 100, 'x' FROM number"
)
WRITTEN = text(f"SELECT id, age FROM hero WHERE id > {SEEDS}")


def copy_of_the_project(folder: Path) -> Path:
    """Copy what serves and what migrates, for another release to be made of it."""
    ignore = shutil.ignore_patterns(".*", "*.db*", "__pycache__", "bench", "docs", "tests")
    return Path(shutil.copytree(ROOT, folder / "release", ignore=ignore))


@contextmanager
def two_workers(url: URL, folder: Path, release: Path = ROOT) -> Iterator[list[Service]]:
    """Launch two processes of a release, both at once since each takes a while."""
    managers = [launched(url, folder / f"worker {number}.log", "--app-dir", str(release)) for number in (1, 2)]
    with ExitStack() as stack:
        with ThreadPoolExecutor() as threads:
            workers = list(threads.map(stack.enter_context, managers))
        yield workers


async def until(it_is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again."""
    async with asyncio.timeout(PATIENCE):
        while not await it_is_so():  # noqa: ASYNC110 - those who are waited for are other processes
            await asyncio.sleep(0.01)


class Load:
    """Clients that create, read, change and delete heroes of their own, each request through the next worker.

    Every answer is compared with what must be true, since nobody else changes their heroes.

    Attributes:
        answers: how many there were of each kind.
        wrong: what was answered otherwise, or not at all.
    """

    def __init__(self, url: URL, *workers: Service) -> None:
        """Take the database, to fill it before and to look into it afterwards, and the workers to begin with."""
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._url = url
        self._ages: dict[int, int] = {}  # of the heroes that must be there, by their ids
        self._ports = [worker.port for worker in workers]
        self._turns = itertools.count()
        self._under_way: Counter[int] = Counter()
        self._over = False

    async def __aenter__(self) -> Self:
        """Start."""
        await asyncio.to_thread(execute, self._url, SEED)
        self._http = httpx.AsyncClient(timeout=PATIENCE)
        self._clients = [asyncio.create_task(self._be_a_client(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop after the heroes that the clients are at."""
        self._over = True
        await asyncio.gather(*self._clients)
        await self._http.aclose()

    async def goes_on(self) -> None:
        """Wait until the clients have been through all kinds of requests, some four times each."""
        enough = self.answers.total() + 25 * CLIENTS

        async def has_gone_on() -> bool:
            return self.answers.total() >= enough

        await until(has_gone_on)

    async def leave_out(self, worker: Service) -> None:
        """Give a worker nothing more to do, and wait until it has answered."""

        async def has_answered() -> bool:
            return not self._under_way[worker.port]

        self._ports.remove(worker.port)
        await until(has_answered)

    async def take_in(self, worker: Service) -> None:
        """Wait until a worker is ready, and give it its share."""

        async def is_ready() -> bool:
            return (await self._http.get(f"http://127.0.0.1:{worker.port}/readyz")).status_code == 200

        await until(is_ready)
        self._ports.append(worker.port)

    def assert_nothing_failed_or_got_lost(self) -> None:
        """Look, after the load, at what was answered and at what is in the database."""
        assert not self.wrong, f"{len(self.wrong)} of {self.answers}: {self.wrong[:10]}"
        assert self.answers.total() > 300
        assert min(self.answers[kind] for kind in ("POST", "GET", "GET all", "PATCH", "DELETE")) > 20
        rows = on(self._url, lambda connection: connection.execute(WRITTEN).all())
        assert dict(rows) == self._ages

    async def _be_a_client(self, number: int) -> None:
        for age in itertools.count():
            if self._over:
                return
            hero = {"name": f"hero of client {number}", "age": age}
            created = await self._ask("POST", "/heroes/", {**hero, "secret_name": "Dive Wilson"}, expected=hero)
            if created is None:
                continue
            path, hero["id"] = f"/heroes/{created['id']}", created["id"]
            await self._ask("GET", path, expected=hero)
            hero["age"] = age + 1
            await self._ask("PATCH", path, {"age": age + 1}, expected=hero)
            await self._ask("GET", path, expected=hero)
            await self._ask("GET all", "/heroes/", expected=list(range(1, 101)))
            if age % 2:
                await self._ask("DELETE", path, expected={"ok": True})
            else:
                self._ages[created["id"]] = age + 1

    async def _ask(self, kind: str, path: str, body: object = None, *, expected: object) -> Any:
        await asyncio.sleep(PAUSE)
        port = self._ports[next(self._turns) % len(self._ports)]
        self._under_way[port] += 1
        try:
            response = await self._http.request(kind.removesuffix(" all"), f"http://127.0.0.1:{port}{path}", json=body)
        except httpx.TransportError as error:
            self.wrong.append(f"{kind} {path}: {error!r}")
            return None
        finally:
            self._under_way[port] -= 1
            self.answers[kind] += 1
        if response.status_code == 200 and is_as_expected(told := response.json(), expected):
            return told
        self.wrong.append(f"{kind} {path}: {response.status_code} {response.text[:200]}")
        return None


def is_as_expected(told: Any, expected: object) -> bool:
    """Compare the ids of a list, or what an object must have: a newer release may tell more."""
    if isinstance(expected, list):
        return [hero["id"] for hero in told] == expected
    return isinstance(expected, dict) and expected.items() <= told.items()
