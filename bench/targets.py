"""Targets: what the service was to reach, and whether it did."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

from bench.load import OPERATIONS
from bench.results import FEWER, USUAL, Cell, Results, cpu, throughput
from bench.servers import OURS
from bench.tables import TITLES

CROWD = Cell("postgres", OURS, "get", 1000)

BOUNDS: dict[str, Callable[[float, float], bool]] = {
    "at most": operator.le,
    "at least": operator.ge,
    "less than": operator.lt,
}


@dataclass(frozen=True)
class Target:
    """A bound for one contender's figure divided by another's: CPU on Postgres, requests per second on SQLite."""

    database: str
    operation: str
    contender: str
    other: str
    bound: str
    limit: float

    def judge(self, results: Results) -> str:
        """Say whether it was reached."""
        figure, connections = (cpu, (USUAL, FEWER)) if self.database == "postgres" else (throughput, (FEWER,))
        pair = (self.contender, self.other)
        ratio, number = results.compare(figure, self.database, self.operation, pair, connections)
        place = f"{TITLES[self.database]}, {OPERATIONS[self.operation]}, {number} connections"
        name = "CPU per request" if figure is cpu else "requests per second"
        return verdict(f"{place}: {name}, {self.contender} / {self.other}", ratio, self.bound, self.limit)


TARGETS = (
    Target("postgres", "get", OURS, "floor", "at most", 1.6),
    Target("postgres", "get", "tutorial", OURS, "at least", 3),
    Target("postgres", "get", OURS, "fastapi_tortoise", "less than", 1),
    Target("postgres", "list", OURS, "floor", "at most", 0.6),
    Target("postgres", "list", "tutorial", OURS, "at least", 6),
    Target("postgres", "list", OURS, "async_port", "less than", 1),
    Target("postgres", "list", OURS, "fastapi_tortoise", "less than", 1),
    Target("postgres", "list", OURS, "litestar_sqlalchemy", "less than", 1),
    Target("postgres", "post", OURS, "floor", "at most", 1.4),
    Target("postgres", "post", "tutorial", OURS, "at least", 4),
    Target("postgres", "patch", OURS, "floor", "at most", 1.4),
    Target("postgres", "patch", "tutorial", OURS, "at least", 4),
    Target("sqlite", "get", OURS, "tutorial", "at least", 1),
    Target("sqlite", "list", OURS, "tutorial", "at least", 1),
    Target("sqlite", "post", OURS, "tutorial", "at least", 5),
)


def render(results: Results) -> str:
    """Write all targets, with what was measured."""
    return "\n".join(["## Targets", "", *(target.judge(results) for target in TARGETS), *judge_crowd(results)])


def judge_crowd(results: Results) -> tuple[str, str]:
    """Say whether a thousand clients at once are all answered, and alike."""
    figures = results.median(CROWD)
    errors, spread = (figures.errors, figures.p99 / figures.p50) if figures else (None, None)
    place = f"{TITLES[CROWD.database]}, {OPERATIONS[CROWD.operation]}, {CROWD.connections} connections"
    return verdict(f"{place}: errors", errors, "at most", 0), verdict(f"{place}: p99 / p50", spread, "at most", 2)


def verdict(what: str, measured: float | None, bound: str, limit: float) -> str:
    """Write one line."""
    if measured is None:
        return f"- not measured: {what}, {bound} {limit:g}"
    word = "reached" if BOUNDS[bound](measured, limit) else "missed"
    return f"- {word}: {what} {measured:.3g}, {bound} {limit:g}"
