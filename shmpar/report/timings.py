"""Durations and claims of a run, read from its ledger, the time of each worker, and a trace."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmpar.errors import format_count
from shmpar.ipc.ledger import DONE, JOINED, PENDING, WAITED, Ledger, LostClaim
from shmpar.memory.allocate import atomic_file
from shmpar.plan import describe_region

if TYPE_CHECKING:
    from shmpar.report.report import Report

Numbers = np.ndarray[Any, Any]

_MICRO = 1e6  # Why: the times of a trace are microseconds.
_TRACE_PROCESS = 1  # Why: a viewer shows the tracks of one process together.


class WorkerTime(NamedTuple):
    """The time of one worker in seconds; the three parts add up to the run's time.

    Attributes
    ----------
    worker : int
        Number of the worker. The replacement of a dead worker has the same number.
    chunks, claims : int
        Chunks that the worker computed, and claims that it took them in.
    user : float
        In chunks: in the function, in cutting its arguments and in storing its result. Claims that
        ended with the death of the worker count too.
    waiting : float
        For its start, the plan, the memory of outputs, and the end of the other workers.
    overhead : float
        Loading the function, taking chunks and reporting them.
    """

    worker: int
    chunks: int
    claims: int
    user: float
    waiting: float
    overhead: float


class Claim(NamedTuple):
    """Chunks that a worker took at once.

    Attributes
    ----------
    worker : int
        Number of the worker.
    begin, end : float
        Seconds after the start of the run.
    first, last : int
        The half-open range of the chunks in :attr:`Timings.chunks`.
    """

    worker: int
    begin: float
    end: float
    first: int
    last: int


class Timings:
    """The times of a run, sorted by worker and begin.

    Parameters
    ----------
    ledger : Ledger
        The ledger of the run, or a copy.
    origin : float
        Start of the run by the clock of the slots.
    seconds : float
        Duration of the run.
    lost : sequence of LostClaim
        Claims that ended with their worker.
    complete : bool
        False for a run in flight.

    Attributes
    ----------
    n_workers : int
        Number of workers.
    chunks : ndarray of int
        Numbers of the chunks whose duration is known.
    workers : ndarray of int
        The worker of each of these chunks.
    begins, ends, durations : ndarray of float
        The start and the end of each of these chunks, in seconds after the start of the run, and
        its duration.
    claim_starts : ndarray of int
        Index of each claim's first chunk in the arrays above.
    computed : int
        Chunks that this run has computed, including those of unknown duration.
    done_before : int
        Chunks that were done before this run.
    joined : dict of int to float
        Start of each worker that computed chunks: the time when it received the plan, in seconds
        after the start of the run.
    output_waits : list of float
        Seconds that each worker waited for its outputs to be allocated.
    attempts : list of LostClaim
        Claims that ended with their worker, and the claims in progress.
    """

    def __init__(
        self,
        ledger: Ledger,
        origin: float,
        seconds: float,
        lost: Sequence[LostClaim] = (),
        *,
        complete: bool = True,
    ) -> None:
        self.seconds = seconds
        self.n_workers = ledger.workers
        times, settled = ledger.times, ledger.status != PENDING
        timed = times.seconds > 0
        claimed = timed | (times.begin > 0) | (times.claimant > 0)
        self.computed = int((settled & claimed).sum())
        # Why: DONE alone, since the claim of a chunk that failed with its worker may be unknown.
        self.done_before = int(((ledger.status == DONE) & ~claimed).sum())
        known = np.flatnonzero(settled & timed)
        workers, begins = ledger.claims(known)
        order = np.lexsort((known, begins, workers))
        self.chunks, self.workers, begins = known[order], workers[order].astype(int), begins[order]
        self.durations: Numbers = times.seconds[self.chunks].astype(float)
        changes = (np.diff(self.workers) != 0) | (np.diff(begins) != 0)
        starts = np.flatnonzero(np.concatenate(([self.chunks.size > 0], changes)))
        self.claim_starts: Numbers = starts
        # A chunk begins when the chunks before it in its claim are done.
        before = np.cumsum(self.durations) - self.durations
        lengths = np.diff(np.append(starts, self.chunks.size))
        self.begins: Numbers = begins + before - np.repeat(before[starts], lengths)
        self.ends: Numbers = self.begins + self.durations
        slots = [ledger.slot(worker) for worker in range(ledger.workers)]
        joined = [slot[JOINED] for slot in slots]
        self.joined = {i: time * 1e-9 - origin for i, time in enumerate(joined) if time}
        self.output_waits = [slot[WAITED] * 1e-9 for slot in slots]
        current = () if complete else _in_progress(ledger, origin, seconds)
        self.attempts = [self._without_known(claim) for claim in (*lost, *current)]

    def _without_known(self, claim: LostClaim) -> LostClaim:
        """Let the claim begin after its last chunk of known duration."""
        ends = self.ends[self.workers == claim.worker]
        last = ends[ends <= claim.end].max(initial=claim.begin)
        return claim._replace(begin=min(float(last), claim.end))

    @property
    def claims(self) -> list[Claim]:
        """Every claim with a chunk of known duration, sorted by worker and begin."""
        firsts, lasts = self.claim_starts, np.append(self.claim_starts, self.chunks.size)[1:]
        columns = self.workers[firsts], self.begins[firsts], self.ends[lasts - 1], firsts, lasts
        return [Claim(*row) for row in zip(*[one.tolist() for one in columns], strict=True)]

    @property
    def span(self) -> tuple[float, float]:
        """The begin of the first chunk and the end of the last."""
        end = float(self.ends.max(initial=0.0))
        return float(self.begins.min(initial=end)), end

    def of_workers(self) -> tuple[WorkerTime, ...]:
        """Return the time of each worker."""
        claims: list[list[Claim]] = [[] for _ in range(self.n_workers)]
        for claim in self.claims:
            claims[claim.worker].append(claim)
        return tuple([self._of_worker(worker, taken) for worker, taken in enumerate(claims)])

    def _of_worker(self, worker: int, claims: Sequence[Claim]) -> WorkerTime:
        busy = [(claim.begin, claim.end, False) for claim in claims]
        busy += [(one.begin, one.end, one.died) for one in self.attempts if one.worker == worker]
        busy.sort()
        overhead = 0.0
        if busy and worker in self.joined:
            overhead += max(0.0, busy[0][0] - max(self.joined[worker], 0.0))
        for (_, end, died), (begin, _, _) in itertools.pairwise(busy):
            if not died:  # Why: after a death the worker's replacement was starting.
                overhead += max(0.0, begin - end)
        # Why: the minima, since all times are rounded and the three parts must add up.
        user = min(sum(end - begin for begin, end, _ in busy), self.seconds)
        overhead = min(max(0.0, overhead - self.output_waits[worker]), self.seconds - user)
        chunks = sum(claim.last - claim.first for claim in claims)
        waiting = self.seconds - user - overhead
        return WorkerTime(worker, chunks, len(claims), user, waiting, overhead)


def _in_progress(ledger: Ledger, origin: float, now: float) -> Iterator[LostClaim]:
    for worker in range(ledger.workers):
        held = ledger.held(worker)
        if held is not None and held.since:
            begin = min(max(0.0, held.since * 1e-9 - origin), now)
            yield LostClaim(worker, None, begin, now, died=False)


def write_trace(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a trace in Chrome's format, which Perfetto opens.

    A failure leaves no file, or the file that was there.
    """
    trace = {"traceEvents": list(trace_events(report)), "displayTimeUnit": "ms"}
    text = json.dumps(trace, separators=(",", ":")).encode()
    with atomic_file(os.fspath(path), len(text), mode=0o666, replace=True) as fd:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]


