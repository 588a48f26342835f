"""Measures for how long one hostile request keeps the others waiting, and what memory it takes.

    .venv-bench/bin/python -m bench.hostile

A second client sends cheap requests, one after the other, on a connection of its own. How long the event loop was
blocked is the longest of their latencies, minus the usual one. Other processes delay a response too, so the limits are
for the CPU time that the event loop has used between two responses, which is as long on a machine that is idle; the
latency is in parentheses. The least of several repetitions counts. The baseline, in the same run, is the line-by-line
port of the tutorial on uvicorn's own protocol. The exit status is 1 if the service exceeds a limit. It needs Linux.
"""

import argparse
import json
import logging
import math
import socket
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Event

from bench.databases import databases_for, temporary_folder
from bench.servers import CONTENDERS, OURS, Server
from bench.tables import row

BASELINE = "async_port"
PATIENCE = 30  # seconds; a server that does not respond for as long is restarted
SAMPLE = 0.002  # seconds between two readings of the memory
SETTLE = 0.3  # seconds before and after the request
LONG = 1.0  # seconds of CPU; what takes longer is not repeated
MEGABYTE = 1_000_000
MAX_VALUES = 200_000  # a little less than the service accepts

PROBE = b"GET /livez HTTP/1.1\r\nHost: heroes\r\n\r\n"  # 404 from the baseline, which is as cheap


@dataclass(frozen=True)
class Input:
    """A hostile request, and the seconds for which it may block the service."""

    name: str
    path: str
    head: bytes  # its further headers
    body: bytes
    limit: float

    def request(self, path: str) -> bytes:
        """Return what is sent to that path."""
        method = "POST" if self.body else "GET"
        start = f"{method} {path} HTTP/1.1\r\nHost: heroes\r\n".encode()
        return start + self.head + b"\r\n" + self.body


@dataclass(frozen=True)
class Measurement:
    """What one request did to a server: seconds of CPU and of blocking, bytes of memory, and the response."""

    cpu: float
    blocked: float
    before: int
    peak: int
    after: int
    response: str


def repeat(item: str, count: int) -> bytes:
    """Write an array that has an item several times."""
    return f"[{','.join([item] * count)}]".encode()


