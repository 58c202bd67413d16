"""The report for notebooks: tables, and a bar for each worker.

Imports plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING

from shmpar.plan import describe_region
from shmpar.report.text import facts, seconds, title, worker_rows
from shmpar.report.timings import WorkerTime

if TYPE_CHECKING:
    from shmpar.report.report import Report

__all__ = ["page"]

_SHOWN = 5  # of the slowest chunks
_WORKERS = 64
# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {"in chunks": "#0072b2", "overhead": "#e69f00", "waiting": "#d9d9d9"}
_CELL = "padding:0.1em 0.8em 0.1em 0;text-align:{}"


def page(report: Report) -> str:
    """A fragment of HTML; all that the user's code has named is escaped."""
    parts = [f"<div><strong>{escape(title(report))}</strong>"]
    if advice := report.advice:
        line = f"border-left:3px solid {_COLOURS['overhead']}"
        parts.append(
            f"<div style='{line};padding-left:0.6em;margin:0.4em 0'>{escape(advice)}</div>"
        )
    parts.append(_table((), facts(report), left={0, 1}))
    if report.computed:
        rows = worker_rows(report)[:_WORKERS]
        bars = [_bar(one, report.seconds) for one in report.worker_times[:_WORKERS]]
        head = ("worker", "chunks", "claims", "in chunks", "waiting", "overhead", "")
        colours = {head.index(name): colour for name, colour in _COLOURS.items()}
        parts.append(_table(head, [(*row, "") for row in rows], bars=bars, colours=colours))
        if (more := len(report.worker_times) - _WORKERS) > 0:
            parts.append(f"<div>... and {more} more</div>")
        slow = [
            (str(one.chunk), describe_region(one.region), seconds(one.seconds), str(one.worker))
            for one in report.slowest(_SHOWN)
        ]
        parts.append(_table(("slowest chunk", "region", "took", "worker"), slow, left={1}))
    return "".join([*parts, "</div>"])


def _table(
    head: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    left: frozenset[int] | set[int] = frozenset(),
    bars: list[str] | None = None,
    colours: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """A table; a name in the head is underlined with its colour in the bars."""
    lines = []
    if head:
        cells = [
            _cell("th", name, left=place in left, line=colours.get(place))
            for place, name in enumerate(head)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for number, row in enumerate(rows):
        cells = [_cell("td", value, left=place in left) for place, value in enumerate(row)]
        if bars is not None:
            cells[-1] = f"<td>{bars[number]}</td>"
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table style='margin:0.4em 0'>{''.join(lines)}</table>"


def _cell(tag: str, value: str, *, left: bool, line: str | None = None) -> str:
    style, text = _CELL.format("left" if left else "right"), escape(value)
    if line is not None:
        text = f"<span style='border-bottom:0.25em solid {line}'>{text}</span>"
    return f"<{tag} style='{style}'>{text}</{tag}>"


def _bar(one: WorkerTime, whole: float) -> str:
    """Where a worker's time went, as a bar of the run's length."""
    shares = {"in chunks": one.user, "overhead": one.overhead, "waiting": one.waiting}
    parts = [
        f"<span title='{name} {seconds(value)}' style='display:inline-block;height:0.8em;"
        f"width:{100 * value / max(whole, 1e-9):.2f}%;background:{_COLOURS[name]}'></span>"
        for name, value in shares.items()
    ]
    return f"<div style='width:16em;white-space:nowrap;line-height:0'>{''.join(parts)}</div>"
