"""What happens when more is asked than can be done: of the database, and of the processor.

    .venv-bench/bin/python -m bench.overload --help

Requests are sent at their times, whether or not earlier ones are answered, and each is timed from the moment when it
was due. The capacity, of which the load is a multiple, is what wrk gets from the same server before.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, cast

import httptools
import uvloop
from sqlalchemy import create_engine, text

from bench.databases import Database, postgres
from bench.drawing import draw_overload
from bench.load import allow_connections, drive
from bench.servers import OURS, Server

QUEUE_SIZE = 200  # less than half a second of work for a database that does 500 statements a second
STATEMENT = 0.02  # seconds that each INSERT takes when the database is made slow
SLOW = (
    (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
        f" AS 'BEGIN PERFORM pg_sleep({STATEMENT}); RETURN NEW; END'"
    ),
    "CREATE TRIGGER slow BEFORE INSERT ON hero FOR EACH ROW EXECUTE FUNCTION slow()",
)
BODY = b'{"name": "Deadpond", "secret_name": "Dive Wilson"}'
HEAD = "Host: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
REQUESTS = {
    "post": f"POST /heroes/ HTTP/1.1\r\n{HEAD.format(len(BODY))}".encode() + BODY,
    "get": b"GET /heroes/1 HTTP/1.1\r\nHost: x\r\n\r\n",
}
LOST = 0  # in place of a status, where the connection broke
TICK = 0.002  # seconds between two looks at what is due
RECOVERY = 3  # seconds that the service is watched after a burst, under half of what it can do
CALM = 0.5


@dataclass(frozen=True)
class Answer:
    """One answer: when its request was due, how long it took from then on (in seconds), and its status."""

    due: float
    took: float
    status: int


@dataclass(frozen=True)
class Curve:
    """What came of each load, from the smallest to the largest. Rates are per second, times in seconds."""

    operation: str
    capacity: float
    factors: Sequence[float]
    served: list[float] = field(default_factory=list)
    served_p50: list[float] = field(default_factory=list)
    served_p99: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    refused_p50: list[float | None] = field(default_factory=list)
    refused_p99: list[float | None] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    others: list[int] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """A connection that is kept, with at most one request under way."""

    def __init__(self, crowd: "Crowd", due: float) -> None:
        """Belong to a crowd, and send the first request when there is a connection."""
        self._crowd = crowd
        self._due = due
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self.send(self._due)

    def send(self, due: float) -> None:
        """Send a request."""
        self._due = due
        self._transport.write(self._crowd.request)

    def data_received(self, data: bytes) -> None:
        """Read what has come of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Note the answer, and be free for the next request."""
        took = time.monotonic() - self._due
        self._crowd.answers.append(Answer(self._due, took, self._parser.get_status_code()))
        self._parser = httptools.HttpResponseParser(self)
        self._crowd.free.append(self)

    def close(self) -> None:
        """Close it."""
        self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Note that a request stays without an answer, if one was under way."""
        if self in self._crowd.free:
            self._crowd.free.remove(self)
        else:
            self._crowd.answers.append(Answer(self._due, time.monotonic() - self._due, LOST))


class Crowd:
    """Clients that don't wait for one another."""

    def __init__(self, port: int, request: bytes) -> None:
        """Ask the server on that port."""
        self.port = port
        self.request = request
        self.free: list[Connection] = []
        self.answers: list[Answer] = []
        self.sent = 0

    async def ask(self, rate: float, seconds: float) -> float:
        """Send so many requests a second for so long, and return when that was over."""
        loop = asyncio.get_running_loop()
        opening: list[asyncio.Future[Any]] = []
        begun, sent = time.monotonic(), 0
        while (now := time.monotonic()) < begun + seconds:
            while begun + sent / rate <= now:
                due = begun + sent / rate
                sent += 1
                if self.free:
                    self.free.pop().send(due)
                else:
                    connect = loop.create_connection(partial(Connection, self, due), "127.0.0.1", self.port)
                    opening.append(asyncio.ensure_future(connect))
            await asyncio.sleep(TICK)
        self.sent += sent
        await asyncio.gather(*opening)
        return begun + seconds

    async def settle(self) -> None:
        """Wait for the last answers, and close all connections."""
        while len(self.answers) < self.sent:  # noqa: ASYNC110 - an event for each answer would cost more
            await asyncio.sleep(TICK)
        for connection in [*self.free]:
            connection.close()


