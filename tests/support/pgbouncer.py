"""PgBouncer in front of a Postgres server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from tests.support.polling import wait_until
from tests.support.processes import ROOT, TIMEOUT, free_port

UNPACKED = ROOT / ".pgbouncer"
ADDRESS = {"host", "port"}


def find_pgbouncer() -> str:
    """Find what TEST_PGBOUNCER names, the executable of the system, or the one that `make test-pooler` unpacked."""
    folders = (os.environ["PATH"], "/usr/sbin", str(UNPACKED / "usr/sbin"))
    found = os.environ.get("TEST_PGBOUNCER") or shutil.which("pgbouncer", path=os.pathsep.join(folders))
    assert found, "PgBouncer is missing: run make test-pooler, which downloads it"
    return found


@contextmanager
def pgbouncer(server: URL, port: int | None = None, **settings: str) -> Iterator[URL]:
    """Run PgBouncer for a block, and yield a URL of the server through it.

    Args:
        server: its URL.
        port: the port that PgBouncer listens on; by default any that is free.
        settings: of PgBouncer, beside a pool of four connections for each database, in transaction mode.
    """
    port = port or free_port()
    host = server.host or str(server.query["host"])
    target = {"host": host, "port": server.port or server.query.get("port", 5432), "user": server.username}
    if server.password:
        target["password"] = server.password
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": 4,
        "max_client_conn": 500,
        **settings,
    }
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder:
        log, file = Path(folder, "log"), Path(folder, "pgbouncer.ini")
        lines = (
            "[databases]",
            "* = " + " ".join(f"{name}={value}" for name, value in target.items()),
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in options.items()),
        )
        file.write_text("\n".join(lines))
        command = [find_pgbouncer(), str(file)]
        if os.getuid() == 0:  # which it refuses to run as
            user = Path(host).owner() if host.startswith("/") else "nobody"
            shutil.chown(folder, user)
            command[1:1] = ["-u", user]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, UNPACKED.glob("usr/lib/*")))},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(lambda: "process up" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            query = {name: value for name, value in server.query.items() if name not in ADDRESS}
            yield server.set(host="127.0.0.1", port=port, query=query)
        finally:
            process.kill()
            process.wait(TIMEOUT)
