"""A picture of a run: a timeline of the workers, and the cost of each chunk."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.display import BLUE, ORANGE
from shmpar.grid import Axis
from shmpar.report.views import title
from shmpar.stores.formats import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from shmpar.report.report import Report
    from shmpar.report.timings import Timings

_COLOURS = "viridis"  # Why: readable in grey and for colour-blind readers
_BACKGROUND = "#efefef"
_BAR_HEIGHT = 0.8  # of the distance between two workers
_WORKER_INCHES = 0.32
_MAX_BOXES = 2_000  # per worker; Why: chunks closer than a pixel are drawn as one box
_MAX_OUTLINED = 300  # chunks with an outline each
_MAX_LABELLED = 20  # workers with a number beside their line
_LOG_RATIO = 10  # of the longest to the shortest duration
_FEW_LABELS = 1_000  # the same; Why: with 1, 2 and 5 of each decade, more labels would overlap


def png(figure: Figure, *, scale: int = 2) -> tuple[bytes, dict[str, int]]:
    """Return a figure as a PNG file of `scale` times its size, and its size in pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=scale * figure.dpi)
    width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
    return file.getvalue(), {"width": width, "height": height}


def draw(report: Report) -> Figure:
    """Draw a run."""
    library("matplotlib", "report.plot()")
    from matplotlib.figure import Figure

    timings = report.timings
    cut = [number for number, axis in enumerate(report.plan.grid.axes) if len(axis) > 1]
    heights = [max(1.2, min(_WORKER_INCHES * timings.n_workers, 6.0))]
    if timings.chunks.size and 1 <= len(cut) <= 2:  # noqa: PLR2004 - a map has two axes
        heights.append(1.8 * len(cut))
    figure = Figure(figsize=(8, sum(heights) + 1.2), layout="constrained")
    figure.suptitle(title(report), fontsize="medium")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    scale = _scale(timings.durations)
    boxes = _timeline(panels[0], timings, scale)
    if len(panels) > 1:
        (_curve if len(cut) == 1 else _map)(panels[1], report, cut, scale)
    if timings.chunks.size:
        bar = figure.colorbar(boxes, ax=list(panels), aspect=30, pad=0.02, panchor=False)
        bar.set_label("duration of a chunk")
        _label_seconds(bar.ax.yaxis, scale)
    # Why: IPython shows figures of matplotlib only after pyplot was imported.
    figure._repr_png_ = partial(png, figure)  # type: ignore[attr-defined]
    return figure


def _scale(durations: Any) -> Any:
    """Return the scale of the colours: logarithmic for durations that differ much."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = durations.min(initial=np.inf), durations.max(initial=0.0)
    return LogNorm(low, high) if high > _LOG_RATIO * low else Normalize(0, high or 1.0)


def _label_seconds(axis: Any, scale: Any = None) -> None:
    """Label an axis with durations such as 20 ms; it has the scale of the colours, if any."""
    from matplotlib.ticker import EngFormatter, LogLocator

    if scale is not None and scale.vmin > 0:
        few = scale.vmax < _FEW_LABELS * scale.vmin
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
        axis.set_minor_locator(LogLocator(subs=(), numticks=12))
    axis.set_major_formatter(EngFormatter("s"))


def _timeline(axes: Axes, timings: Timings, scale: Any) -> Any:
    """Draw a box for each chunk, and return the boxes."""
    from matplotlib.collections import PolyCollection

    begins, ends, durations, workers = _boxes(timings)
    low, high = workers - _BAR_HEIGHT / 2, workers + _BAR_HEIGHT / 2
    corners = ((begins, low), (ends, low), (ends, high), (begins, high))
    shapes: Any = np.stack([np.stack(corner, -1) for corner in corners], 1)
    width = 0.5 if len(shapes) <= _MAX_OUTLINED else 0
    edge: dict[str, Any] = {"linewidths": width, "edgecolors": _BACKGROUND}
    boxes = PolyCollection(shapes, array=durations, cmap=_COLOURS, norm=scale, **edge)
    axes.axhspan(-0.5, timings.n_workers - 0.5, color=_BACKGROUND, zorder=0, linewidth=0)
    axes.add_collection(boxes)
    for died, label, hatch in ((True, "died", "xxx"), (False, "in progress", "...")):
        claims = [claim for claim in timings.attempts if claim.died is died]
        if bars := [(claim.worker, claim.end - claim.begin, claim.begin) for claim in claims]:
            lines, lengths, begins = zip(*bars, strict=True)
            style: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "hatch": hatch}
            axes.barh(lines, lengths, _BAR_HEIGHT, begins, label=label, **style)
    if timings.attempts:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    # Why at least a line: a run that failed before its begin has no ledger.
    axes.set(xlim=(0, timings.seconds), ylim=(max(timings.n_workers, 1) - 0.5, -0.5))
    axes.set(xlabel="time since the call", ylabel="worker")
    _label_seconds(axes.xaxis)
    if timings.n_workers <= _MAX_LABELLED:
        axes.set_yticks(range(timings.n_workers))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return boxes


def _boxes(timings: Timings) -> tuple[Any, Any, Any, Any]:
    """Return begins, ends, mean durations and workers of the boxes: chunks, or bins of chunks."""
    begins, durations, workers = timings.begins, timings.durations, timings.workers
    if np.bincount(workers, minlength=1).max() <= _MAX_BOXES:
        return begins, begins + durations, durations, workers
    bins = (begins / timings.seconds * _MAX_BOXES).astype(int) + workers * (_MAX_BOXES + 1)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    lengths = np.diff(np.append(starts, bins.size))
    # Why: a bin is drawn as long as all of its chunks took, so that gaps stay visible.
    sums = np.add.reduceat(durations, starts)
    return begins[starts], begins[starts] + sums, sums / lengths, workers[starts]


def _edges(axis: Axis) -> Any:
    return np.array([*[part.start for part in axis], axis.size])


def _map(axes: Axes, report: Report, cut: list[int], scale: Any) -> None:
    """Draw the cost of each chunk over the two axes that are cut."""
    rows, columns = (report.plan.grid.axes[number] for number in cut)
    cost = report.durations.reshape(len(rows), len(columns))
    mesh = axes.pcolormesh(_edges(columns), _edges(rows), cost, cmap=_COLOURS, norm=scale)
    mesh.set_rasterized(cost.size > _MAX_BOXES)
    axes.set_facecolor(_BACKGROUND)
    axes.set(xlabel=f"axis {cut[1]}", ylabel=f"axis {cut[0]}")
    axes.invert_yaxis()
    if 1 / 4 < columns.size / rows.size < 4:  # noqa: PLR2004 - a narrower map would be a line
        axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def _curve(axes: Axes, report: Report, cut: list[int], scale: Any) -> None:
    """Draw the cost of each chunk along the axis that is cut."""
    axis = report.plan.grid.axes[cut[0]]
    edges, cost = _edges(axis), report.durations
    if len(axis) <= _MAX_OUTLINED:
        axes.stairs(cost, edges, fill=True, color=BLUE)
    else:  # Why: matplotlib looks at each step of stairs in Python.
        axes.plot(edges, np.append(cost, cost[-1]), color=BLUE, drawstyle="steps-post")
    axes.set(xlim=(0, axis.size), xlabel=f"axis {cut[0]}", ylabel="duration of a chunk")
    if scale.vmin > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _label_seconds(axes.yaxis, scale)
    axes.spines[["top", "right"]].set_visible(False)
