"""Reports, runs and pools for notebooks, as HTML.

Colours are borders, bars and accents: text has the colour of the page, which may be light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from shmpar.display import (
    BLUE,
    format_bytes,
    format_call,
    format_seconds,
    html_progress,
    html_table,
)
from shmpar.errors import format_count
from shmpar.report import text
from shmpar.report.timings import WorkerTime

if TYPE_CHECKING:
    from shmpar.pool import Pool
    from shmpar.report.report import Report
    from shmpar.runtime.run import Run

_MAX_SLOWEST = 5
_MAX_ERROR = 400  # characters
_MAX_WORKERS = 64
_COLOURS = {"in chunks": BLUE, "overhead": "#e69f00", "waiting": "#d9d9d9"}


def render(report: Report) -> str:
    """Return a fragment of HTML."""
    parts = [f"<strong>{escape(text.title(report))}</strong>"]
    if advice := report.advice:
        style = f"border-left:3px solid {_COLOURS['overhead']};padding-left:0.6em;margin:0.4em 0"
        parts.append(f"<div style='{style}'>{escape(advice)}</div>")
    parts.append(html_table([(label, escape(fact)) for label, fact in text.facts(report)], "<<"))
    if report.hosts:
        rows = [tuple(map(escape, row)) for row in text.host_rows(report)]
        parts += _workers(rows, "<>>>>><", text.HOST_COLUMNS)
    elif report.computed:
        rows = text.worker_rows(report)
        bars = [_bar(one, report.seconds) for one in report.worker_times[:_MAX_WORKERS]]
        rows[:_MAX_WORKERS] = [(*row, bar) for row, bar in zip(rows, bars, strict=False)]
        parts += _workers(rows, ">>>>>><", [*map(_underlined, text.WORKER_COLUMNS), ""])
    if report.computed:
        head = ("slowest chunk", "region", "took", "worker")
        parts.append(html_table(text.slowest_rows(report, _MAX_SLOWEST), "><>>", head))
    return f"<div>{''.join(parts)}</div>"


def _workers(rows: Sequence[Sequence[str]], align: str, head: Sequence[str]) -> list[str]:
    """Return a table of the first workers or hosts, and the number of the others."""
    more = len(rows) - _MAX_WORKERS
    note = f"<div>... and {more} more</div>" if more > 0 else ""
    return [html_table(rows[:_MAX_WORKERS], align, head), note]


def _underlined(name: str) -> str:
    """Underline the name of a column with its colour in the bars."""
    colour = _COLOURS.get(name)
    return f"<span style='border-bottom:0.25em solid {colour}'>{name}</span>" if colour else name


def _bar(one: WorkerTime, whole: float) -> str:
    """Return a bar that is as long as the run, divided by the time of a worker."""
    times = {"in chunks": one.user, "overhead": one.overhead, "waiting": one.waiting}
    parts = [
        f"<span title='{name} {format_seconds(value)}' style='display:inline-block;"
        f"height:0.8em;width:{100 * value / max(whole, 1e-9):.2f}%;"
        f"background:{_COLOURS[name]}'></span>"
        for name, value in times.items()
    ]
    style = "width:16em;margin-top:0.3em;white-space:nowrap;line-height:0"
    return f"<div style='{style}'>{''.join(parts)}</div>"


def render_run(run: Run, status: str) -> str:
    """Return a fragment of HTML: the state in plain words, the progress, and the report."""
    execution, (settled, chunks) = run.execution, run.progress
    report, seconds = run.report, format_seconds(run.report.seconds)
    call, bad = format_call(report.verb, report.function), run.done() and settled < chunks
    style = "width:12em;vertical-align:middle"
    bar = html_progress(settled, chunks, style, bad=bad or bool(execution.errors))
    rows = [
        ("state", escape(status)),
        (f"{execution.noun}s", f"{bar} {settled:,} of {chunks:,}"),
        ("time", seconds),
    ]
    if execution.errors:
        first = str(run.failed[0])
        first = first if len(first) <= _MAX_ERROR else f"{first[:_MAX_ERROR]}..."
        style = "overflow-wrap:anywhere;white-space:pre-wrap"
        first = f"<span style='{style}'>{escape(first)}</span>"
        rows.append(("failures", f"{len(execution.errors):,}; the first: {first}"))
        rows.append(("", "<code>run.failed</code> has all errors"))
    summary = "<summary style='cursor:pointer'>report (<code>run.report</code>)</summary>"
    return (
        f"<div><strong>Run: {escape(call)}</strong>{html_table(rows, '<<')}"
        f"<details>{summary}{render(report)}</details></div>"
    )


def render_pool(pool: Pool) -> str:
    """Return a fragment of HTML: the workers, the memory, and the last run."""
    if pool.engine == "serial":
        workers = "none: the calling thread computes"
    elif kind := {"processes": "process", "threads": "thread"}.get(pool.engine):
        workers = format_count(pool.n_workers, f"worker {kind}", f"worker {pool.engine}")
    else:
        workers = "on the hosts"
    memory, run = pool.memory, pool.last_run
    segments = format_count(len(memory), "segment")
    rows = [
        ("workers", f"{workers}{', ended' if pool.closed else ''}"),
        ("memory", f"{format_bytes(memory.nbytes)} in {segments}" if memory else "none in use"),
        ("last run", "none" if run is None else escape(repr(run)[len("<shmpar.Run: ") : -1])),
    ]
    state = "closed" if pool.closed else "open"
    return f"<div><strong>Pool: {pool.engine}, {state}</strong>{html_table(rows, '<<')}</div>"
