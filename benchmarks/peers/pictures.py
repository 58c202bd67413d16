"""The pictures of the page: SVG files, colours that the colour-blind can tell apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from benchmarks.peers import systems, workloads
from benchmarks.peers.kept import LIMITS, Kept, Missing, title

# Colours of Okabe and Ito, and one of Tol's; shapes and dashes tell apart what colours do not.
STYLES = {
    "ours": ("#000000", "o", "-"),
    "ceiling": ("#777777", "", "--"),
    "private": ("#777777", "", ":"),
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
BARS = (  # what is shown of each workload that is one number, and its name
    ("tiny_rows", {}, "tiny rows"),
    ("row_sums", {}, "row sums"),
    ("tiles", {}, "tiles, mean and std"),
    ("python_rows", {}, "pure-Python rows"),
    ("uneven_rows", {"order": "clustered"}, "uneven, clustered"),
    ("uneven_rows", {"order": "random"}, "uneven, random"),
    ("gaussian", {}, "Gaussian, halo"),
    ("ufunc", {}, "ufunc"),
    ("chain", {}, "chain of three"),
    ("copy_in", {}, "copying in"),
    ("floor", {}, "warm floor"),
)
Y = Callable[[dict[str, Any]], float]


def draw(kept: Kept, directory: str) -> list[str]:
    """Draw all that the run has figures for; return the names of the files."""
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
            "svg.hashsalt": "shmpar",  # the same bytes each time
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.w_pad": 0.15,  # the reader's font may be wider
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
            figure = picture(kept)
            path = os.path.join(directory, f"benchmark_{name}.svg")
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            written.append(name)
    return written


def _axes(columns: int = 1, width: float = 7.2, height: float = 4.2, rows: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False)


def _plain(axis: Any) -> None:
    """Numbers as they are said: 0.1, 1, 10, 1k, 1M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def say(value: float, _: object) -> str:
        for size, suffix in ((1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:g}{suffix}"
        return f"{value:g}"

    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_major_formatter(FuncFormatter(say))
    axis.set_minor_formatter(NullFormatter())


def _lines(axes: Any, kept: Kept, workload: str, key: str, y: Y, **point: Any) -> None:
    """A line a system, each in the way that suits it best."""
    points = [p for p in kept.points(workload) if all(p.get(k) == v for k, v in point.items())]
    ends = []
    for name in systems.NAMES:
        marks = []
        for one in points:
            with suppress(Missing):
                marks.append((one[key], y(kept.best(workload, name, **one))))
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
    axes.legend(
        handles=[line for _, line in ends],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
    )


def _overhead(kept: Kept) -> Any:
    figure, ((axes,),) = _axes()

    def efficiency(record: dict[str, Any]) -> float:
        ceiling = kept.best("chunk_cost", "ceiling", **record["point"])
        each = (one["median"] / one["chunks"] for one in (ceiling, record))
        return 100 * next(each) / next(each)

    _lines(axes, kept, "chunk_cost", "cost_us", efficiency)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _ticks(axes.yaxis)
    axes.set_xlabel("cost of a chunk, µs")
    axes.set_ylabel("% of the ceiling's speed (higher is better)")
    return figure


def _many_chunks(kept: Kept) -> Any:
    figure, (row,) = _axes(2, 9.2)
    for axes, verb in zip(row, ("rows", "blocks"), strict=True):
        cost = lambda record: record["median"] / record["chunks"] * 1e6  # noqa: E731
        _lines(axes, kept, "many_chunks", "chunks", cost, verb=verb)
        axes.set_title(verb)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel("chunks")
    lines = {line.get_label(): line for axes in row for line in axes.get_lines()}
    for axes in row:
        axes.get_legend().remove()
    row[1].legend(
        handles=[lines[title(name)] for name in systems.NAMES if title(name) in lines],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
    )
    row[0].set_ylabel("µs a chunk (lower is better)")
    row[1].sharey(row[0])
    return figure


def _workers(kept: Kept) -> Any:
    figure, ((axes,),) = _axes()
    _lines(axes, kept, "workers", "workers", lambda record: record["median"] * 1e3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = [point["workers"] for point in kept.points("workers")]
    axes.set_xticks(counts, [str(count) for count in counts])
    _ticks(axes.yaxis)
    axes.set_xlabel(f"workers, on {kept.all['machine']['cores']} cores")
    axes.set_ylabel("ms (lower is better)")
    return figure


def _ticks(axis: Any) -> None:
    """Between powers of ten too, where there are few of these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _bytes(kept: Kept) -> Any:
    figure, ((axes,),) = _axes()
    rate = lambda record: record["point"]["gigabytes"] / record["median"]  # noqa: E731
    _lines(axes, kept, "bytes", "gigabytes", rate)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _ticks(axes.yaxis)
    axes.set_xlabel("size of the array, GB")
    axes.set_ylabel("GB/s (higher is better)")
    return figure


def _glance(kept: Kept) -> Any:
    figure, ((axes,),) = _axes(height=5.2, width=8.2)
    shown, labels = set(), []
    for workload, point, label in BARS:
        marks = {}
        for name in systems.NAMES:
            with suppress(Missing):
                marks[name] = kept.ratio(workload, name, **point)
        if len(marks) < 2:
            continue
        for name, ratio in marks.items():
            colour, marker, _ = STYLES[name]
            limit = name in {"ceiling", "private"}
            axes.plot(
                [ratio],
                [len(labels) + 0.6 * (systems.NAMES.index(name) / len(systems.NAMES) - 0.5)],
                color=colour,
                marker=("|" if name == "ceiling" else "1") if limit else marker,
                markersize=13 if limit else 9 if name == "ours" else 7,
                markeredgewidth=2 if limit else 1,
                linestyle="",
                zorder=5 if name == "ours" else 3,
                label=None if name in shown else title(name),
            )
            shown.add(name)
        labels.append(label)
    if not labels:
        raise Missing("everything")
    axes.axvline(1, color="#000000", linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for number in range(len(labels) - 1):
        axes.axhline(number + 0.5, color="#d0d0d0", linewidth=0.7)
    axes.set_xlabel("time / shmpar's time (left of the line: faster than shmpar)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def _bars(axes: Any, values: Iterable[tuple[str, float]], say: Callable[[float], str]) -> None:
    """Horizontal bars, best first."""
    order = sorted(values, key=lambda pair: pair[1])
    for number, (name, value) in enumerate(order):
        limit = name in LIMITS or name not in systems.NAMES
        colour = "#000000" if name == "ours" else "#c9c9c9" if limit else "#56b4e9"
        axes.barh(number, value, color=colour, height=0.7)
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(say(value), (value, number), fontsize=8, **place)
    axes.set_yticks(range(len(order)), [title(name) for name, _ in order])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _start(kept: Kept) -> Any:
    cold = kept.at("cold")
    if not cold:
        raise Missing("cold")
    figure, (row,) = _axes(2, 9.6, 4.0)
    titles = {"process": "from the start of the interpreter", "pool": "from Pool() on"}
    for axes, (way, text) in zip(row, titles.items(), strict=True):
        values = [(one["system"], one["median"]) for one in cold if one["way"] == way]
        _bars(axes, values, lambda value: f"{value:.2g}")
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.margins(x=0.15)
        axes.set_title(text, fontsize=9)
        axes.set_xlabel("seconds to the first result (lower is better)")
    return figure


def _memory(kept: Kept) -> Any:
    points = kept.points("memory")
    if not points:
        raise Missing("memory")
    figure, (row,) = _axes(len(points), 4.8 * len(points), 3.8)
    for axes, point in zip(row, points, strict=True):
        values = [(one["system"], one["median"] / 1e6) for one in kept.at("memory", **point)]
        _bars(axes, values, lambda value: f"{value:.0f}")
        due = workloads.load("memory").job(point).nbytes / 1e6
        axes.axvline(due, color="#d55e00", linestyle="--", linewidth=1.4)
        axes.set_title(f"{point['verb']}; dashed: input + output, {due:,.0f} MB", fontsize=9)
        axes.set_xlabel("MB in all processes (lower is better)")
        axes.margins(x=0.12)
    return figure
