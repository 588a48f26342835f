"""Measures what slow readers of the export cost other requests, and what batches save.

- A hundred readers take the export at 1 KB/s from a service with a pool of five: how does the 99th percentile of GET
  one change, relative to the same load without them, in the same round?
- Heroes per second by batches of a thousand, relative to single POSTs, with wrk.

    .venv-bench/bin/python -m bench.export
"""

import asyncio
import logging
import socket
import statistics
import time

import httpx
import psutil

from bench.databases import DATABASES, temporary_folder
from bench.load import run_wrk
from bench.servers import CONTENDERS, OURS, Server

READERS = 100
SECONDS = 10.0
CLIENTS = 8
ROUNDS = 3
POOL_SIZE = 5


def measure_batches(server: Server) -> None:
    """Print the rate of heroes added in batches and one by one, with as many clients."""
    rates: dict[str, list[float]] = {"post": [], "batch": []}
    for _ in range(ROUNDS):
        for operation, measured in rates.items():
            load = run_wrk(server.port, operation, connections=CLIENTS, seconds=5)
            if load.errors:
                raise RuntimeError(f"{load.errors} requests failed")
            measured.append(load.throughput)
    ratio = statistics.median(1000 * batch / post for post, batch in zip(*rates.values(), strict=True))
    single, batches = (statistics.median(measured) for measured in rates.values())
    print(f"POST: {single:.0f} heroes/s; in batches of 1000: {1000 * batches:.0f} heroes/s, {ratio:.0f} times as many")


async def read_slowly(port: int) -> None:
    """Read the export at 1 KB/s."""
    slow = socket.create_connection(("127.0.0.1", port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the kernel buffers little
    reader, writer = await asyncio.open_connection(sock=slow, limit=1024)
    writer.write(b"GET /heroes/export HTTP/1.1\r\nHost: heroes\r\n\r\n")
    try:
        while await reader.read(1024):  # noqa: ASYNC110 - it paces itself by time, no event would tell it
            await asyncio.sleep(1)
    finally:
        writer.close()


async def get_one(server: Server) -> tuple[float, float]:
    """Get one hero repeatedly, and return the median and the 99th percentile of the latency in ms."""
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def get(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            (await client.get("/heroes/7")).raise_for_status()
            latencies.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)  # a load that leaves one core for the load generator

    async with httpx.AsyncClient(base_url=server.client.base_url) as client:
        await asyncio.gather(*(get(client) for _ in range(CLIENTS)))
    return statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]


async def measure_readers(server: Server) -> None:
    """Print the percentiles without readers, while the kernel's buffers for them fill, and with slow readers."""
    process = psutil.Process(server.pid)
    rounds: list[list[tuple[float, float]]] = []
    for _ in range(ROUNDS):
        alone = await get_one(server)
        readers = [asyncio.create_task(read_slowly(server.port)) for _ in range(READERS)]
        filling = await get_one(server)
        process.cpu_percent()
        await asyncio.sleep(2)
        while process.cpu_percent() > 10:  # noqa: ASYNC110 - another process, which sends no event
            await asyncio.sleep(2)
        beside = await get_one(server)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        rounds.append([alone, filling, beside])
    for name, latencies in zip(
        ("alone", f"with {READERS} readers, starting", f"with {READERS} readers, steady"),
        zip(*rounds, strict=True),
        strict=True,
    ):
        ratio = statistics.median(each[1] / alone[1] for each, (alone, *_) in zip(latencies, rounds, strict=True))
        p50, p99 = (statistics.median(each) for each in zip(*latencies, strict=True))
        print(f"GET one {name:28} p50 {p50:.2f} ms, p99 {p99:.2f} ms, {ratio:.2f} relative to alone")


def measure_memory(server: Server) -> None:
    """Print what a whole export adds to the memory of the process."""
    with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
        for _ in range(2):
            before, peak, lines = server.memory(), 0, 0
            with client.stream("GET", "/heroes/export") as response:
                for chunk in response.iter_bytes():
                    lines += chunk.count(b"\n")
                    peak = max(peak, server.memory())
        print(f"an export of {lines:,} heroes adds {(peak - before) / 1e6:.1f} MB to {before / 1e6:.0f} MB")


def main() -> None:
    """Measure on both databases."""
    logging.disable(logging.INFO)  # Alembic logs each revision
    with temporary_folder() as folder:
        for name, create in DATABASES.items():
            settings = {"POOL_SIZE": str(POOL_SIZE)}
            with create(folder) as database, Server(CONTENDERS[OURS], database, folder, settings) as server:
                print(f"\n{name}")
                measure_batches(server)
                measure_memory(server)
                asyncio.run(measure_readers(server))


if __name__ == "__main__":
    main()