def main() -> None:
    """Measure both curves, print and draw them."""
    parser = argparse.ArgumentParser(description="Ask for more than can be done.")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    options = parser.parse_args()
    allow_connections()
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        postgres(Path(folder)) as database,
    ):
        database.reset()
        by_processor = measure(database, Path(folder), "get", (0.5, 1, 1.25, 1.5, 2), options.seconds)
        with create_engine(database.url).begin() as connection:
            for statement in SLOW:
                connection.execute(text(statement))
        by_database = measure(database, Path(folder), "post", (0.5, 1, 1.5, 2, 3, 5, 7, 10), options.seconds)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "queue_size": QUEUE_SIZE,
        "curves": [asdict(by_database), asdict(by_processor)],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "overload.json").write_text(json.dumps(document, indent=1) + "\n")
    draw_overload(by_database, by_processor, options.results / "overload.svg")


def measure(database: Database, folder: Path, operation: str, factors: Sequence[float], seconds: int) -> Curve:
    """Measure one curve."""
    with Server(OURS, database, folder, {"QUEUE_SIZE": str(QUEUE_SIZE)}) as server:
        drive(server.port, operation, connections=64, seconds=1)
        load = drive(server.port, operation, connections=64, seconds=seconds)
        curve = Curve(operation, load.requests / load.seconds, factors)
        print(f"{operation}: capacity {curve.capacity:.0f}/s")
        for factor in factors:
            server.settle()
            uvloop.run(burst(server.port, curve, factor, seconds))
    return curve


async def burst(port: int, curve: Curve, factor: float, seconds: int) -> None:
    """Add one load to the curve."""
    crowd = Crowd(port, REQUESTS[curve.operation])
    ended = await crowd.ask(curve.capacity * factor, seconds)
    await crowd.ask(curve.capacity * CALM, RECOVERY)
    await crowd.settle()
    began = ended - seconds
    steady = [answer for answer in crowd.answers if began + 1 <= answer.due + answer.took < ended]
    served = [answer.took for answer in steady if answer.status == 200]
    refused = [answer.took for answer in steady if answer.status == 503]
    after = [answer for answer in crowd.answers if answer.due >= ended]
    normal = max(answer.took for answer in after if answer.due > ended + RECOVERY - 1)
    disturbed = [answer.due for answer in after if answer.status != 200 or answer.took > 2 * normal]
    curve.served.append(len(served) / (seconds - 1))
    curve.served_p50.append(percentile(served, 50))
    curve.served_p99.append(percentile(served, 99))
    curve.refused.append(len(refused) / (seconds - 1))
    curve.refused_p50.append(percentile(refused, 50) if refused else None)
    curve.refused_p99.append(percentile(refused, 99) if refused else None)
    curve.recovery.append(max(disturbed, default=ended) - ended)
    curve.others.append(sum(answer.status not in {200, 503} for answer in crowd.answers))
    print(
        f"{factor:4}x: {curve.served[-1]:5.0f}/s served, p50 {curve.served_p50[-1] * 1e3:4.0f} ms,"
        f" p99 {curve.served_p99[-1] * 1e3:4.0f} ms; {curve.refused[-1]:5.0f}/s refused,"
        f" p99 {(curve.refused_p99[-1] or 0) * 1e3:3.0f} ms; as before {curve.recovery[-1]:.2f} s after;"
        f" {curve.others[-1]} other answers"
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile."""
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


if __name__ == "__main__":
    main()
