"""A TCP relay in front of a Postgres, whose connections can fall silent: nothing passes, and nothing is closed."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import URL

from tests.support.processes import TIMEOUT, free_port


class Relay:
    """A relay that runs in a thread.

    Attributes:
        url: of the database, through the relay.
        passes_new: whether connections that are opened from now on pass.
        accepted: how many were opened.
        withheld: the silent connections that something was sent on.
        started: set once connections are accepted.
    """

    def __init__(self, url: URL) -> None:
        self.port = free_port()
        query = {name: value for name, value in url.query.items() if name not in {"host", "port"}}
        self.url = url.set(host="127.0.0.1", port=self.port, query=query)
        self.passes_new = True
        self.accepted = 0
        self.withheld: set[asyncio.Event] = set()
        self.started = threading.Event()
        self._upstream = url
        self._open: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def silence(self, *, new_too: bool = False) -> None:
        """Let the open connections fall silent for ever, and new ones too until `passes_new` is set."""
        self.passes_new = not new_too
        for silenced in self._open:
            silenced.set()

    def stop(self) -> None:
        """Let `serve` return."""
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def serve(self) -> None:
        """Accept connections until `stop` is called."""
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._relay, "127.0.0.1", self.port):
            self.started.set()
            await self._stopped.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        silenced = asyncio.Event()
        if not self.passes_new:
            silenced.set()
        self._open.add(silenced)
        task = asyncio.create_task(self._pass_on(reader, writer, silenced))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event
    ) -> None:
        upstream_reader, upstream_writer = await self._connect()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream_writer, silenced))
                group.create_task(self._pump(upstream_reader, writer, silenced))
        finally:
            for each in (writer, upstream_writer):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event) -> None:
        """Pass on what is read, and the end of it, until the connection is silenced."""
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if silenced.is_set():
                    self.withheld.add(silenced)
                else:
                    writer.write(data)
                    await writer.drain()
        if not silenced.is_set():
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = int(str(self._upstream.query.get("port", self._upstream.port or 5432)))
        host = self._upstream.host or str(self._upstream.query["host"])
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)


@contextmanager
def relay(url: URL) -> Iterator[Relay]:
    """Run a relay to a Postgres for a block."""
    opened = Relay(url)
    thread = threading.Thread(target=asyncio.run, args=(opened.serve(),), daemon=True)
    thread.start()
    assert opened.started.wait(TIMEOUT)
    try:
        yield opened
    finally:
        opened.stop()
        thread.join(TIMEOUT)
