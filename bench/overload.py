"""Measures the service under overload: limited by the database, and limited by the CPU.

    .venv-bench/bin/python -m bench.overload --help

The load generator is an open loop: requests are sent on schedule, whether or not earlier ones have responses, and
latency counts from the scheduled time. Loads are multiples of the capacity, which is the throughput that wrk measures
on the same server before.
"""

import argparse
import asyncio
import json
import os
import platform
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

from bench.charts import plot_overload
from bench.databases import Database, postgres, temporary_folder
from bench.load import raise_file_limit, run_wrk
from bench.servers import CONTENDERS, OURS, Server

QUEUE_SIZE = 200  # less than half a second of work for a database that runs 500 statements per second
STATEMENT = 0.02  # seconds that each INSERT takes on the slow database
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
NO_STATUS = 0  # where the connection broke
TICK = 0.002  # seconds between checks of the schedule
RECOVERY = 3  # seconds after a burst, under a load below capacity
RECOVERY_FACTOR = 0.5


@dataclass(frozen=True)
class Response:
    """One response: the scheduled time of its request, its latency in seconds, and its status."""

    due: float
    latency: float
    status: int


@dataclass(frozen=True)
class Curve:
    """The results of each load, from the smallest to the largest. Rates are per second, times in seconds."""

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
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, generator: "LoadGenerator", due: float) -> None:
        """Send the first request as soon as the connection is open."""
        self._generator = generator
        self._due = due
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self.send(self._due)

    def send(self, due: float) -> None:
        """Send a request."""
        self._due = due
        self._transport.write(self._generator.request)

    def data_received(self, data: bytes) -> None:
        """Parse a part of a response."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Record the response, and become free for the next request."""
        self._generator.record(self._due, self._parser.get_status_code())
        self._parser = httptools.HttpResponseParser(self)
        self._generator.free.append(self)

    def close(self) -> None:
        """Close it."""
        self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Record a request without a response, if one was in flight."""
        if self in self._generator.free:
            self._generator.free.remove(self)
        else:
            self._generator.record(self._due, NO_STATUS)


class LoadGenerator:
    """Sends requests on schedule, each on a connection that is free or on a new one."""

    def __init__(self, port: int, request: bytes) -> None:
        """Send this request to the server on that port."""
        self.port = port
        self.request = request
        self.free: list[Connection] = []
        self.responses: list[Response] = []
        self.sent = 0

    def record(self, due: float, status: int) -> None:
        """Record a response that has just ended."""
        self.responses.append(Response(due, time.monotonic() - due, status))

    async def send(self, rate: float, seconds: float) -> float:
        """Send requests at a rate per second, and return the time of the end."""
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

    async def drain(self) -> None:
        """Wait for the last responses, and close all connections."""
        while len(self.responses) < self.sent:  # noqa: ASYNC110 - an event for each response would cost more
            await asyncio.sleep(TICK)
        for connection in [*self.free]:
            connection.close()


def main() -> None:
    """Measure, print and plot both curves."""
    parser = argparse.ArgumentParser(description="Measure the service under overload.")
    parser.add_argument("--seconds", type=int, default=5, help="per load")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    options = parser.parse_args()
    raise_file_limit()
    with temporary_folder() as folder, postgres(folder) as database:
        database.reset()
        by_cpu = measure(database, folder, "get", (0.5, 1, 1.25, 1.5, 2), options.seconds)
        with create_engine(database.url).begin() as connection:
            for statement in SLOW:
                connection.execute(text(statement))
        by_database = measure(database, folder, "post", (0.5, 1, 1.5, 2, 3, 5, 7, 10), options.seconds)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "queue_size": QUEUE_SIZE,
        "curves": [asdict(by_database), asdict(by_cpu)],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "overload.json").write_text(json.dumps(document, indent=1) + "\n")
    plot_overload(by_database, by_cpu, options.results / "overload.svg")


def measure(database: Database, folder: Path, operation: str, factors: Sequence[float], seconds: int) -> Curve:
    """Measure one curve."""
    with Server(CONTENDERS[OURS], database, folder, {"QUEUE_SIZE": str(QUEUE_SIZE)}) as server:
        run_wrk(server.port, operation, connections=64, seconds=1)
        load = run_wrk(server.port, operation, connections=64, seconds=seconds)
        curve = Curve(operation, load.throughput, factors)
        print(f"{operation}: capacity {curve.capacity:.0f}/s")
        for factor in factors:
            server.wait_until_idle()
            uvloop.run(burst(server.port, curve, factor, seconds))
    return curve


async def burst(port: int, curve: Curve, factor: float, seconds: int) -> None:
    """Add the results of one load to the curve."""
    generator = LoadGenerator(port, REQUESTS[curve.operation])
    ended = await generator.send(curve.capacity * factor, seconds)
    await generator.send(curve.capacity * RECOVERY_FACTOR, RECOVERY)
    await generator.drain()
    began = ended - seconds
    steady = [response for response in generator.responses if began + 1 <= response.due + response.latency < ended]
    served = [response.latency for response in steady if response.status == 200]
    refused = [response.latency for response in steady if response.status == 503]
    after = [response for response in generator.responses if response.due >= ended]
    normal = max(response.latency for response in after if response.due > ended + RECOVERY - 1)
    disturbed = [response.due for response in after if response.status != 200 or response.latency > 2 * normal]
    curve.served.append(len(served) / (seconds - 1))
    curve.served_p50.append(percentile(served, 50))
    curve.served_p99.append(percentile(served, 99))
    curve.refused.append(len(refused) / (seconds - 1))
    curve.refused_p50.append(percentile(refused, 50) if refused else None)
    curve.refused_p99.append(percentile(refused, 99) if refused else None)
    curve.recovery.append(max(disturbed, default=ended) - ended)
    curve.others.append(sum(response.status not in {200, 503} for response in generator.responses))
    print(
        f"{factor:4}x: {curve.served[-1]:5.0f}/s served, p50 {curve.served_p50[-1] * 1e3:4.0f} ms,"
        f" p99 {curve.served_p99[-1] * 1e3:4.0f} ms; {curve.refused[-1]:5.0f}/s refused,"
        f" p99 {(curve.refused_p99[-1] or 0) * 1e3:3.0f} ms; recovered after {curve.recovery[-1]:.2f} s;"
        f" {curve.others[-1]} other responses"
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, or the only value."""
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


if __name__ == "__main__":
    main()
