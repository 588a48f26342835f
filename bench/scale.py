"""Measures the service on ten million heroes relative to ten thousand, and the upgrade of such a table under load.

    .venv-bench/bin/python -m bench.scale --help

The heroes are loaded through the batch path. Then two services run side by side, one on each table, and one client
sends short rounds of each operation to one and to the other, so that noise disturbs both. What reads as many rows as
match, such as `count=exact`, is reported apart. At last the large table is downgraded to the first revision, and
upgraded to head while clients read and write by SQL.

The tables are in Markdown. The figures are added to those of the other database in `scale.json`.
"""

import argparse
import json
import logging
import platform
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.charts import TARGET, plot_scale
from bench.databases import DATABASES, HEROES, Database, temporary_folder
from bench.latency import BATCH, DELETED, LINEAR, OPERATIONS, Latency, Table, measure
from bench.live_upgrade import Upgrade, alembic, upgrade_under_load
from bench.loading import load_heroes
from bench.servers import CONTENDERS, OURS, Server
from bench.tables import TITLES, row

PATIENT = {"MIGRATION_STATEMENT_TIMEOUT": "3600", "MIGRATION_TIMEOUT": "3600"}
BATCHES = 2  # in each round
SLOW_ROUNDS, SLOW_REQUESTS = 5, 2  # of what takes seconds


@dataclass
class Result:
    """What was measured on one database. Latencies are those with few heroes, and with many."""

    date: str
    python: str
    version: str
    heroes: int
    few: int = HEROES
    loaded_in: float = 0  # seconds
    latencies: dict[str, tuple[Latency, Latency]] = field(default_factory=dict)
    linear: dict[str, tuple[Latency, Latency]] = field(default_factory=dict)
    upgrades: list[Upgrade] = field(default_factory=list)


Results = dict[str, Result]


def main() -> None:
    """Measure, print the tables after each part, and save the results after each database."""
    parser = argparse.ArgumentParser(description="Measure the service on a large table relative to a small one.")
    parser.add_argument("--heroes", type=int, default=10_000_000)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20, help="of each operation in each round, to each service")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to save them")
    options = parser.parse_args()
    if (options.rounds + 1) * options.requests >= HEROES // DELETED:
        parser.error("too many requests: the small table has not as many heroes to delete")
    logging.disable(logging.INFO)  # Alembic logs each revision
    with temporary_folder() as folder:
        for name in options.databases:
            save(options.results, name, measure_database(name, folder / name, options))


def measure_database(name: str, folder: Path, options: argparse.Namespace) -> Result:
    """Load, measure and upgrade one database."""
    with ExitStack() as stack:
        few, many = (stack.enter_context(create(name, folder / each)) for each in ("few", "many"))
        result = Result(datetime.now(UTC).date().isoformat(), platform.python_version(), many.version, options.heroes)
        print(f"\n## {TITLES[name]} {result.version}, {result.heroes:,} heroes\n")
        with start(few, folder / "few") as small, start(many, folder / "many") as large:
            load_heroes(small.port, HEROES, f"{name}:")
            result.loaded_in = load_heroes(large.port, options.heroes, f"{name}:")
            print(f"Loaded in {result.loaded_in:.0f} s, {options.heroes / result.loaded_in:,.0f} heroes per second.\n")
            few.maintain()
            many.maintain()
            measure_latencies(result, small, large, options.rounds, options.requests)
        measure_upgrades(result, many)
    return result


def create(name: str, folder: Path) -> Any:
    """Create a migrated database in a folder of its own."""
    folder.mkdir(mode=0o700, parents=True)
    return DATABASES[name](folder)


def start(database: Database, folder: Path) -> Server:
    """Create a server of the service."""
    return Server(CONTENDERS[OURS], database, folder)


def measure_latencies(result: Result, small: Server, large: Server, rounds: int, requests: int) -> None:
    """Measure each operation on both tables, and print the table."""
    tables = Table(small, result.few), Table(large, result.heroes)
    result.latencies = {
        **dict(measure(OPERATIONS, tables, rounds, requests)),
        **dict(measure(BATCH, tables, rounds, BATCHES)),
    }
    print_latencies(result, result.latencies)
    result.linear = dict(measure(LINEAR, tables, SLOW_ROUNDS, SLOW_REQUESTS))
    print_latencies(result, result.linear)
    for table in tables:
        table.close()


def print_latencies(result: Result, latencies: dict[str, tuple[Latency, Latency]]) -> None:
    """Print the medians and the 99th percentiles in ms, and their ratios; those above the target are bold."""
    print(row("", *(f"{figure}, {n:,}" for figure in ("p50", "p99") for n in (result.few, result.heroes)), "ratios"))
    print(row("---", *["---:"] * 5))
    for operation, (few, many) in latencies.items():
        ratios = [f"{after / before:.2f}" for before, after in zip(few, many, strict=True)]
        bold = [f"**{ratio}**" if float(ratio) > TARGET else ratio for ratio in ratios]
        print(row(operation, *(f"{ms:.2f}" for pair in zip(few, many, strict=True) for ms in pair), ", ".join(bold)))
    print()


def measure_upgrades(result: Result, database: Database) -> None:
    """Upgrade from the first revision under load: with the default settings, and patiently if these refuse it.

    Raises:
        RuntimeError: it fails in both cases, or the downgrade does.
    """
    downgrade = alembic(database.url, "-x", "lose-data", "downgrade", "0001", **PATIENT)
    if downgrade.returncode:
        raise RuntimeError(downgrade.stderr)
    database.maintain()
    for settings in ({}, PATIENT):
        upgrade = upgrade_under_load(database.url, result.heroes, **settings)
        result.upgrades.append(upgrade)
        print_upgrade(upgrade, settings)
        if not upgrade.failure:
            return
    raise RuntimeError(upgrade.failure)


def print_upgrade(upgrade: Upgrade, settings: dict[str, str]) -> None:
    """Print how long it took and how long others waited."""
    title = "default settings" if not settings else " ".join(f"{name}={value}" for name, value in settings.items())
    print(f"\nUpgrade from 0001 to head, {title}: {upgrade.seconds:.1f} s, {upgrade.statements:,} statements meanwhile")
    if upgrade.failure:
        print(f"- it failed: {upgrade.failure}")
    print(f"- seconds of each revision: {', '.join(f'{name} {s:.1f}' for name, s in upgrade.revisions.items())}")
    for kind, (wait, revision) in upgrade.longest.items():
        print(f"- longest {kind}: {wait:.2f} s, begun in {revision}")
    print(f"- errors: {len(upgrade.errors)} {upgrade.errors[:3] or ''}")


def save(folder: Path, name: str, result: Result) -> None:
    """Add the figures of one database to those of the others, and plot them all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scale.json"
    results = load(path) | {name: result}
    path.write_text(json.dumps({each: asdict(found) for each, found in results.items()}, indent=1) + "\n")
    plot_scale(results, folder / "scale.svg")


def load(path: Path) -> Results:
    """Read the figures, if there are any."""
    documents: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for document in documents.values():
        for part in ("latencies", "linear"):
            document[part] = {name: tuple(Latency(*each) for each in both) for name, both in document[part].items()}
        document["upgrades"] = [Upgrade(**upgrade) for upgrade in document["upgrades"]]
    return {name: Result(**document) for name, document in documents.items()}


if __name__ == "__main__":
    main()
