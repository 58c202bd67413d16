"""The report as a trace of Chrome's format, which Perfetto opens.

Imports plan and segment.  Times are microseconds after the run's begin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmpar.memory.allocate import atomic_file
from shmpar.plan import describe_region
from shmpar.report.timings import Claim

if TYPE_CHECKING:
    from shmpar.report.report import Report

__all__ = ["events", "write"]

_MICRO = 1e6
_PID = 1  # of the trace, for what is shown together


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the trace; the file is there whole or not at all."""
    trace = {"traceEvents": list(events(report)), "displayTimeUnit": "ms"}
    text = json.dumps(trace, separators=(",", ":")).encode()
    with atomic_file(os.fspath(path), len(text), mode=0o666, replace=True) as fd:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]


def events(report: Report) -> Iterator[dict[str, Any]]:
    """The trace's events: names of the tracks, then slices; an outer one before its inner ones."""
    yield _name("process_name", 0, f"shmpar {report.verb}({report.function})")
    for worker in range(report.timings.count):
        yield _name("thread_name", worker, f"worker {worker}")
        yield {**_name("thread_sort_index", worker, ""), "args": {"sort_index": worker}}
    for claim in report.timings.claims:
        yield from _claim(report, claim)
    for attempt in report.timings.attempts:
        name = "died" if attempt.died else "in progress"
        if attempt.chunk is not None:
            name = f"{name} in chunk {attempt.chunk}"
        yield _slice(name, attempt.worker, attempt.begin, attempt.end, {})


def _claim(report: Report, claim: Claim) -> Iterator[dict[str, Any]]:
    timings = report.timings
    chunks = timings.chunks[claim.first : claim.last].tolist()
    durations = timings.durations[claim.first : claim.last].tolist()
    if len(chunks) > 1:
        # Tickets of a retry may skip chunks, so the two ends do not say how many there are.
        name = f"{len(chunks)} chunks, {min(chunks)} to {max(chunks)}"
        yield _slice(name, claim.worker, claim.begin, claim.end, {"chunks": len(chunks)})
        if min(durations) == max(durations):  # only their mean is known
            return
    begins = timings.begins[claim.first : claim.last].tolist()
    for chunk, begin, duration in zip(chunks, begins, durations, strict=True):
        where = {"region": describe_region(report.plan.region(chunk))}
        end = min(begin + duration, claim.end)
        yield _slice(f"chunk {chunk}", claim.worker, begin, end, where)


def _name(what: str, worker: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PID, "tid": worker, "args": {"name": name}}


def _slice(
    name: str, worker: int, begin: float, end: float, more: dict[str, Any]
) -> dict[str, Any]:
    # Rounding each end, not the length: inner slices end where their outer one does.
    start, stop = round(begin * _MICRO, 3), round(end * _MICRO, 3)
    took = round(stop - start, 3)
    return {
        "ph": "X",
        "name": name,
        "pid": _PID,
        "tid": worker,
        "ts": start,
        "dur": took,
        "args": more,
    }
