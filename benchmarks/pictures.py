"""The pictures of the page: SVG files in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from benchmarks import page, systems, workloads
from benchmarks.figures import LIMITS, Missing, Results
from benchmarks.systems import title

# Colours of Okabe and Ito, and one of Tol's; shapes and dashes help where colours are close.
STYLES = {
    "ours": ("#000000", "o", "-"),
    "ceiling": ("#777777", "", "--"),
    "numba": ("#e69f00", "s", "--"),
    "whole": ("#777777", "x", "-"),
    "threads": ("#56b4e9", "^", "-"),
    "pool": ("#0072b2", "D", "-"),
    "executor": ("#0072b2", "d", "--"),
    "joblib": ("#d55e00", "v", "-"),
    "mpire": ("#cc79a7", "P", "-"),
    "dask_threads": ("#009e73", "<", "-"),
    "dask_processes": ("#009e73", ">", "--"),
    "dask_distributed": ("#009e73", "h", ":"),
    "skimage": ("#b8a900", "*", "-"),
    "ray": ("#882255", "X", "-"),
}
Y = Callable[[dict[str, Any]], float]


def draw(results: Results, directory: str) -> list[str]:
    """Draw every picture for which the run has figures; return their names."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "font.size": 9,
            "font.family": "DejaVu Sans",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "svg.fonttype": "none",
            "svg.hashsalt": "shmpar",  # Why: equal figures give equal bytes.
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.w_pad": 0.15,  # Why: fonts of other machines may be wider.
        }
    )
    pictures = {
        "overhead": _overhead,
        "at_a_glance": _glance,
        "many_chunks": _many_chunks,
        "workers": _workers,
        "bytes": _bytes,
        "start": _start,
        "memory": _memory,
    }
    written = []
    for name, picture in pictures.items():
        with suppress(Missing):
            figure = picture(results)
            path = os.path.join(directory, f"benchmark_{name}.svg")
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            written.append(name)
    return written


def _axes(columns: int = 1, width: float = 7.2, height: float = 4.2, rows: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False)


