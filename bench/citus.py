"""Measures what Citus costs an operation: the same service on a cluster and on one Postgres, in one run.

    .venv-bench/bin/python -m bench.citus COORDINATOR_URL POSTGRES_URL

Both databases are emptied, so their names have to begin with `test`. The servers should have the same version and
settings. One client sends one request at a time, to both in turn. The table has the median latency on Postgres, that on
Citus, and the median of their ratios over the rounds.
"""

import itertools
import logging
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx
from sqlalchemy import text

from app.urls import parse_url
from bench.databases import FILL, HEROES, Database, temporary_folder
from bench.servers import CONTENDERS, OURS, Server
from migrations.distribute import distribute

ROUNDS = 5
HERO = {"name": "Deadpond", "secret_name": "Dive Wilson", "age": 30}
# TRUNCATE ... RESTART IDENTITY and ALTER SEQUENCE don't run on the sequence of a distributed table.
EMPTY = ("TRUNCATE hero", "TRUNCATE idempotency_key", "SELECT setval('hero_id_seq', 1, false)")
# The requests of a round, and what each sends.
OPERATIONS: Mapping[str, tuple[int, str, str, Any]] = {
    "GET one": (40, "GET", f"/heroes/{HEROES // 2}", None),
    "PATCH": (40, "PATCH", f"/heroes/{HEROES // 2}", {"age": 40}),
    "POST": (40, "POST", "/heroes/", HERO),
    "POST with a key": (40, "POST", "/heroes/", HERO),
    "list by id": (20, "GET", "/heroes/", None),
    "list by name": (20, "GET", "/heroes/?sort=name", None),
    "list by age": (20, "GET", "/heroes/?sort=age", None),
    "list of one name": (20, "GET", "/heroes/?name=Deadpond", None),
    "page with count=exact": (20, "GET", "/heroes/?limit=10&count=exact", None),
    "batch of 1,000": (3, "POST", "/heroes/batch", [HERO] * 1000),
    "export": (2, "GET", "/heroes/export", None),
}


class Emptied(Database):
    """A database on a running server, whose rows are deleted."""

    def __init__(self, url: str, *, distributed: bool) -> None:
        """Migrate it, and distribute its tables if it is a cluster.

        Raises:
            SystemExit: the name of the database does not begin with `test`.
        """
        if not str(parse_url(url).database).startswith("test"):
            raise SystemExit("The name of the database has to begin with 'test': it is emptied.")
        super().__init__(url)
        if distributed:
            with self._engine.connect() as connection:
                distribute(connection, timeout=10)

    def reset(self) -> None:
        """Restore the heroes."""
        with self._engine.connect() as connection:
            for statement in (*EMPTY, FILL, "VACUUM ANALYZE hero"):
                connection.execute(text(statement))


def measure(client: httpx.Client, operation: str, keys: "itertools.count[int]") -> float:
    """Return the median latency of an operation in ms."""
    number, method, path, body = OPERATIONS[operation]
    latencies = []
    for _ in range(number):
        headers = {"Idempotency-Key": f"{next(keys)}"} if "key" in operation else {}
        started = time.perf_counter()
        client.request(method, path, json=body, headers=headers).raise_for_status()
        latencies.append((time.perf_counter() - started) * 1000)
    return statistics.median(latencies)


def main() -> None:
    """Measure on both databases.

    Raises:
        SystemExit: the two URLs are missing.
    """
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    logging.disable(logging.INFO)  # Alembic logs each revision
    cluster, single = Emptied(sys.argv[1], distributed=True), Emptied(sys.argv[2], distributed=False)
    print(f"Citus on PostgreSQL {cluster.version}, and PostgreSQL {single.version}; {HEROES:,} heroes")
    keys = itertools.count()
    with temporary_folder() as folder:
        (folder / "citus").mkdir()
        with (
            Server(CONTENDERS[OURS], cluster, folder / "citus") as on_citus,
            Server(CONTENDERS[OURS], single, folder) as on_postgres,
            httpx.Client(base_url=on_citus.client.base_url, timeout=60) as citus,
            httpx.Client(base_url=on_postgres.client.base_url, timeout=60) as postgres,
        ):
            print(f"{'':24}{'Postgres ms':>12}{'Citus ms':>10}{'ratio':>7}")
            for operation in OPERATIONS:
                cluster.reset()
                single.reset()
                for client in (citus, postgres):  # connects, prepares the statements
                    measure(client, operation, keys)
                rounds = [(measure(postgres, operation, keys), measure(citus, operation, keys)) for _ in range(ROUNDS)]
                ratio = statistics.median(distributed / alone for alone, distributed in rounds)
                alone, distributed = (statistics.median(each) for each in zip(*rounds, strict=True))
                print(f"{operation:24}{alone:12.2f}{distributed:10.2f}{ratio:7.1f}", flush=True)


if __name__ == "__main__":
    main()