def fill(size: int, item: str) -> bytes:
    """Write an array of almost the size."""
    return repeat(item, (size - 2) // (len(item) + 1))


def heads() -> Iterator[tuple[str, bytes]]:
    """Yield headers with their names."""
    yield "3 cookies of 8,000 backslashes", (b'Cookie: a="' + b"\\" * 8_000 + b'"\r\n') * 3
    yield "a cookie of 100 KB of backslashes", b'Cookie: a="' + b"\\" * 100_000 + b'"\r\n'
    # 48 KB may pass, so these are the longest that reach the app.
    yield "a cookie of 45 KB of pairs", b"Cookie: " + b"a;" * 22_500 + b"\r\n"
    yield "45 KB of commas in If-None-Match", b"If-None-Match: " + b"," * 45_000 + b"\r\n"
    yield "45 KB of ETags in If-Match", b"If-Match: " + b'"1",' * 11_250 + b"\r\n"
    yield "45 KB of lines of 6 bytes", b"a: b\r\n" * 7_500
    yield "5 MB of commas in X-Forwarded-For", b"X-Forwarded-For: " + b"," * 5 * MEGABYTE + b"\r\n"
    yield "5 MB of lines of 6 bytes", b"a: b\r\n" * (5 * MEGABYTE // 6)


def bodies(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of about the size, or with as many values as are accepted, with their names."""
    names = min(MAX_VALUES // 4, size // 16)
    yield "arrays", fill(size, "[]")
    yield "nested objects", fill(min(size, MAX_VALUES // 9 * 14), '{"a":{"b":0}}')
    yield f"{names:,} names", json.dumps({f"{number:0{size // names - 7}}": 0 for number in range(names)}).encode()
    yield "integers of 4,300 digits", fill(size, "9" * 4_300)
    yield "fractions of 33 digits", fill(size, f"1.{'2345678901' * 3}23e-300")
    yield "a string of escapes", fill(size, '"' + "\\n" * (size // 2 - 10) + '"')
    yield "strings of quotes", fill(size, '"' + '\\"' * 100 + '"')


def json_head(length: int) -> bytes:
    """Write the headers of a body."""
    return b"Content-Type: application/json\r\nContent-Length: %d\r\n" % length


def inputs() -> Iterator[Input]:
    """Yield what is measured."""
    for name, head in heads():
        yield Input(f"head: {name}", "/heroes/1", head, b"", 0.06)
    yield Input("head: 45 KB of query parameters", f"/heroes/?{'a&' * 22_500}", b"", b"", 0.06)
    for size, path, limit in ((MEGABYTE, "/heroes/", 0.15), (8 * MEGABYTE, "/heroes/batch", 0.5)):
        for name, body in bodies(size):
            yield Input(f"{size // MEGABYTE} MB: {name}", path, json_head(len(body)), body, limit)
    for length, limit in ((0, 0.15), (7_900, 0.5)):
        hero = f'{{"name":"{"x" * length}","age":"x","secret_name":""}}'
        body = repeat(hero, 1_000)
        name = f"{len(body) / MEGABYTE:.2f} MB: 1,000 invalid heroes"
        yield Input(name, "/heroes/batch", json_head(len(body)), body, limit)
    chunks = b"1\r\n \r\n" * (MEGABYTE - 1) + b"0\r\n\r\n"
    chunked = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    yield Input("1 MB: chunks of a byte", "/heroes/", chunked, chunks, 0.15)


def send(port: int, request: bytes) -> str:
    """Send the request, and describe the response."""
    with closing(socket.create_connection(("127.0.0.1", port), PATIENCE)) as connection:
        with suppress(ConnectionError):  # the server has refused what it has read so far
            connection.sendall(request)
        try:
            with closing(HTTPResponse(connection)) as response:
                response.begin()
                return f"{response.status}, {len(response.read()):,} bytes"
        except (ConnectionError, HTTPException):
            return "closed"
        except TimeoutError:
            return "none"


def probe(server: Server, stop: Event) -> Iterator[tuple[float, float]]:
    """Send cheap requests until told to stop, and yield the latency of each and the CPU time of the event loop."""
    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) as connection:
        while not stop.is_set():
            started, used = time.perf_counter(), loop_time(server)
            connection.sendall(PROBE)
            try:
                connection.recv(4096)
            except TimeoutError:
                yield math.inf, math.inf
                return
            yield time.perf_counter() - started, loop_time(server) - used


def loop_time(server: Server) -> float:
    """Return the CPU seconds that the main thread has used: the event loop, without the threads of SQLite."""
    return int(Path(f"/proc/{server.pid}/schedstat").read_text().split()[0]) / 1e9


def measure(server: Server, request: bytes) -> Measurement:
    """Send a request beside the probes, and read the memory meanwhile."""
    stop = Event()
    with ThreadPoolExecutor() as threads:
        probing = threads.submit(lambda: list(probe(server, stop)))
        time.sleep(SETTLE)
        before = peak = server.memory()
        sending: Future[str] = threads.submit(send, server.port, request)
        while not sending.done():
            peak = max(peak, server.memory())
            time.sleep(SAMPLE)
        time.sleep(SETTLE)
        stop.set()
        blocked, cpu = (max(times) - statistics.median(times) for times in zip(*probing.result(), strict=True))
    return Measurement(cpu, blocked, before, peak, server.memory(), sending.result())


def measure_best(server: Server, request: bytes, repetitions: int) -> Measurement:
    """Measure several times, and return the least times and the largest growth of the memory."""
    found: list[Measurement] = []
    while len(found) < repetitions and not (found and found[-1].cpu > LONG):
        found.append(measure(server, request))
        if math.isinf(found[-1].blocked):
            server.stop()
            server.start()
    cpu, blocked = min(each.cpu for each in found), min(each.blocked for each in found)
    largest = max(found, key=lambda each: each.peak - each.before)
    return Measurement(cpu, blocked, largest.before, largest.peak, found[-1].after, found[0].response)


def milliseconds(measurement: Measurement) -> str:
    """Write the CPU time and the latency."""
    if math.isinf(measurement.blocked):
        return f"more than {PATIENCE:,} s"
    return f"{measurement.cpu * 1e3:,.0f} ({measurement.blocked * 1e3:,.0f})"


def megabytes(measurement: Measurement) -> str:
    """Write the memory before a request, at its peak, and after it."""
    return ", ".join(f"{size / MEGABYTE:.0f}" for size in (measurement.before, measurement.peak, measurement.after))


def compare(servers: dict[str, Server], measured: Iterable[Input], repetitions: int) -> Iterator[str]:
    """Print a line for each input and server, and yield the names of those that exceed their limits."""
    print(row("input", "limit, ms", "server", "blocked, ms", "response", "memory before, at its peak and after, MB"))
    print(row("---", "---:", "---", "---:", "---", "---:"))
    for each in measured:
        for name, server in servers.items():
            path = each.path if name == OURS or not each.body else "/heroes/"  # the baseline has no batches
            found = measure_best(server, each.request(path), repetitions)
            limit = f"{each.limit * 1e3:.0f}" if name == OURS else ""
            print(row(each.name, limit, name, milliseconds(found), found.response, megabytes(found)), flush=True)
            if name == OURS and found.cpu > each.limit:
                yield each.name


def main() -> None:
    """Measure on SQLite: what takes long here is not the database.

    Raises:
        SystemExit: the service exceeds a limit.
    """
    parser = argparse.ArgumentParser(description="Measure for how long hostile requests keep others waiting.")
    parser.add_argument("--repetitions", type=int, default=5, help="of each input (default: %(default)s)")
    parser.add_argument("--inputs", default="", help="only those whose name contains this")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # Alembic logs each revision
    measured = [each for each in inputs() if options.inputs in each.name]
    names = (OURS, BASELINE)
    with temporary_folder() as folder, databases_for(names, "sqlite", folder) as databases, ExitStack() as stack:
        for database in databases.values():
            database.reset()
        servers = {name: stack.enter_context(Server(CONTENDERS[name], databases[name], folder)) for name in names}
        exceeded = list(compare(servers, measured, options.repetitions))
    if exceeded:
        raise SystemExit(f"The service exceeds its limit: {'; '.join(exceeded)}")


if __name__ == "__main__":
    main()
