"""Tables: the results in Markdown."""

from collections.abc import Callable, Iterator

from bench.load import OPERATIONS
from bench.results import Cell, Measurement, Median, Results, cpu

BASELINES = {"postgres": "floor", "sqlite": "tutorial"}
TITLES = {"postgres": "Postgres", "sqlite": "SQLite"}
SILENCE = "no answers"


def progress(measurement: Measurement) -> str:
    """Write one measurement as one line."""
    cell, load = measurement.cell, measurement.load
    place = f"{cell.database}, round {measurement.round}, {cell.contender}, {cell.operation}, {cell.connections}"
    if load is None or measurement.cpu is None:
        return f"{place}: {SILENCE}"
    return f"{place}: {measurement.cpu * 1e6:.0f} µs, {load.requests / load.seconds:.0f}/s, {load.errors} errors"


def render(results: Results) -> str:
    """Write two tables for each database: what requests cost, and how fast they are answered."""
    lines: list[str] = []
    for database in results.having(lambda cell: cell.database):
        baseline = BASELINES[database]
        lines += [f"## {TITLES[database]}", "", f"CPU per request in µs, and how many times {baseline}'s that is:", ""]
        lines += table(results, database, lambda cell: cost(results, cell))
        lines += ["", "Requests per second; median and 99th percentile of the time to answer in ms:", ""]
        lines += [*table(results, database, lambda cell: speed(results.median(cell))), ""]
    return "\n".join(lines)


def table(results: Results, database: str, write: Callable[[Cell], str]) -> Iterator[str]:
    """Write a table with a row for each contender and a column for each load."""
    cells = [measurement.cell for measurement in results.measurements if measurement.cell.database == database]
    loads = list(dict.fromkeys((cell.operation, cell.connections) for cell in cells))
    yield row("", *(f"{OPERATIONS[operation]}, {connections}" for operation, connections in loads))
    yield row("---", *("---:" for _ in loads))
    for contender in dict.fromkeys(cell.contender for cell in cells):
        yield row(contender, *(write(Cell(database, contender, *load)) for load in loads))


def row(*cells: str) -> str:
    """Write one row."""
    return f"| {' | '.join(cells)} |"


def cost(results: Results, cell: Cell) -> str:
    """Write what a request costs, and the ratio to the baseline where there is one."""
    figures = results.median(cell)
    if figures is None:
        return SILENCE
    baseline = Cell(cell.database, BASELINES[cell.database], cell.operation, cell.connections)
    ratio = results.ratio(cpu, cell, baseline)
    return f"{figures.cpu * 1e6:.0f}" + (f" ({ratio:.2f}x)" if ratio else "")


def speed(figures: Median | None) -> str:
    """Write how fast requests are answered, and how many were not."""
    if figures is None:
        return SILENCE
    errors = f", {figures.errors} errors" if figures.errors else ""
    return f"{figures.throughput:.0f}/s; {figures.p50 * 1e3:.0f}, {figures.p99 * 1e3:.0f}{errors}"