def trace_events(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the trace's events: names of the tracks, then slices, outer slices first."""
    yield _metadata("process_name", 0, name=f"shmpar {report.verb}({report.function})")
    for worker in range(report.timings.n_workers):
        yield _metadata("thread_name", worker, name=f"worker {worker}")
        yield _metadata("thread_sort_index", worker, sort_index=worker)
    for claim in report.timings.claims:
        yield from _trace_claim(report, claim)
    for lost in report.timings.attempts:
        name = "died" if lost.died else "in progress"
        if lost.chunk is not None:
            name = f"{name} in chunk {lost.chunk}"
        yield _slice(name, lost.worker, lost.begin, lost.end)


def _trace_claim(report: Report, claim: Claim) -> Iterator[dict[str, Any]]:
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
    return {"ph": "M", "name": key, "pid": _TRACE_PROCESS, "tid": worker, "args": values}


def _slice(name: str, worker: int, begin: float, end: float, **values: Any) -> dict[str, Any]:
    # Why: each end is rounded, not the length, so that inner slices end with their outer slice.
    start, stop = round(begin * _MICRO, 3), round(end * _MICRO, 3)
    times = {"ts": start, "dur": round(stop - start, 3)}
    return {"ph": "X", "name": name, "pid": _TRACE_PROCESS, "tid": worker, **times, "args": values}
