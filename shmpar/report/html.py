"""The report for notebooks: HTML tables, and a bar per worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from shmpar.report import text
from shmpar.report.timings import WorkerTime

if TYPE_CHECKING:
    from shmpar.report.report import Report

_MAX_SLOWEST = 5
_MAX_WORKERS = 64
# Why: Okabe and Ito's colours stay distinct for colour-blind readers.
_COLOURS = {"in chunks": "#0072b2", "overhead": "#e69f00", "waiting": "#d9d9d9"}
_SIDES = {"<": "left", ">": "right"}


def render(report: Report) -> str:
    """Return a fragment of HTML."""
    parts = [f"<strong>{escape(text.title(report))}</strong>"]
    if advice := report.advice:
        style = f"border-left:3px solid {_COLOURS['overhead']};padding-left:0.6em;margin:0.4em 0"
        parts.append(f"<div style='{style}'>{escape(advice)}</div>")
    parts.append(_table([(label, escape(fact)) for label, fact in text.facts(report)], "<<"))
    if report.computed:
        bars = [_bar(one, report.seconds) for one in report.worker_times[:_MAX_WORKERS]]
        rows = [(*row, bar) for row, bar in zip(text.worker_rows(report), bars, strict=False)]
        parts.append(_table(rows, ">>>>>><", [*map(_underlined, text.WORKER_COLUMNS), ""]))
        if (more := len(report.worker_times) - _MAX_WORKERS) > 0:
            parts.append(f"<div>... and {more} more</div>")
        head = ("slowest chunk", "region", "took", "worker")
        parts.append(_table(text.slowest_rows(report, _MAX_SLOWEST), "><>>", head))
    return f"<div>{''.join(parts)}</div>"


def _table(rows: Iterable[Sequence[str]], align: str, head: Sequence[str] = ()) -> str:
    """Return a table of cells that hold HTML.

    Invariant: the caller has escaped every text that the user's code has named.
    """
    cell = "<{0} style='padding:0.1em 0.8em 0.1em 0;text-align:{1}'>{2}</{0}>"
    parts = ["<table style='margin:0.4em 0'>"]
    for tag, row in (*([("th", head)] if head else []), *[("td", row) for row in rows]):
        cells = zip(align, row, strict=True)
        parts += ["<tr>", *[cell.format(tag, _SIDES[side], text) for side, text in cells], "</tr>"]
    return "".join([*parts, "</table>"])


def _underlined(name: str) -> str:
    """Underline the name of a column with its colour in the bars."""
    colour = _COLOURS.get(name)
    return f"<span style='border-bottom:0.25em solid {colour}'>{name}</span>" if colour else name


def _bar(one: WorkerTime, whole: float) -> str:
    """Return a bar that is as long as the run, divided by the time of a worker."""
    times = {"in chunks": one.user, "overhead": one.overhead, "waiting": one.waiting}
    parts = [
        f"<span title='{name} {text.format_seconds(value)}' style='display:inline-block;"
        f"height:0.8em;width:{100 * value / max(whole, 1e-9):.2f}%;"
        f"background:{_COLOURS[name]}'></span>"
        for name, value in times.items()
    ]
    return f"<div style='width:16em;white-space:nowrap;line-height:0'>{''.join(parts)}</div>"
