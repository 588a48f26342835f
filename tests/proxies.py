"""nginx, on the very file that the documentation has."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.processes import PATIENCE, ROOT, free_port

CONFIGURATION = ROOT / "docs/nginx.conf"
TEMPORARY = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def nginx() -> str:
    """Find it where the system has it, or where `make test-proxy` has put it."""
    places = (os.environ["PATH"], "/usr/sbin", str(ROOT / ".nginx/usr/sbin"))
    found = shutil.which("nginx", path=os.pathsep.join(places))
    assert found, "there is no nginx: run make test-proxy, which gets it"
    return found


@contextmanager
def proxy(*services: int, changes: Mapping[str, str] | None = None) -> Iterator[int]:
    """Put nginx in front of the services on these ports, and yield its own port.

    Args:
        services: where they listen.
        changes: what else the file shall have, by what it has: shorter times, mostly.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else, if this is root
        text = CONFIGURATION.read_text()
        replacements = {
            "listen 80;": f"listen 127.0.0.1:{port};",
            "server 127.0.0.1:8000;": "".join(f"server 127.0.0.1:{service};" for service in services),
            "/run/": f"{folder}/",
            "error_log /var/log/nginx/": f"error_log {folder}/",
            "access_log /var/log/nginx/": f"access_log {folder}/",
            "http {": f"http {{ {TEMPORARY}",
            **(changes or {}),
        }
        for old, new in replacements.items():
            assert text.count(old) == 1, f"{CONFIGURATION} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        file = Path(folder, "nginx.conf")
        file.write_text(text)
        process = subprocess.Popen(
            (nginx(), "-p", folder, "-c", file, "-g", "daemon off;"), stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until_listening(process, port, Path(folder, "error.log"))
            yield port
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when connections are taken."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nginx does not listen")
