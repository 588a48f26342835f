"""Results: what was measured, and the medians and ratios of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Load

USUAL = 64  # connections at which contenders are compared
FEWER = 32  # and those where one of them has no answers there


@dataclass(frozen=True)
class Cell:
    """A place in the tables."""

    database: str
    contender: str
    operation: str
    connections: int


@dataclass(frozen=True)
class Measurement:
    """One measurement of a cell.

    It has no load where no answers came, or where the server was stuck afterwards: with the load gone and nothing to
    compute, it left a single request unanswered.
    """

    cell: Cell
    round: int
    load: Load | None
    cpu: float | None  # seconds per request


@dataclass(frozen=True)
class Median:
    """The median of each figure over the rounds, and the sum of the errors. Times are in seconds."""

    cpu: float
    throughput: float
    p50: float
    p99: float
    errors: int


Figure = Callable[[Median], float]


class Results:
    """Everything that was measured."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.measurements = measurements

    def having(self, part: Callable[[Cell], str]) -> list[str]:
        """List the databases, contenders or operations that were measured, in the order in which they were."""
        return list(dict.fromkeys(part(measurement.cell) for measurement in self.measurements))

    def median(self, cell: Cell) -> Median | None:
        """Take the medians of a cell, or None unless it was measured and answered in most of the rounds."""
        measurements = [measurement for measurement in self.measurements if measurement.cell == cell]
        loads = [measurement.load for measurement in measurements if measurement.load]
        if len(loads) * 2 <= len(measurements):
            return None
        return Median(
            cpu=median(measurement.cpu for measurement in measurements if measurement.cpu is not None),
            throughput=median(load.requests / load.seconds for load in loads),
            p50=median(load.p50 for load in loads),
            p99=median(load.p99 for load in loads),
            errors=sum(load.errors for load in loads),
        )

    def ratio(self, figure: Figure, cell: Cell, other: Cell) -> float | None:
        """Divide the figure of one cell by that of the other, or return None where one has none."""
        mine, theirs = self.median(cell), self.median(other)
        return figure(mine) / figure(theirs) if mine and theirs else None

    def compare(
        self, figure: Figure, database: str, operation: str, contenders: tuple[str, str], connections: Sequence[int]
    ) -> tuple[float | None, int]:
        """Divide one contender's figure by the other's at the first of the connections where both have answers.

        Returns:
            The ratio, or None if they have none, and the connections.
        """
        for number in connections:
            mine, theirs = (Cell(database, contender, operation, number) for contender in contenders)
            ratio = self.ratio(figure, mine, theirs)
            if ratio is not None:
                return ratio, number
        return None, connections[0]


def cpu(figures: Median) -> float:
    """Name a figure: seconds of processor time per request."""
    return figures.cpu


def throughput(figures: Median) -> float:
    """Name a figure: requests per second."""
    return figures.throughput
