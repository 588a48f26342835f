"""Secret names and tokens appear in no response, no log and no telemetry."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from tests.support.heroes import DEADPOND
from tests.support.polling import wait_until
from tests.support.processes import free_port, render_url, server
from tests.support.sql import execute

MARK = "tvqzxkwj"
HERO = DEADPOND | {"secret_name": MARK}
LOG_EVERYTHING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(name)s %(levelname)s %(message)s"}},
    "handlers": {"stream": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"sqlalchemy": {"level": "DEBUG"}},
    "root": {"level": "DEBUG", "handlers": ["stream"]},
}
BODIES = [
    f'{{"name":"x","secret_name":"{MARK}"'.encode(),
    f'{{"name":"x","secret_name":"{MARK}","age":{"9" * 5_000}}}'.encode(),
    f'{{"secret_name":"{MARK}"}}'.encode(),
    f'["{MARK}"]'.encode(),
    f'"{MARK}"'.encode(),
    MARK.encode(),
    MARK.encode() + b"\xff",
    b"[" * 100_000 + MARK.encode(),
]


@pytest.fixture
def exported() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a telemetry collector, and the requests it received."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.path.encode() + self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing to standard error."""

    collector = ThreadingHTTPServer(("127.0.0.1", free_port()), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector.server_port, received
    collector.shutdown()
    collector.server_close()
    thread.join()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The server's log, with the root logger and SQLAlchemy's at DEBUG."""
    return tmp_path / "log"


@pytest.fixture
def client(url: URL, log: Path, tmp_path: Path, exported: tuple[int, list[bytes]]) -> Iterator[httpx.Client]:
    """A client for a server that logs everything and exports telemetry."""
    (tmp_path / "logging.json").write_text(json.dumps(LOG_EVERYTHING))
    port = free_port()
    command = ("uvicorn", "app.main:app", "--port", str(port), "--log-config", str(tmp_path / "logging.json"))
    changes = {
        "DATABASE_URL": render_url(url),
        "LOCK_TIMEOUT": "0.1",
        "LOG_LEVEL": "DEBUG",
        "TOKENS": f"client:read+write:{hashlib.sha256(MARK.encode()).hexdigest()}",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{exported[0]}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
    }
    with log.open("wb") as output, server(*command, port=port, changes=changes, output=output) as client:
        client.headers["Authorization"] = f"Bearer {MARK}"
        yield client


def send_secret_on_every_path(client: httpx.Client) -> Iterator[httpx.Response]:
    """Send the secret in valid and in invalid requests to every operation."""
    for headers in ({"Accept": "application/json"}, {"Accept": "application/problem+json"}):
        client.headers.update(headers)
        created = client.post("/heroes/", json=HERO)
        path = f"/heroes/{created.json()['id']}"
        yield created
        yield from (client.patch(path, json=changes) for changes in (HERO, {"secret_name": MARK}, {}))
        yield from (client.get(path), client.get("/heroes/"), client.patch("/heroes/99", json=HERO))
        for wrong in ({"name": 1}, {"name": MARK * 99}, {"age": MARK}, {"secret_name": MARK + "\0"}, {MARK: [MARK]}):
            yield client.post("/heroes/", json=HERO | wrong)
            yield client.patch(path, json=HERO | wrong)
        for secret in (MARK * 99, [MARK], {MARK: MARK}, None, MARK + "\ud800"):
            content = json.dumps(HERO | {"secret_name": secret})
            yield client.post("/heroes/", content=content, headers={"Content-Type": "application/json"})
            yield client.patch(path, content=content, headers={"Content-Type": "application/json"})
        for body in BODIES:
            for content_type in ("application/json", "text/plain"):
                yield client.post("/heroes/", content=body, headers={"Content-Type": content_type})
        yield client.post("/heroes/", content=MARK * 200_000, headers={"Content-Type": "application/json"})
        for credentials in (f"Bearer {MARK}x", f"Bearer {MARK} {MARK}", f"Basic {MARK}", MARK):
            yield client.post("/heroes/", json=HERO, headers={"Authorization": credentials})
        yield client.delete(path)


def provoke_database_errors(client: httpx.Client, url: URL) -> Iterator[httpx.Response]:
    """Make the database refuse statements that contain the secret: by a constraint, and for a missing table."""
    execute(url, "DELETE FROM hero", "CREATE UNIQUE INDEX one_secret ON hero (secret_name)")
    yield client.post("/heroes/", json=HERO)
    conflict = client.post("/heroes/", json=HERO)
    assert conflict.status_code == 409
    yield conflict
    execute(url, "DROP INDEX one_secret", "ALTER TABLE hero RENAME TO hidden")
    for response in (client.post("/heroes/", json=HERO), client.patch("/heroes/1", json=HERO)):
        assert response.status_code == 500
        yield response


def test_a_secret_name_and_a_token_are_in_no_response_log_or_telemetry(
    client: httpx.Client, url: URL, log: Path, exported: tuple[int, list[bytes]]
) -> None:
    statuses = set()
    for response in (*send_secret_on_every_path(client), *provoke_database_errors(client, url)):
        statuses.add(response.status_code)
        assert MARK not in response.text
        assert MARK not in str(response.headers)
    assert statuses == {200, 400, 401, 404, 409, 413, 422, 500}
    _, received = exported
    expected = (b"/v1/logs", b"PATCH /heroes/{hero_id}")
    wait_until(lambda: all(any(words in sent for sent in received) for words in expected))
    assert "app.middleware ERROR POST /heroes/: unhandled " in log.read_text()
    assert "app.sql DEBUG " in log.read_text()
    assert "refused by the database: IntegrityError" in log.read_text()
    assert "refused: an invalid token" in log.read_text()
    assert MARK not in log.read_text()
    assert not any(MARK.encode() in sent for sent in received)
