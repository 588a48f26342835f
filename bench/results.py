"""Results: measurements, their medians, and ratios between contenders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Load

CONNECTIONS = 64  # at which contenders are compared
FEWER_CONNECTIONS = 32  # where contenders are compared that don't respond at 64


@dataclass(frozen=True)
class Cell:
    """A cell of the tables: a contender under one load."""

    database: str
    contender: str
    operation: str
    connections: int


@dataclass(frozen=True)
class Measurement:
    """One measurement of a cell.

    It has no load if no responses came, or if the server was stuck afterwards: idle, with a single request unanswered.
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


@dataclass(frozen=True)
class Ratio:
    """The ratios of two cells' measurements, one per round: those of a round are close in time."""

    pairs: Sequence[float]

    @property
    def median(self) -> float:
        """The median of the ratios, which a disturbed round hardly moves."""
        return median(self.pairs)

    def __str__(self) -> str:
        """Write the median, the range and the number of pairs."""
        return f"{self.median:.2f} ({min(self.pairs):.2f} to {max(self.pairs):.2f}, pairs: {len(self.pairs)})"


Figure = Callable[[Measurement], float | None]


class Results:
    """All measurements of a run."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.measurements = measurements

    def unique(self, part: Callable[[Cell], str]) -> list[str]:
        """List the databases, contenders or operations that were measured, in the order in which they were."""
        return list(dict.fromkeys(part(measurement.cell) for measurement in self.measurements))

    def measured(self, database: str, operation: str, *contenders: str) -> bool:
        """Return whether the run included the operation for all these contenders."""
        cells = {(m.cell.database, m.cell.operation, m.cell.contender) for m in self.measurements}
        return cells.issuperset((database, operation, contender) for contender in contenders)

    def loaded(self, cell: Cell) -> list[Measurement]:
        """List a cell's measurements that have a load. There are none unless most of the rounds had responses."""
        measurements = [measurement for measurement in self.measurements if measurement.cell == cell]
        found = [measurement for measurement in measurements if measurement.load]
        return found if len(found) * 2 > len(measurements) else []

    def median(self, cell: Cell) -> Median | None:
        """Return the medians of a cell, or None unless it was measured and most of the rounds had responses."""
        measurements = self.loaded(cell)
        loads = [measurement.load for measurement in measurements if measurement.load]
        if not loads:
            return None
        return Median(
            cpu=median(measurement.cpu for measurement in measurements if measurement.cpu is not None),
            throughput=median(load.throughput for load in loads),
            p50=median(load.p50 for load in loads),
            p99=median(load.p99 for load in loads),
            errors=sum(load.errors for load in loads),
        )

    def ratio(self, figure: Figure, cell: Cell, other: Cell) -> Ratio | None:
        """Divide a figure of one cell by that of the other, round by round, or return None if no round has both."""
        mine, theirs = ({m.round: figure(m) for m in self.loaded(each)} for each in (cell, other))
        pairs = [value / base for number, value in mine.items() if value and (base := theirs.get(number))]
        return Ratio(pairs) if pairs else None

    def compare(
        self, figure: Figure, database: str, operation: str, contenders: tuple[str, str], connections: Sequence[int]
    ) -> tuple[Ratio | None, int]:
        """Divide one contender's figure by the other's at the first number of connections where both responded.

        Returns:
            The ratio, or None if there is none, and the number of connections.
        """
        for number in connections:
            mine, theirs = (Cell(database, contender, operation, number) for contender in contenders)
            ratio = self.ratio(figure, mine, theirs)
            if ratio is not None:
                return ratio, number
        return None, connections[0]


def cpu(measurement: Measurement) -> float | None:
    """Return the CPU seconds per request."""
    return measurement.cpu


def throughput(measurement: Measurement) -> float | None:
    """Return the requests per second."""
    return measurement.load.throughput if measurement.load else None
