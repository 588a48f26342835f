"""Latencies of each operation on two tables of different sizes, by one client that alternates between them.

A page in the middle begins after a hero chosen at random, and the last page a hundred rows before the end. Their
cursors are made here, because to walk to them would take a request for each hundred heroes.
"""

import json
import random
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlencode

from app.cursors import Position, encode, fingerprint
from app.inputs import INT64
from bench.loading import FREQUENT_NAME, generate_hero
from bench.servers import Server

SORTS = ("id", "-id", "name", "-name", "age", "-age")
DELETED = 5  # one id in so many is only there to be deleted
CHUNK = 1000  # lines of the first chunk of an export
RECEIVE_BUFFER = 4096  # bytes, so that an export that is not read is not sent either


class Request(NamedTuple):
    """A request to measure."""

    method: str
    path: str
    body: object = None


class Latency(NamedTuple):
    """The median and the 99th percentile, in ms."""

    p50: float
    p99: float


class Table:
    """A service whose table has heroes with the ids from 1, and a connection to it."""

    def __init__(self, server: Server, heroes: int) -> None:
        """Connect when needed."""
        self.port, self.heroes = server.port, heroes
        self._random = random.Random(1)  # noqa: S311 - repeatable, not a secret
        self._connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._to_delete = iter(self._random.sample(range(DELETED, heroes, DELETED), heroes // DELETED - 1))
        self._created = heroes

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def any_id(self) -> int:
        """Choose a hero that is not deleted."""
        hero_id = self._random.randrange(1, self.heroes)
        return hero_id if hero_id % DELETED else hero_id - 1

    def next_deleted(self) -> int:
        """Choose the next hero to delete."""
        return next(self._to_delete)

    def new_hero(self) -> dict[str, Any]:
        """Generate another hero."""
        self._created += 1
        return generate_hero(self._created, self._random)

    def get(self, path: str) -> Any:
        """Send a GET that is not measured."""
        return json.loads(self.send(Request("GET", path))[0])

    def send(self, request: Request) -> tuple[bytes, float]:
        """Send a request, and return the content of the response and the latency in ms.

        Raises:
            RuntimeError: it has failed.
        """
        body = None if request.body is None else json.dumps(request.body).encode()
        started = time.perf_counter()
        self._connection.request(request.method, request.path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        elapsed = (time.perf_counter() - started) * 1000
        if response.status != 200:
            raise RuntimeError(f"{request.method} {request.path} got {response.status}: {content[:200]!r}")
        return content, elapsed

    def first_chunk(self) -> float:
        """Read the first chunk of an export on a new connection, and return the latency in ms."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        connection.sock.connect(("127.0.0.1", self.port))
        started = time.perf_counter()
        connection.request("GET", "/heroes/export")
        response = connection.getresponse()
        lines = 0
        while lines < CHUNK and (data := response.read1()):
            lines += data.count(b"\n")
        elapsed = (time.perf_counter() - started) * 1000
        response.close()
        connection.close()
        return elapsed


Measure = Callable[[Table], float]


def request(build: Callable[[Table], Request]) -> Measure:
    """Measure a request, without the time to build it."""
    return lambda table: table.send(build(table))[1]


def page(sort: str, after: Position | None = None) -> str:
    """Return the path of a page."""
    query = {"sort": sort}
    if after:
        query["cursor"] = encode(after, fingerprint(sort, {}))
    return f"/heroes/?{urlencode(query)}"


def middle_page(sort: str) -> Measure:
    """Measure a page after any hero."""

    def build(table: Table) -> Request:
        hero = table.get(f"/heroes/{table.any_id()}")
        return Request("GET", page(sort, Position(hero[sort.removeprefix("-")], hero["id"])))

    return request(build)


def last_page(sort: str) -> Measure:
    """Measure the page after the hero that is the hundredth from the end: the hundredth in the opposite order."""
    column, descending = sort.removeprefix("-"), sort.startswith("-")
    # Missing ages are last in both orders.
    start = Position(None, 0 if descending else INT64) if column == "age" else None

    def build(table: Table) -> Request:
        hero = table.get(page(column if descending else f"-{column}", start))[-1]
        return Request("GET", page(sort, Position(hero[column], hero["id"])))

    return request(build)


def get_page(sort: str, **parameters: object) -> Measure:
    """Measure the first page of a list."""
    path = f"/heroes/?{urlencode({'sort': sort, **parameters})}"
    return request(lambda _: Request("GET", path))


def one_name(table: Table) -> Request:
    """List the heroes with the name of any hero whose name is unique."""
    while not (name := table.get(f"/heroes/{table.any_id()}")["name"])[-1].isdigit():
        pass
    return Request("GET", f"/heroes/?{urlencode({'name': name})}")


OPERATIONS: dict[str, Measure] = {
    "GET one": request(lambda table: Request("GET", f"/heroes/{table.any_id()}")),
    **{f"sort={sort}, first page": get_page(sort) for sort in SORTS},
    **{f"sort={sort}, in the middle": middle_page(sort) for sort in SORTS},
    **{f"sort={sort}, last page": last_page(sort) for sort in SORTS},
    "a unique name": request(one_name),
    "a frequent name": get_page("id", name=FREQUENT_NAME),
    "a frequent name, sort=-age": get_page("-age", name=FREQUENT_NAME),
    "ages 30 to 40, sort=-age": get_page("-age", min_age=30, max_age=40),
    "POST": request(lambda table: Request("POST", "/heroes/", table.new_hero())),
    "PATCH": request(lambda table: Request("PATCH", f"/heroes/{table.any_id()}", {"age": table.heroes % 97})),
    "DELETE": request(lambda table: Request("DELETE", f"/heroes/{table.next_deleted()}")),
    "export, first chunk": Table.first_chunk,
}
# Apart and with fewer requests, because it makes the small table grow.
BATCH: dict[str, Measure] = {
    "batch of 100": request(lambda table: Request("POST", "/heroes/batch", [table.new_hero() for _ in range(100)]))
}
# These read as many rows as match or are skipped, so their time grows with the table: docs/http.md says so.
LINEAR: dict[str, Measure] = {
    "count=exact": get_page("id", limit=1, count="exact"),
    "count=exact, a frequent name": get_page("id", name=FREQUENT_NAME, limit=1, count="exact"),
    "offset of half the heroes": request(lambda table: Request("GET", f"/heroes/?offset={table.heroes // 2}")),
    "ages 30 to 40": get_page("id", min_age=30, max_age=40),
    "ages from 95": get_page("id", min_age=95),
    "ages from 18, sort=name": get_page("name", min_age=18),
}


def measure(
    operations: Mapping[str, Measure], tables: tuple[Table, Table], rounds: int, requests: int
) -> Iterator[tuple[str, tuple[Latency, Latency]]]:
    """Measure each operation on both tables in short rounds, so that what disturbs one of them disturbs the other.

    Yields:
        The name of each operation, and its latency on either table.
    """
    measured: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for number in range(rounds + 1):
        for name, operation in operations.items():
            for side in (0, 1) if number % 2 else (1, 0):
                latencies = [operation(tables[side]) for _ in range(requests)]
                if number:  # the first round warms up
                    measured[name][side].extend(latencies)
    for name, (few, many) in measured.items():
        yield name, (summarize(few), summarize(many))


def summarize(latencies: list[float]) -> Latency:
    """Return the median and the 99th percentile."""
    return Latency(statistics.median(latencies), statistics.quantiles(latencies, n=100, method="inclusive")[98])
