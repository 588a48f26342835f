"""A service with a replica, and which server its requests read from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import URL

from tests.support.processes import TIMEOUT, render_url
from tests.support.replication import PostgresNode
from tests.support.service import Service, running_service
from tests.support.sql import execute_autocommit

MAX_LAG = 3
LAST_QUERY = (
    "SELECT max(query_start)::text FROM pg_stat_activity WHERE query LIKE '%hero.%' AND pid <> pg_backend_pid()"
)


@contextmanager
def serving(url: URL, replica: PostgresNode | None, folder: Path, **settings: str) -> Iterator[Service]:
    """Run a service with a replica, or without one."""
    if replica is not None:
        replica_url = replica.url.set(database=url.database)
        settings = {"DATABASE_REPLICA_URL": render_url(replica_url), "REPLICA_MAX_LAG": str(MAX_LAG)} | settings
    with running_service(url, folder / "log", "--no-access-log", port=None, **settings) as service:
        yield service


def client_of(service: Service) -> httpx.Client:
    """Create a client, which keeps cookies."""
    return httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=TIMEOUT)


def send(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request of a client that has no cookies."""
    with client_of(service) as client:
        return client.request(method, path, **options)


def reads_from(
    node: PostgresNode, service: Service, method: str = "GET", path: str = "/heroes/", **options: Any
) -> bool:
    """Send a request, and tell whether the node has executed a statement for it."""
    before = execute_autocommit(node.url, LAST_QUERY)
    assert send(service, method, path, **options).status_code in {200, 404}
    return execute_autocommit(node.url, LAST_QUERY) != before
