"""Pictures of a run: what the workers did, and what each chunk cost.

Imports grid; matplotlib when it is asked to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.grid import Axis
from shmpar.report.text import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from shmpar.report.report import Report
    from shmpar.report.timings import Timings

__all__ = ["draw"]

_MOST_BOXES = 2_000  # of a worker; what is closer together than a pixel is drawn as one
_COLOURS = "viridis"  # even in grey, and for the colour-blind
_DIED, _NOTHING, _CURVE = "#d55e00", "#efefef", "#0072b2"
_FEW = 300  # chunks of which each can be seen
_BAR = 0.8  # of the distance between two workers
_DECADE = 10  # from here on durations are told apart on a logarithmic scale
_LINE = 0.32  # inches a worker
_MOST_NAMED = 20  # workers that have their number beside the line
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def draw(report: Report) -> Figure:
    """Draw a run."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "report.plot() draws with matplotlib, which is not installed: pip install shmpar[plot]"
        ) from error
    timings, axes_cut = report.timings, _axes_cut(report)
    lines = max(1.2, min(_LINE * timings.count, 6.0))
    second = {2: 3.6, 1: 1.8}.get(len(axes_cut), 0.0) if timings.chunks.size else 0.0
    figure = Figure(figsize=(8, lines + second + 1.2), layout="constrained")
    ratios = [lines, second] if second else [lines]
    parts = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
    scale, factor, unit = _scale(timings.durations)
    colours = _timeline(parts[0], timings, scale, factor)
    figure.suptitle(title(report), fontsize="medium")
    if len(axes_cut) == 2:  # noqa: PLR2004 - a map is flat
        _map(parts[1], report, axes_cut, scale, factor)
    elif second:
        _curve(parts[1], report, axes_cut[0], factor, unit, log=_wide(timings.durations))
    if colours is not None:
        bar = figure.colorbar(colours, ax=list(parts), aspect=30, pad=0.02, panchor=False)
        bar.set_label(f"one chunk ({unit})")
        if _wide(timings.durations):
            _plain(bar.ax.yaxis)
    return figure


def _axes_cut(report: Report) -> list[int]:
    """The axes that a picture of the cost has: those that are cut, if they are one or two."""
    cut = [place for place, axis in enumerate(report.plan.grid.axes) if len(axis) > 1]
    return cut if len(cut) <= 2 else []  # noqa: PLR2004 - a map is flat


def _unit(longest: float) -> tuple[float, str]:
    """A unit of time in which numbers are short: its seconds, and its name."""
    return next((one for one in _UNITS if longest >= one[0]), _UNITS[-1])


def _wide(durations: Any) -> bool:
    """Whether durations are told apart on a logarithmic scale."""
    return bool(durations.size and durations.max() > _DECADE * durations.min())


def _plain(axis: Any) -> None:
    """Write 20 where a logarithmic axis would write 2 x 10^1."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(LogLocator(subs=(), numticks=12))


def _scale(durations: Any) -> tuple[Any, float, str]:
    """How colours tell durations, and their unit."""
    from matplotlib.colors import LogNorm, Normalize

    if not durations.size:
        return Normalize(0, 1), *_unit(1.0)
    low, high = float(durations.min()), float(durations.max())
    factor, unit = _unit(high)
    if _wide(durations):
        return LogNorm(low / factor, high / factor), factor, unit
    return Normalize(0, high / factor), factor, unit


def _timeline(axes: Axes, timings: Timings, scale: Any, factor: float) -> Any:
    """Draw a box for each chunk; give what the bar of colours is made from."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection

    begins, ends, values, workers = _boxes(timings)
    unit, name = _unit(timings.seconds)
    low, high = workers - _BAR / 2, workers + _BAR / 2
    left, right = begins / unit, ends / unit
    corners: Any = np.stack(
        [np.stack(pair, -1) for pair in ((left, low), (right, low), (right, high), (left, high))], 1
    )
    lines = 0.5 if len(corners) <= _FEW else 0
    boxes = PolyCollection(
        corners, cmap=_COLOURS, norm=scale, linewidths=lines, edgecolors=_NOTHING
    )
    boxes.set_array(values / factor)
    axes.axhspan(-0.5, timings.count - 0.5, color=_NOTHING, zorder=0, linewidth=0)
    axes.add_collection(boxes)
    for attempt in timings.attempts:
        begin, length = attempt.begin / unit, (attempt.end - attempt.begin) / unit
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": _DIED}
        style["hatch"] = "xxx" if attempt.died else "..."
        bar = axes.barh(attempt.worker, length, _BAR, begin, **style)
        bar.set_label("died" if attempt.died else "in progress")
    if timings.attempts:
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        axes.legend(named.values(), named.keys(), loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.set(xlim=(0, timings.seconds / unit), ylim=(timings.count - 0.5, -0.5))
    axes.set(xlabel=f"time ({name})", ylabel="worker")
    if timings.count <= _MOST_NAMED:
        axes.set_yticks(range(timings.count))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return ScalarMappable(scale, _COLOURS) if timings.chunks.size else None


def _boxes(timings: Timings) -> tuple[Any, Any, Any, Any]:
    """Begins, ends, mean durations and workers of what is drawn: chunks, or bins of them."""
    begins, ends = timings.begins, timings.begins + timings.durations
    values, workers = timings.durations, timings.workers
    if np.bincount(workers, minlength=1).max() <= _MOST_BOXES:
        return begins, ends, values, workers
    bins = (begins / timings.seconds * _MOST_BOXES).astype(int) + workers * (_MOST_BOXES + 1)
    heads = np.flatnonzero(np.diff(bins, prepend=-1))
    lengths = np.diff(np.append(heads, bins.size))
    # What a bin holds is drawn from its begin on, as long as all of it took: gaps stay to be seen.
    sums = np.add.reduceat(values, heads)
    return begins[heads], begins[heads] + sums, sums / lengths, workers[heads]


def _edges(axis: Axis) -> Any:
    return np.array([axis.span(i)[0] for i in range(len(axis))] + [axis.size])


def _map(axes: Axes, report: Report, cut: list[int], scale: Any, factor: float) -> None:
    """Draw what each chunk cost, where it lies in the array."""
    grid = report.plan.grid
    rows, columns = (grid.axes[place] for place in cut)
    cost = report.durations.reshape(len(rows), len(columns)) / factor
    mesh = axes.pcolormesh(_edges(columns), _edges(rows), cost, cmap=_COLOURS, norm=scale)
    mesh.set_rasterized(cost.size > _MOST_BOXES)
    axes.set_facecolor(_NOTHING)
    axes.set(xlabel=f"axis {cut[1]}", ylabel=f"axis {cut[0]}")
    axes.invert_yaxis()
    if 1 / 4 < columns.size / rows.size < 4:  # noqa: PLR2004 - else it would be a thread
        axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def _curve(axes: Axes, report: Report, cut: int, factor: float, unit: str, *, log: bool) -> None:
    """Draw what each chunk cost, along the axis that is cut."""
    axis = report.plan.grid.axes[cut]
    cost = report.durations / factor
    axes.stairs(cost, _edges(axis), fill=len(axis) <= _FEW, color=_CURVE)
    axes.set(xlim=(0, axis.size), xlabel=f"axis {cut}", ylabel=f"one chunk ({unit})")
    if log:
        axes.set_yscale("log")
        _plain(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
