"""When each chunk was computed, by whom, and what the workers did otherwise.

Imports account and ledger.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.ipc.ledger import DONE, JOINED, PENDING, WAITED, Ledger, LostClaim

__all__ = ["Claim", "Timings", "WorkerTime", "durations_by_chunk"]

Numbers = np.ndarray[Any, Any]


class WorkerTime(NamedTuple):
    """Where the time of one worker went, in seconds; the three add up to the run's.

    Attributes
    ----------
    worker : int
        Its number. A worker that takes the place of one that died has the same.
    chunks, claims : int
        Chunks that it computed, and how often it took some.
    user : float
        In chunks: the function, and around it the cutting of its arguments and the storing of its
        result (about half a microsecond for a row, three for a block); attempts that ended with
        the worker too.
    waiting : float
        For its start, the plan, the memory of outputs, and the others to come to an end.
    overhead : float
        Loading the function, taking chunks and saying that they are done.
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
        Which.
    begin, end : float
        Seconds after the run's begin.
    first, last : int
        Their places in :attr:`Timings.chunks`, half-open.
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
        Of the run, or a copy.
    origin : float
        When the run began, by the clock of the slots.
    seconds : float
        How long it took.
    attempts : sequence of LostClaim
        What ended with a worker.
    complete : bool
        Whether the run is over.

    Attributes
    ----------
    chunks : ndarray of int
        Numbers of the chunks whose time is known.
    workers : ndarray of int
        Who computed them.
    begins, durations : ndarray of float
        Seconds.
    heads : ndarray of int
        Where each claim begins in the others.
    computed : int
        Chunks that this run has computed, also those of which the time is not known.
    before : int
        Chunks that were done before this run.
    joined : list of float
        When workers that computed some were given the plan: seconds after the run's begin.
    attempts : list of LostClaim
        Attempts that ended with a worker, and what is computed just now.
    """

    def __init__(
        self,
        ledger: Ledger,
        origin: float,
        seconds: float,
        attempts: Sequence[LostClaim] = (),
        *,
        complete: bool = True,
    ) -> None:
        self.seconds = seconds
        self.count = ledger.workers
        times, settled = ledger.times, ledger.status != PENDING
        timed = times.seconds > 0
        claimed = timed | (times.begin > 0) | (times.claimant > 0)
        self.computed = int((settled & claimed).sum())
        # One that failed with its worker may not be noted; one that is done is.
        self.before = int(((ledger.status == DONE) & ~claimed).sum())
        known = np.flatnonzero(settled & timed)
        workers, begins = ledger.claims(known)
        order = np.lexsort((known, begins, workers))
        self.chunks, self.workers, begins = known[order], workers[order].astype(int), begins[order]
        self.durations: Numbers = times.seconds[self.chunks].astype(float)
        changes = (np.diff(self.workers) != 0) | (np.diff(begins) != 0)
        self.heads: Numbers = np.flatnonzero(np.concatenate(([self.chunks.size > 0], changes)))
        self.begins: Numbers = begins + self._within_claims()
        slots = [ledger.slot(worker) for worker in range(self.count)]
        self._joined = [slot[JOINED] * 1e-9 - origin if slot[JOINED] else None for slot in slots]
        self.joined = [joined for joined in self._joined if joined is not None]
        self._waited = [slot[WAITED] * 1e-9 for slot in slots]
        current = [] if complete else _current(ledger, origin, seconds)
        self.attempts = [self._clipped(attempt) for attempt in (*attempts, *current)]

    def _within_claims(self) -> Numbers:
        """For each chunk, the time that the ones before it in its claim took."""
        before = np.cumsum(self.durations) - self.durations
        lengths = np.diff(np.append(self.heads, self.chunks.size))
        within: Numbers = before - np.repeat(before[self.heads], lengths)
        return within

    def _clipped(self, attempt: LostClaim) -> LostClaim:
        """An attempt without the chunks of its claim whose time is known."""
        ends = (self.begins + self.durations)[self.workers == attempt.worker]
        last = ends[ends <= attempt.end].max(initial=attempt.begin)
        return attempt._replace(begin=min(float(last), attempt.end))

    @property
    def claims(self) -> list[Claim]:
        """Every claim of which a chunk is known, sorted by worker and begin."""
        heads = [*self.heads.tolist(), self.chunks.size]
        found = []
        for first, last in itertools.pairwise(heads):
            end = float(self.begins[last - 1] + self.durations[last - 1])
            begin = float(self.begins[first])
            found.append(Claim(int(self.workers[first]), begin, end, first, last))
        return found

    @property
    def serial(self) -> float:
        """Seconds that one worker alone would need: the sum of the durations."""
        return float(self.durations.sum())

    @property
    def span(self) -> tuple[float, float]:
        """From the begin of the first chunk to the end of the last."""
        if not self.chunks.size:
            return 0.0, 0.0
        return float(self.begins.min()), float((self.begins + self.durations).max())

    @property
    def last_ends(self) -> list[float]:
        """When each worker was through with its last chunk; without one, when the first began."""
        begin, _ = self.span
        found = [begin] * self.count
        for claim in self.claims:
            found[claim.worker] = max(found[claim.worker], claim.end)
        return found

    @property
    def awaited(self) -> float:
        """Seconds that a worker has waited for its outputs to be made, at most."""
        return max(self._waited, default=0.0)

    def of_workers(self) -> tuple[WorkerTime, ...]:
        """Where the time of each worker went."""
        claims: list[list[Claim]] = [[] for _ in range(self.count)]
        for claim in self.claims:
            claims[claim.worker].append(claim)
        return tuple([self._of_worker(worker, claims[worker]) for worker in range(self.count)])

    def _of_worker(self, worker: int, claims: Sequence[Claim]) -> WorkerTime:
        mine = [one for one in self.attempts if one.worker == worker]
        busy = sorted([(one.begin, one.end, False) for one in claims])
        busy = sorted([*busy, *[(one.begin, one.end, one.died) for one in mine]])
        user = sum(end - begin for begin, end, _ in busy)
        overhead = 0.0
        if busy and (joined := self._joined[worker]) is not None:
            overhead += max(0.0, busy[0][0] - max(joined, 0.0))
        for (_, end, died), (begin, _, _) in itertools.pairwise(busy):
            if not died:  # else its successor was being started
                overhead += max(0.0, begin - end)
        overhead = max(0.0, overhead - self._waited[worker])
        user = min(user, self.seconds)  # both were rounded
        overhead = min(overhead, self.seconds - user)
        chunks = sum(claim.last - claim.first for claim in claims)
        waiting = self.seconds - user - overhead
        return WorkerTime(worker, chunks, len(claims), user, waiting, overhead)


def _current(ledger: Ledger, origin: float, now: float) -> list[LostClaim]:
    """What the workers hold at this moment."""
    found = []
    for worker in range(ledger.workers):
        held = ledger.held(worker)
        if held is not None and held.since:
            begin = min(max(0.0, held.since * 1e-9 - origin), now)
            found.append(LostClaim(worker, None, begin, now, died=False))
    return found


def durations_by_chunk(ledger: Ledger) -> Numbers:
    """Seconds that each chunk took, by its number; NaN where it is not known."""
    seconds: Numbers = ledger.times.seconds.astype(np.float32)
    seconds[(ledger.status != DONE) | (seconds == 0)] = np.nan
    return seconds
