"""nginx, configured by the documented file."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.polling import wait_until
from tests.support.processes import ROOT, TIMEOUT, free_port

CONFIGURATION = ROOT / "docs/nginx.conf"
TEMPORARY = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def find_nginx() -> str:
    """Find the executable of the system, or the one that `make test-proxy` unpacked."""
    folders = (os.environ["PATH"], "/usr/sbin", str(ROOT / ".nginx/usr/sbin"))
    found = shutil.which("nginx", path=os.pathsep.join(folders))
    assert found, "nginx is missing: run make test-proxy, which downloads it"
    return found


@contextmanager
def proxy(*services: int, changes: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run nginx in front of the services on these ports, and yield its own port.

    Args:
        services: the ports of the services.
        changes: replacements in the configuration, by the text they replace: shorter timeouts, mostly.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        Path(folder).chmod(0o755)  # the workers run as another user if this is root
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
            (find_nginx(), "-p", folder, "-c", file, "-g", "daemon off;"),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until_listening(process, port, Path(folder, "error.log"))
            yield port
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(TIMEOUT)


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when nginx accepts connections."""

    def accepts() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
        except ConnectionRefusedError:
            return False
        return True

    wait_until(accepts)
