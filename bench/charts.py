"""Charts: SVG, reproducible from the same figures, on white so that they are legible in dark mode too."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.load import OPERATIONS
from bench.results import CONNECTIONS, FEWER_CONNECTIONS, Results, cpu
from bench.servers import OURS
from bench.tables import BASELINES, TITLES

if TYPE_CHECKING:
    from bench.overload import Curve
    from bench.scale import Results as Scales
    from bench.trace import Trace

mpl.rcParams |= {"svg.hashsalt": "heroes", "svg.fonttype": "path", "font.size": 11}

BASELINE = BASELINES["postgres"]
COLOURS = {
    OURS: "#d55e00",
    "bare_asgi": "#dddddd",
    "floor": "#aaaaaa",
    "litestar_sqlalchemy": "#56b4e9",
    "fastapi_tortoise": "#009e73",
    "async_port": "#0072b2",
    "tutorial": "#333333",
}
SPANS = {True: OURS, False: "floor"}  # the colours of statements and of other spans
TARGET = 1.3  # for the latency on a large table, relative to a small one
WIDTH = 0.12  # of a bar; operations are 1 apart


def plot_cpu(results: Results, path: Path) -> None:
    """Plot the CPU per request on Postgres relative to the baseline, for each operation and contender."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    for position, contender in enumerate(COLOURS):
        offset = (position - len(COLOURS) / 2 + 0.5) * WIDTH
        for group, operation in enumerate(OPERATIONS):
            contenders, fallback = (contender, BASELINE), (CONNECTIONS, FEWER_CONNECTIONS)
            ratio, connections = results.compare(cpu, "postgres", operation, contenders, fallback)
            if ratio is None:
                continue
            hatch = "" if connections == CONNECTIONS else "///"
            bar = axes.bar(
                group + offset, ratio.median, WIDTH, color=COLOURS[contender], hatch=hatch, edgecolor="white"
            )
            axes.bar_label(bar, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(OPERATIONS)), list(OPERATIONS.values()))
    axes.set_xlim(-0.5, len(OPERATIONS) - 0.5)
    axes.set_ylabel(f"CPU per request relative to {BASELINE}")
    axes.set_title(
        f"Postgres, {CONNECTIONS} connections (hatched: {FEWER_CONNECTIONS}, if {CONNECTIONS} got no responses)"
    )
    axes.axhline(1, color="#aaaaaa", linewidth=1, zorder=0)
    figure.legend(
        [mpl.patches.Patch(color=colour) for colour in COLOURS.values()],
        COLOURS,
        loc="outside lower center",
        ncols=len(COLOURS),
        frameon=False,
    )
    save(figure, path)


def plot_memory(requests: Sequence[int], megabytes: Sequence[float], path: Path) -> None:
    """Plot the memory of the service over the requests that it has served."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(requests, megabytes, color=COLOURS[OURS], marker="o")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("requests served")
    axes.set_ylabel("resident memory in MB")
    save(figure, path)


def plot_overload(by_database: "Curve", by_cpu: "Curve", path: Path) -> None:
    """Plot the rates and latencies of served and refused requests over the load relative to capacity."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    titles = ("limited by the database (20 ms per statement)", "limited by the CPU")
    for (rates, latencies), curve, title in zip(figure.subplots(2, 2).T, (by_database, by_cpu), titles, strict=True):
        rates.plot(curve.factors, curve.served, color=COLOURS[OURS], marker="o", label="served")
        rates.plot(curve.factors, curve.refused, color=COLOURS[BASELINE], marker="o", label="refused")
        rates.set_title(f"{title}: {curve.capacity:.0f}/s")
        rates.set_ylabel("responses per second")
        latencies.plot(
            curve.factors, milliseconds(curve.served_p99), color=COLOURS[OURS], marker="o", label="served, p99"
        )
        latencies.plot(
            curve.factors, milliseconds(curve.refused_p99), color=COLOURS[BASELINE], marker="o", label="refused, p99"
        )
        latencies.set_yscale("log")
        latencies.set_ylabel("latency in ms")
        latencies.set_xlabel("load relative to capacity")
        for axes in (rates, latencies):
            axes.set_xlim(left=0)
            axes.legend(frameon=False)
    save(figure, path)


def plot_scale(results: "Scales", path: Path) -> None:
    """Plot the latency of each operation on the large table relative to the small one, on each database."""
    rows = max(len(result.latencies) for result in results.values())
    figure = Figure(figsize=(11, 1.5 + rows * 0.28), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        operations = list(result.latencies)[::-1]  # from the bottom up
        ratios = [[many / few for few, many in zip(*result.latencies[each], strict=True)] for each in operations]
        for percentile, values in enumerate(zip(*ratios, strict=True)):
            colour, label = (COLOURS[OURS], "median") if percentile == 0 else (COLOURS["async_port"], "p99")
            axes.scatter(values, operations, color=colour, label=label, zorder=2)
        axes.axvline(1, color="#aaaaaa", linewidth=1, zorder=0)
        axes.axvline(TARGET, color="#aaaaaa", linewidth=1, linestyle="--", zorder=0)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"with {result.heroes:,} heroes, relative to {result.few:,}")
        axes.set_title(TITLES[name])
        axes.legend(frameon=False)
    save(figure, path)


def plot_traces(traces: Sequence["Trace"], path: Path) -> None:
    """Plot the spans of each trace below each other, over their time since the request began."""
    rows = [len(trace) for trace in traces]
    figure = Figure(figsize=(11, 1.6 + sum(rows) * 0.3), layout="constrained")
    all_axes = figure.subplots(len(traces), 1, height_ratios=rows, sharex=True, squeeze=False).flat
    for axes, trace in zip(all_axes, traces, strict=True):
        began_at = trace[0].began_at
        for row, span in enumerate(trace):
            left = (span.began_at - began_at) / 1e6
            axes.barh(
                row,
                (span.ended_at - span.began_at) / 1e6,
                left=left,
                color=COLOURS[SPANS[span.is_statement]],
                height=0.7,
            )
        axes.set_yticks(range(len(trace)), [f"{'    ' * span.depth}{span.label}" for span in trace], ha="left")
        axes.tick_params(axis="y", length=0, pad=200)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
    axes.set_xlabel("ms since the request began")
    save(figure, path)


def milliseconds(times: Sequence[float | None]) -> list[float | None]:
    """Convert seconds to milliseconds, and keep gaps."""
    return [time and time * 1e3 for time in times]


def save(figure: Figure, path: Path) -> None:
    """Write it without a date, and without the trailing spaces that matplotlib leaves."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
