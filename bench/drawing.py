"""Pictures: SVG that is the same each time for the same figures, on white, so that it can be read in any mode."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.load import OPERATIONS
from bench.results import FEWER, USUAL, Results, cpu
from bench.servers import OURS

if TYPE_CHECKING:
    from bench.overload import Curve

mpl.rcParams |= {"svg.hashsalt": "heroes", "svg.fonttype": "path", "font.size": 11}

FLOOR = "floor"
COLOURS = {
    OURS: "#d55e00",
    "bare_asgi": "#dddddd",
    "floor": "#aaaaaa",
    "litestar_sqlalchemy": "#56b4e9",
    "fastapi_tortoise": "#009e73",
    "async_port": "#0072b2",
    "tutorial": "#333333",
}
WIDTH = 0.12  # of a bar; operations are 1 apart


def draw_costs(results: Results, path: Path) -> None:
    """Draw what a request costs on Postgres in times of the floor, for each operation and contender."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    for position, contender in enumerate(COLOURS):
        offset = (position - len(COLOURS) / 2 + 0.5) * WIDTH
        for group, operation in enumerate(OPERATIONS):
            ratio, connections = results.compare(cpu, "postgres", operation, (contender, FLOOR), (USUAL, FEWER))
            if ratio is None:
                continue
            hatch = "" if connections == USUAL else "///"
            bar = axes.bar(group + offset, ratio, WIDTH, color=COLOURS[contender], hatch=hatch, edgecolor="white")
            axes.bar_label(bar, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(OPERATIONS)), list(OPERATIONS.values()))
    axes.set_xlim(-0.5, len(OPERATIONS) - 0.5)
    axes.set_ylabel("CPU per request, times the floor's")
    axes.set_title(f"Postgres, {USUAL} connections (hatched: {FEWER}, where {USUAL} got no answers)")
    axes.axhline(1, color="#aaaaaa", linewidth=1, zorder=0)
    figure.legend(
        [mpl.patches.Patch(color=colour) for colour in COLOURS.values()],
        COLOURS,
        loc="outside lower center",
        ncols=len(COLOURS),
        frameon=False,
    )
    save(figure, path)


def draw_memory(requests: Sequence[int], megabytes: Sequence[float], path: Path) -> None:
    """Draw the memory of the service over the requests that it has answered."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(requests, megabytes, color=COLOURS[OURS], marker="o")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("requests answered")
    axes.set_ylabel("resident memory in MB")
    save(figure, path)


def draw_overload(by_database: "Curve", by_processor: "Curve", path: Path) -> None:
    """Draw what is served and refused, and how soon, over how many times its capacity is asked of the service."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    titles = ("bound by the database (20 ms a statement)", "bound by the processor")
    for (rates, times), curve, title in zip(figure.subplots(2, 2).T, (by_database, by_processor), titles, strict=True):
        rates.plot(curve.factors, curve.served, color=COLOURS[OURS], marker="o", label="served")
        rates.plot(curve.factors, curve.refused, color=COLOURS[FLOOR], marker="o", label="refused")
        rates.set_title(f"{title}: {curve.capacity:.0f}/s")
        rates.set_ylabel("answers per second")
        times.plot(curve.factors, milliseconds(curve.served_p99), color=COLOURS[OURS], marker="o", label="served, p99")
        times.plot(
            curve.factors, milliseconds(curve.refused_p99), color=COLOURS[FLOOR], marker="o", label="refused, p99"
        )
        times.set_yscale("log")
        times.set_ylabel("ms")
        times.set_xlabel("load, times what the service can do")
        for axes in (rates, times):
            axes.set_xlim(left=0)
            axes.legend(frameon=False)
    save(figure, path)


def milliseconds(times: Sequence[float | None]) -> list[float | None]:
    """Turn seconds into milliseconds, and leave gaps."""
    return [time and time * 1e3 for time in times]


def save(figure: Figure, path: Path) -> None:
    """Write it without a date, and without the spaces that matplotlib leaves at the ends of lines."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
