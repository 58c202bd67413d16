"""The report as a trace in Chrome's format, which Perfetto opens.

Times are microseconds after the start of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmpar.errors import format_count
from shmpar.memory.allocate import atomic_file
from shmpar.plan import describe_region
from shmpar.report.timings import Claim

if TYPE_CHECKING:
    from shmpar.report.report import Report

_MICRO = 1e6
_PID = 1  # Why: a viewer shows the tracks of one process together.


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the trace; a failure leaves no file, or the file that was there."""
    trace = {"traceEvents": list(events(report)), "displayTimeUnit": "ms"}
    text = json.dumps(trace, separators=(",", ":")).encode()
    with atomic_file(os.fspath(path), len(text), mode=0o666, replace=True) as fd:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]


def events(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the trace's events: names of the tracks, then slices, outer slices first."""
    yield _metadata("process_name", 0, name=f"shmpar {report.verb}({report.function})")
    for worker in range(report.timings.n_workers):
        yield _metadata("thread_name", worker, name=f"worker {worker}")
        yield _metadata("thread_sort_index", worker, sort_index=worker)
    for claim in report.timings.claims:
        yield from _claim(report, claim)
    for lost in report.timings.attempts:
        name = "died" if lost.died else "in progress"
        if lost.chunk is not None:
            name = f"{name} in chunk {lost.chunk}"
        yield _slice(name, lost.worker, lost.begin, lost.end)


def _claim(report: Report, claim: Claim) -> Iterator[dict[str, Any]]:
    times = report.timings
    columns = times.chunks, times.durations, times.begins
    chunks, durations, begins = (one[claim.first : claim.last].tolist() for one in columns)
    if len(chunks) > 1:
        # Why: the number of chunks too, since the tickets of a retry may skip chunks.
        name = f"{format_count(len(chunks), 'chunk')}, {min(chunks)} to {max(chunks)}"
        yield _slice(name, claim.worker, claim.begin, claim.end, chunks=len(chunks))
        if min(durations) == max(durations):  # Why: only their mean is known.
            return
    for chunk, begin, duration in zip(chunks, begins, durations, strict=True):
        region = describe_region(report.plan.region(chunk))
        end = min(begin + duration, claim.end)
        yield _slice(f"chunk {chunk}", claim.worker, begin, end, region=region)


def _metadata(key: str, worker: int, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "name": key, "pid": _PID, "tid": worker, "args": values}


def _slice(name: str, worker: int, begin: float, end: float, **values: Any) -> dict[str, Any]:
    # Why: each end is rounded, not the length, so that inner slices end with their outer slice.
    start, stop = round(begin * _MICRO, 3), round(end * _MICRO, 3)
    times = {"ts": start, "dur": round(stop - start, 3)}
    return {"ph": "X", "name": name, "pid": _PID, "tid": worker, **times, "args": values}