def _plain(axis: Any) -> None:
    """Label powers of ten with numbers like 0.1, 1, 10, 1k, 1M."""

    def label(value: float) -> str:
        for size, suffix in ((1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:g}{suffix}"
        return f"{value:g}"

    _logarithmic(axis, label)


def _ticks(axis: Any) -> None:
    """Label an axis between powers of ten too."""
    _logarithmic(axis, "{:g}".format, (1, 2, 5))


def _logarithmic(axis: Any, label: Callable[[float], str], subs: tuple[int, ...] = (1,)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def _lines(axes: Any, results: Results, workload: str, key: str, y: Y, **point: Any) -> None:
    """Draw a line for each system, in the way that suits it best."""
    points = results.some_points(workload, **point)
    ends = []
    for name in systems.NAMES:
        marks = []
        for one in points:
            with suppress(Missing):
                marks.append((one[key], y(results.best(workload, name, **one))))
        if not marks:
            continue
        colour, marker, dashes = STYLES[name]
        (line,) = axes.plot(
            *zip(*marks, strict=True),
            color=colour,
            marker=marker,
            linestyle=dashes,
            linewidth=2.6 if name == "ours" else 1.2,
            markersize=5,
            zorder=5 if name == "ours" else 2,
            label=title(name),
        )
        ends.append((marks[-1][1], line))
    if not ends:
        raise Missing(workload)
    ends.sort(key=lambda end: -end[0])
    _legend(axes, [line for _, line in ends])


def _legend(axes: Any, lines: list[Any]) -> None:
    """List the lines on the right of the axes."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles=lines, frameon=False, fontsize=8, **place)


def _overhead(results: Results) -> Any:
    figure, ((axes,),) = _axes()

    def efficiency(record: dict[str, Any]) -> float:
        ceiling = results.best("chunk_cost", "ceiling", **record["point"])
        each = (one["median"] / one["chunks"] for one in (ceiling, record))
        return 100 * next(each) / next(each)

    _lines(axes, results, "chunk_cost", "cost_us", efficiency)
    _plain(axes.xaxis)
    _ticks(axes.yaxis)
    axes.set_xlabel("cost of a chunk, µs")
    axes.set_ylabel("% of the ceiling's speed (higher is better)")
    return figure


def _many_chunks(results: Results) -> Any:
    figure, (row,) = _axes(2, 9.2)
    for axes, verb in zip(row, ("rows", "blocks"), strict=True):
        cost = lambda record: record["median"] / record["chunks"] * 1e6  # noqa: E731
        _lines(axes, results, "many_chunks", "chunks", cost, verb=verb)
        axes.set_title(verb)
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel("chunks")
    lines = {line.get_label(): line for axes in row for line in axes.get_lines()}
    for axes in row:
        axes.get_legend().remove()
    _legend(row[1], [lines[title(name)] for name in systems.NAMES if title(name) in lines])
    row[0].set_ylabel("µs per chunk (lower is better)")
    row[1].sharey(row[0])
    return figure


def _workers(results: Results) -> Any:
    figure, ((axes,),) = _axes()
    _lines(axes, results, "workers", "workers", lambda record: record["median"] * 1e3)
    axes.set_xscale("log", base=2)
    counts = [point["workers"] for point in results.points("workers")]
    axes.set_xticks(counts, [str(count) for count in counts])
    _ticks(axes.yaxis)
    axes.set_xlabel(f"workers, on {results.all['machine']['cores']} cores")
    axes.set_ylabel("ms (lower is better)")
    return figure


def _bytes(results: Results) -> Any:
    figure, ((axes,),) = _axes()
    rate = lambda record: record["point"]["gigabytes"] / record["median"]  # noqa: E731
    _lines(axes, results, "bytes", "gigabytes", rate)
    _plain(axes.xaxis)
    _ticks(axes.yaxis)
    axes.set_xlabel("size of the array, GB")
    axes.set_ylabel("GB/s (higher is better)")
    return figure


def _glance(results: Results) -> Any:
    """Draw the peers of the answer and the ceiling: a row per workload, a mark per system."""
    figure, ((axes,),) = _axes(height=5.6, width=8.2)
    names = ("ceiling", *page.ANSWERS)
    ratios = {name: page.glance(results, name) for name in names}
    labels = [label for _, _, label in page.GLANCE if any(label in of for of in ratios.values())]
    if not labels:
        raise Missing("every workload of the first picture")
    for place, name in enumerate(names):
        colour, marker, _ = STYLES[name]
        limit = name == "ceiling"
        offset = 0.13 * (place - (len(names) - 1) / 2)  # Why: marks of a row must not overlap.
        axes.plot(
            list(ratios[name].values()),
            [labels.index(label) + offset for label in ratios[name]],
            color=colour,
            marker="|" if limit else marker,
            markersize=11 if limit else 7,
            markeredgewidth=2 if limit else 1,
            linestyle="",
            label=title(name),
        )
    axes.axvline(1, color=STYLES["ours"][0], linewidth=1.6, zorder=1, label=title("ours"))
    _ticks(axes.xaxis)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for number in range(len(labels) - 1):
        axes.axhline(number + 0.5, color="#d0d0d0", linewidth=0.7)
    axes.set_xlabel("time / shmpar's time; right of the line shmpar is faster")
    figure.legend(loc="outside upper center", ncols=len(names) + 1, frameon=False, fontsize=9)
    return figure


def _bars(axes: Any, values: Iterable[tuple[str, float]], label: Callable[[float], str]) -> None:
    """Draw horizontal bars, the best first."""
    order = sorted(values, key=lambda pair: pair[1])
    for number, (name, value) in enumerate(order):
        limit = name in LIMITS or name not in systems.NAMES
        colour = "#000000" if name == "ours" else "#c9c9c9" if limit else "#56b4e9"
        axes.barh(number, value, color=colour, height=0.7)
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(label(value), (value, number), fontsize=8, **place)
    axes.set_yticks(range(len(order)), [title(name) for name, _ in order])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _start(results: Results) -> Any:
    cold = results.at("cold")
    if not cold:
        raise Missing("cold")
    figure, (row,) = _axes(2, 9.6, 4.0)
    titles = {"process": "from the start of the interpreter", "pool": "from Pool() on"}
    for axes, (way, text) in zip(row, titles.items(), strict=True):
        values = [(one["system"], one["median"]) for one in cold if one["way"] == way]
        _bars(axes, values, lambda value: f"{value:.2g}")
        _plain(axes.xaxis)
        axes.margins(x=0.15)
        axes.set_title(text, fontsize=9)
        axes.set_xlabel("seconds to the first result (lower is better)")
    return figure


def _memory(results: Results) -> Any:
    points = results.some_points("memory")
    figure, (row,) = _axes(len(points), 4.8 * len(points), 3.8)
    for axes, point in zip(row, points, strict=True):
        values = [(one["system"], one["median"] / 1e6) for one in results.at("memory", **point)]
        _bars(axes, values, lambda value: f"{value:.0f}")
        arrays = workloads.load("memory").job(point).nbytes / 1e6
        axes.axvline(arrays, color="#d55e00", linestyle="--", linewidth=1.4)
        axes.set_title(f"{point['verb']}; dashed: input + output, {arrays:,.0f} MB", fontsize=9)
        axes.set_xlabel("MB in all processes (lower is better)")
        axes.margins(x=0.12)
    return figure
