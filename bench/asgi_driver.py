"""Drives the ASGI app of whichever tree PYTHONPATH names, without sockets. `bench.inprocess` starts this.

Each line on standard input is an operation, a number of requests and a number of clients that share them; the reply is
a line with the CPU seconds per request.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvloop
from starlette.types import Message, Scope

from app.main import app

HEROES = 10_000  # as bench.databases and load.lua have them; bench itself can't be imported beside an older tree
STRIDE = 7919
BODIES = {
    "post": '{{"name": "Hero number {0}", "age": {1}, "secret_name": "Secret number {0}"}}',
    "patch": '{{"age": {1}}}',
}


def build(operation: str, number: int, state: dict[str, Any]) -> tuple[Scope, Message]:
    """Build one request as uvicorn would."""
    hero_id = number * STRIDE % HEROES + 1
    path = f"/heroes/{hero_id}" if operation in {"get", "patch"} else "/heroes/"
    body = BODIES.get(operation, "").format(hero_id, hero_id * 7 % 100).encode()
    headers = [(b"host", b"127.0.0.1:8000")]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": {"post": "POST", "patch": "PATCH"}.get(operation, "GET"),
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"limit=100" if operation == "list" else b"",
        "headers": headers,
        "state": dict(state),
    }
    return scope, {"type": "http.request", "body": body, "more_body": False}


async def run_client(requests: Iterator[tuple[Scope, Message]]) -> None:
    """Send requests one after the other until none is left.

    Raises:
        RuntimeError: a response is not 200.
    """
    for scope, message in requests:

        async def receive(message: Message = message) -> Message:
            return message

        async def send(message: Message) -> None:
            if message.get("status", 200) != 200:
                raise RuntimeError(f"the response has status {message['status']}")

        await app(scope, receive, send)


async def main() -> None:
    """Serve commands until standard input ends."""
    async with app.router.lifespan_context(app) as state:
        for line in sys.stdin:
            operation, requests, clients = line.split()
            built = [build(operation, number, dict(state or {})) for number in range(int(requests))]
            pending = iter(built)
            started = time.process_time()
            await asyncio.gather(*(run_client(pending) for _ in range(int(clients))))
            print((time.process_time() - started) / len(built), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
