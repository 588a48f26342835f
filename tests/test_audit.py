"""`make audit` and `make sbom`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.processes import BIN, ROOT, run

pytestmark = pytest.mark.slow

ADVISORY = {
    "id": "PYSEC-0000-1",
    "summary": "An example.",
    "affected": [{"package": {"ecosystem": "PyPI", "name": "starlette"}, "versions": [], "ranges": []}],
}


@contextmanager
def advisories(found: dict[str, list[dict[str, Any]]], status: int = 200) -> Iterator[str]:
    """Serve advisories by the names of packages, as OSV does, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vulnerabilities = found.get(query["package"]["name"])
            body = json.dumps({"vulns": vulnerabilities} if vulnerabilities else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def make(*target: str, **changes: str) -> tuple[int, str]:
    """Run a target, and return its exit code and its output."""
    # -o: use the current virtual environment even if it is older than the lock file.
    result = run("make", "-o", ".venv/installed", f"BIN={BIN}", *target, changes=changes)
    return result.returncode, result.stdout


def audit(address: str) -> tuple[int, str]:
    return make("audit", PIP_AUDIT_VULNERABILITY_SERVICE="osv", PIP_AUDIT_OSV_URL=address)


def test_an_audit_succeeds_when_nothing_is_known_of_any_dependency() -> None:
    with advisories({}) as address:
        status, output = audit(address)
    assert status == 0, output
    assert "No known vulnerabilities found" in output


@pytest.mark.parametrize("package", ["starlette", "ruff"], ids=["of the service", "of its development"])
def test_an_audit_fails_for_a_vulnerable_dependency(package: str) -> None:
    with advisories({package: [ADVISORY]}) as address:
        status, output = audit(address)
    assert status != 0
    assert "Found 1 known vulnerability in 1 package" in output
    assert package in output


def test_an_audit_fails_when_its_source_does_not_answer() -> None:
    with advisories({}, status=503) as address:
        status, output = audit(address)
    assert status != 0, output
    assert "No known vulnerabilities" not in output


def test_the_sbom_has_every_locked_dependency_with_its_version_and_hashes(tmp_path: Path) -> None:
    status, output = make("sbom", f"SBOM={tmp_path / 'sbom.json'}")
    assert status == 0, output
    components = json.loads((tmp_path / "sbom.json").read_text())["components"]
    locked = re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {(component["name"], component["version"]) for component in components} == set(locked)
    for component in components:
        assert any(reference.get("hashes") for reference in component["externalReferences"])
