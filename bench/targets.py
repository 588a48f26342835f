"""Targets for the service's performance, and whether a run reached them."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.load import OPERATIONS
from bench.results import CONNECTIONS, FEWER_CONNECTIONS, Cell, Results, cpu, throughput
from bench.servers import OURS, PLAIN_PROTOCOL
from bench.tables import TITLES

OVERLOAD = Cell("postgres", OURS, "get", 1000)

BOUNDS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}


@dataclass(frozen=True)
class Target:
    """A bound for the ratio of two contenders: of CPU per request on Postgres, of requests per second on SQLite."""

    database: str
    operation: str
    contender: str
    other: str
    bound: str
    limit: float

    def evaluate(self, results: Results) -> str:
        """Write the ratio, and whether it reached the target."""
        if self.database == "postgres":
            figure, name, connections = cpu, "CPU per request", (CONNECTIONS, FEWER_CONNECTIONS)
        else:
            figure, name, connections = throughput, "requests per second", (FEWER_CONNECTIONS, CONNECTIONS)
        contenders = (self.contender, self.other)
        ratio, number = results.compare(figure, self.database, self.operation, contenders, connections)
        subject = f"{place(self.database, self.operation, number)}: {name}, {' / '.join(contenders)}"
        return verdict(subject, ratio.median if ratio else None, str(ratio), f"{self.bound} {self.limit:.2f}")


TARGETS = (
    Target("postgres", "get", OURS, "floor", "<=", 1.6),
    Target("postgres", "get", "tutorial", OURS, ">=", 3),
    Target("postgres", "get", OURS, "fastapi_tortoise", "<", 1),
    Target("postgres", "get", OURS, PLAIN_PROTOCOL, "<=", 1.05),
    Target("postgres", "list", OURS, "floor", "<=", 0.65),
    Target("postgres", "list", "tutorial", OURS, ">=", 6),
    Target("postgres", "list", OURS, "async_port", "<", 1),
    Target("postgres", "list", OURS, "fastapi_tortoise", "<", 1),
    Target("postgres", "list", OURS, "litestar_sqlalchemy", "<", 1),
    Target("postgres", "post", OURS, "floor", "<=", 1.5),
    Target("postgres", "post", "tutorial", OURS, ">=", 4),
    Target("postgres", "patch", OURS, "floor", "<=", 1.5),
    Target("postgres", "patch", "tutorial", OURS, ">=", 4),
    Target("sqlite", "get", OURS, "tutorial", ">=", 1),
    Target("sqlite", "list", OURS, "tutorial", ">=", 1),
    Target("sqlite", "post", OURS, "tutorial", ">=", 5),
)


def against(revision: str) -> Iterator[Target]:
    """List the targets of a run with an older revision: no operation may cost more than it did."""
    for operation in OPERATIONS:
        yield Target("postgres", operation, OURS, revision, "<=", 1)
    for operation in OPERATIONS:
        yield Target("sqlite", operation, OURS, revision, ">=", 1)


def render(results: Results, revision: str | None) -> str:
    """Write the targets that the run measured."""
    targets = (*TARGETS, *(against(revision) if revision else ()))
    lines = [
        target.evaluate(results)
        for target in targets
        if results.measured(target.database, target.operation, target.contender, target.other)
    ]
    return "\n".join(["## Targets", "", *lines, *evaluate_overload(results)])


def evaluate_overload(results: Results) -> Iterator[str]:
    """Write whether a thousand concurrent clients all get responses, with little variation in latency."""
    if all(measurement.cell != OVERLOAD for measurement in results.measurements):
        return
    medians = results.median(OVERLOAD)
    errors, spread = (medians.errors, medians.p99 / medians.p50) if medians else (None, None)
    subject = place(OVERLOAD.database, OVERLOAD.operation, OVERLOAD.connections)
    yield verdict(f"{subject}: errors", errors, f"{errors}", "<= 0")
    yield verdict(f"{subject}: p99 / p50", spread, f"{spread:.2f}" if spread else "", "<= 2")


def place(database: str, operation: str, connections: int) -> str:
    """Write where a figure was measured."""
    return f"{TITLES[database]}, {OPERATIONS[operation]}, {connections} connections"


def verdict(subject: str, measured: float | None, written: str, target: str) -> str:
    """Write one line."""
    if measured is None:
        return f"- no responses: {subject}, target {target}"
    bound, limit = target.split()
    word = "reached" if BOUNDS[bound](measured, float(limit)) else "missed"
    return f"- {word}: {subject} {written}, target {target}"
