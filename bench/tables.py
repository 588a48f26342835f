"""Tables: the results in Markdown."""

from collections.abc import Callable, Iterator

from bench.load import OPERATIONS
from bench.results import Cell, Measurement, Median, Results, cpu

BASELINES = {"postgres": "floor", "sqlite": "tutorial"}
TITLES = {"postgres": "Postgres", "sqlite": "SQLite"}
NO_RESPONSES = "no responses"


def progress(measurement: Measurement) -> str:
    """Write one measurement as one line."""
    cell, load = measurement.cell, measurement.load
    place = f"{cell.database}, round {measurement.round}, {cell.contender}, {cell.operation}, {cell.connections}"
    if load is None or measurement.cpu is None:
        return f"{place}: {NO_RESPONSES}"
    return f"{place}: {measurement.cpu * 1e6:.0f} µs, {load.throughput:.0f}/s, {load.errors} errors"


def render(results: Results) -> str:
    """Write two tables for each database: CPU per request, and throughput with latency."""
    lines: list[str] = []
    for database in results.unique(lambda cell: cell.database):
        lines += [f"## {TITLES[database]}", "", f"CPU per request in µs (relative to {BASELINES[database]}):", ""]
        lines += table(results, database, lambda cell: cost(results, cell))
        lines += ["", "Requests per second; median and 99th percentile of the latency in ms:", ""]
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
    """Write the CPU per request, and its ratio to the baseline where there is one."""
    medians = results.median(cell)
    if medians is None:
        return NO_RESPONSES
    baseline = Cell(cell.database, BASELINES[cell.database], cell.operation, cell.connections)
    ratio = results.ratio(cpu, cell, baseline)
    return f"{medians.cpu * 1e6:.0f}" + (f" ({ratio.median:.2f}x)" if ratio else "")


def speed(medians: Median | None) -> str:
    """Write throughput and latency, and the number of errors if there were any."""
    if medians is None:
        return NO_RESPONSES
    errors = f", {medians.errors} errors" if medians.errors else ""
    return f"{medians.throughput:.0f}/s; {medians.p50 * 1e3:.0f}, {medians.p99 * 1e3:.0f}{errors}"
