"""Secret names and tokens appear in no response, no log and no telemetry."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.heroes import DEADPOND
from tests.support.otlp_receiver import Receiver, otlp_receiver
from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT
from tests.support.service import running_service
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
def receiver() -> Iterator[Receiver]:
    """A telemetry collector."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The server's log, with the root logger and SQLAlchemy's at DEBUG."""
    return tmp_path / "log"


@pytest.fixture
def client(url: URL, log: Path, tmp_path: Path, receiver: Receiver) -> Iterator[httpx.Client]:
    """A client for a server that logs everything and exports telemetry."""
    (tmp_path / "logging.json").write_text(json.dumps(LOG_EVERYTHING))
    settings = {
        "LOG_LEVEL": "DEBUG",
        "TOKENS": f"client:read+write:{hashlib.sha256(MARK.encode()).hexdigest()}",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # its setup would export the messages of exceptions
        **receiver.settings,
    }
    authorization = {"Authorization": f"Bearer {MARK}"}
    with (
        running_service(url, log, "--log-config", str(tmp_path / "logging.json"), **settings) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", headers=authorization, timeout=TIMEOUT) as client,
    ):
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
    if url.drivername.startswith("postgresql"):  # which repeats the row
        execute(url, "ALTER TABLE hero ADD CONSTRAINT known CHECK (name <> 'unknown')")
        yield client.post("/heroes/", json=HERO | {"name": "unknown", "secret_name": f"{MARK}2"})
    execute(url, "DROP INDEX one_secret", "ALTER TABLE hero RENAME TO hidden")
    for response in (client.post("/heroes/", json=HERO), client.patch("/heroes/1", json=HERO)):
        assert response.status_code == 500
        yield response


def test_a_secret_name_and_a_token_are_in_no_response_log_or_telemetry(
    client: httpx.Client, url: URL, log: Path, receiver: Receiver
) -> None:
    statuses = set()
    for response in (*send_secret_on_every_path(client), *provoke_database_errors(client, url)):
        statuses.add(response.status_code)
        assert MARK not in response.text
        assert MARK not in str(response.headers)
    assert statuses == {200, 400, 401, 404, 409, 413, 422, 500}
    expected = (b"/v1/logs", b"PATCH /heroes/{hero_id}", b"INSERT INTO hero ", b"unhandled", b"/v1/metrics")
    wait_until(lambda: all(any(words in sent for sent in receiver.requests) for words in expected))
    assert "app.middleware ERROR POST /heroes/: unhandled " in log.read_text()
    assert "app.sql DEBUG " in log.read_text()
    assert "refused by the database: IntegrityError" in log.read_text()
    assert "refused: an invalid token" in log.read_text()
    assert MARK not in log.read_text()
    assert not any(MARK.encode() in sent for sent in receiver.requests)
