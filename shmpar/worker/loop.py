"""The loop of a worker: claim tickets, compute their chunks, mark them in the ledger.

Guarantees
----------
- A chunk is computed only by the holder of its ticket, and marked after it was written.
- A claim takes about as many tickets as 8 ms allow, by the time of the chunks before. It never
  exceeds ``remaining / (4 x workers)``, so that uneven chunks balance.
- A worker that finds the chunks of a claim much slower leaves the rest of them to all workers.
- An exception of the function never ends the loop; the run decides on its consequences.
- Where chunks are short, the clock is read once per claim, and each chunk of it is noted with the
  mean. Where they are long, it is read once per chunk: the end of a chunk begins the next.
- The time in which a worker opens its stores, or waits for its outputs, belongs to no chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from sys import maxsize
from time import monotonic_ns, perf_counter
from typing import Any, NamedTuple

from shmpar.ipc.ledger import CURSOR, DONE, FAILED, FIRST, GENERATION, JOINED, LAST, SINCE, WAITED
from shmpar.stores.store import Store, StoreRows
from shmpar.worker.compute import (
    Abandoned,
    Assignment,
    Band,
    Channel,
    Chunks,
    Compute,
    ComputeRange,
)
from shmpar.worker.environment import exit_if_forked, inside_worker

SHORT_SECONDS = 20e-6  # Why: reading the clock costs a shorter chunk a noticeable part.
CLAIM_SECONDS = 8e-3  # Why: beside rows that fill the caches, each claim costs 30 us.
_PART_SECONDS = 1e-3
_SMALL_PARTS = 64  # Why: a 64th of quick chunks is no loss, should they be slow.
_SHARE = 4  # A claim takes at most 1 / (4 x workers) of the remaining tickets.
_TINY = 1e-9  # Why not 0: that means "not known" in the ledger.


class _Part(NamedTuple):
    """A part of a claim, of so many tickets; if it takes longer, it ends the claim."""

    tickets: int
    seconds: float

    @classmethod
    def of(cls, size: int, seconds: float) -> _Part:
        """Return a quarter of a claim, which may take 8 times as long as the chunks did before."""
        tickets = max(1, size // 4)
        return cls(tickets, 8 * max(_PART_SECONDS, seconds * tickets))


_WHOLE = _Part(maxsize, inf)


class _Clock:
    """Record the times of one worker's chunks in the ledger, for the report."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._each = False  # The duration of each chunk of the claim is measured.
        self._mean = 0.0  # Seconds per chunk of the latest claim.

    def begin(self, compute: Compute, first: int, last: int, now: float) -> Compute:
        """Begin the claim of ``first <= t < last``; return the function that computes its chunks.

        `now` is the time by :func:`time.perf_counter`.
        """
        assignment, slot, ledger = self._assignment, self._assignment.slot, self._assignment.ledger
        self._began, self._waited = max(0.0, now - assignment.origin), assignment.waited
        self._alone = last == first + 1
        if not slot[JOINED]:  # Why here: a worker that comes late, without a claim, writes nothing.
            slot[JOINED] = int((assignment.received or now) * 1e9)
        if self._alone:
            return compute  # Why: end() records all times of a single chunk at once.
        ledger.note_claim(assignment.chunks(first, last), assignment.worker, self._began)
        self._each = self._mean >= SHORT_SECONDS
        return _timed(compute, ledger.times.seconds, now) if self._each else compute

    def end(self, seconds: float, chunks: Any, count: int) -> None:
        """End the claim, which took this time for so many chunks."""
        assignment, waited = self._assignment, self._assignment.waited - self._waited
        if waited:
            assignment.slot[WAITED] += int(waited * 1e9)
        self._mean = mean = max((seconds - waited) / count, _TINY)
        if self._alone:
            assignment.ledger.note_chunk(chunks, assignment.worker, self._began, mean)
        elif not self._each:
            assignment.ledger.times.seconds[chunks] = mean


def _timed(compute: Compute, seconds: Any, began: float) -> Compute:
    """Return `compute` with a note of the duration of each chunk."""
    then = began

    def timed(chunk: int) -> None:
        nonlocal then
        try:
            compute(chunk)
        finally:
            now = perf_counter()
            seconds[chunk] = now - then
            then = now

    return timed


def work(assignment: Assignment, channel: Channel) -> bool:
    """Compute chunks until no tickets are left, or the worker or the channel has had enough.

    Returns
    -------
    bool
        No tickets are left, or the run is over.

    Raises
    ------
    KeyboardInterrupt
        If the channel is interruptible and the user interrupts; the chunk in progress is not
        marked.
    """
    with inside_worker(assignment):
        try:
            exhausted = _work(assignment, channel)
        except Abandoned:
            exhausted = True
    # Invariant: a worker that holds nothing is blamed for no chunk. After an exception that ends
    # the worker the slot stays, since it tells which chunks were finished.
    assignment.slot[LAST] = 0
    return exhausted


def _work(assignment: Assignment, channel: Channel) -> bool:
    chunks, clock, size = Chunks(assignment, channel), _Clock(assignment), 1
    claim, count, todo = assignment.tickets.claim, assignment.count, assignment.todo
    base, workers, part = assignment.plan.base, assignment.workers, _WHOLE
    arrays = *assignment.arrays, *(assignment.outputs or ())
    # Why not of stores: a chunk that decodes a piece takes long, and the next ones need that piece.
    divides = workers > 1 and not any(isinstance(one, Store | StoreRows) for one in arrays)
    while (first := claim(size)) < count:
        last = min(first + size, count)
        assignment.claimed += last - first
        began = perf_counter()
        plain = chunks.begin_claim(range(first, last) if todo is None else todo[first:last])
        ready = perf_counter()
        if base:
            plain = _from_base(plain, base)
        compute = clock.begin(plain, first, last, began)
        compute_range = chunks.compute_range if compute is plain else None
        compute_range = compute_range or _each(assignment, compute)
        opening, end = _run_claim(assignment, channel, compute_range, first, last, part)
        spent = perf_counter() - began - opening
        clock.end(spent, assignment.chunks(first, end), end - first)
        # Why from then on: a busy machine takes long to make pages, and larger claims need no more.
        seconds, remaining = (spent - (ready - began)) / (end - first), count - last
        size = _next_size(size, seconds, remaining, workers, chunks.bands)
        size = min(size, assignment.max_tickets - assignment.claimed)
        few = seconds < SHORT_SECONDS and size * _SMALL_PARTS <= count
        part = _Part.of(size, seconds) if divides and not few else _WHOLE
        if size == 0 or channel.enough():
            return False
    return True


def _from_base(compute: Compute, base: int) -> Compute:
    """Return `compute` for the numbers that the ledger has of the chunks of a span."""
    return lambda chunk: compute(base + chunk)


def _next_size(
    size: int, seconds: float, remaining: int, workers: int, bands: Iterable[Band] = ()
) -> int:
    """Return the tickets of the next claim.

    They are at most eight times those of the latest claim, or fill a band of quick chunks.
    """
    seconds = max(seconds, _TINY)  # Why: the clock may stand still.
    size = max(1, min(int(CLAIM_SECONDS / seconds), 8 * size, remaining // (_SHARE * workers)))
    for band in bands:
        if band.chunks * seconds <= band.seconds and band.chunks <= remaining // workers:
            size = max(size, band.chunks)
    return size


def _each(assignment: Assignment, compute: Compute) -> ComputeRange:
    """Return the loop over the chunks of tickets that moves the cursor ahead of each chunk."""
    slot, todo, timed = assignment.slot, assignment.todo, assignment.plan.timed

    def each(first: int, last: int) -> None:
        for ticket in range(first, last):
            if timed:
                slot[SINCE] = monotonic_ns()
            slot[CURSOR] = ticket
            compute(ticket if todo is None else todo[ticket])

    return each


def _run_claim(
    assignment: Assignment,
    channel: Channel,
    compute_range: ComputeRange,
    first: int,
    last: int,
    part: _Part,
) -> tuple[float, int]:
    """Compute the chunks of a claim, a part after the other, until a part takes too long.

    Returns
    -------
    tuple of (float, int)
        Seconds in which its stores were opened, and the ticket behind those that it has not left.
    """
    slot, plan = assignment.slot, assignment.plan
    # Invariant: the slot is emptied before it is filled, and `last` is written at the end, so that
    # a worker killed in between holds its old claim, nothing, or its whole new claim.
    slot[LAST] = 0
    slot[GENERATION] = assignment.generation
    slot[FIRST] = slot[CURSOR] = first
    ticket, failed = first, []
    slot[SINCE] = monotonic_ns()
    slot[LAST] = last
    # Why not later claims: the stores are open then.
    opening = _open_stores(assignment, channel) if assignment.claimed == last - first else 0.0
    while ticket < last:
        began = perf_counter()
        try:
            stop = min(ticket + part.tickets, last)
            compute_range(ticket, stop)
            ticket = stop
        except Abandoned:
            raise
        except BaseException as error:  # Why: SystemExit of the function is its failure too.
            exit_if_forked(error)
            # Why max: the chunk may have failed before the cursor moved to it.
            ticket = max(ticket, slot[CURSOR])
            if issubclass(type(error), KeyboardInterrupt) and channel.interruptible:
                raise
            failed.append(ticket)
            _report(assignment, channel, assignment.chunk(ticket), error)
            if plan.fail_fast:
                break
            ticket += 1
        if ticket < last and perf_counter() - began > part.seconds:
            # Invariant: the slot holds none of these tickets any more. If the worker dies before it
            # has reported them, nobody accounts for them, and the ledger tells their chunks.
            assignment.left += map(assignment.chunk, range(ticket, last))
            slot[LAST] = last = ticket
    exit_if_forked()
    if plan.returns_objects:
        channel.flush()
    _mark_done(assignment, first, failed, ticket)
    if assignment.reports:
        channel.finished(assignment.generation, first, ticket)
    slot[CURSOR] = last
    return opening, last


def _mark_done(assignment: Assignment, first: int, failed: Iterable[int], last: int) -> None:
    """Mark the chunks of ``first <= t < last`` as done, except those of the failed tickets."""
    begin = first
    for stop in (*failed, last):
        if begin < stop:
            assignment.ledger.status[assignment.chunks(begin, stop)] = DONE
        begin = stop + 1


def _open_stores(assignment: Assignment, channel: Channel) -> float:
    """Open the stores of a run in its first claim; return the seconds.

    Why here: ``task_timeout`` and the blame for a death hold for the first chunk of the claim. A
    worker that comes too late for a claim opens nothing.
    """
    began = perf_counter()
    try:
        for one in (*assignment.arrays, *(assignment.outputs or ())):
            if isinstance(one, Store | StoreRows):
                one.open()
    except BaseException as error:  # Why: an opener is the user's code, as the function is.
        exit_if_forked(error)
        if isinstance(error, KeyboardInterrupt) and channel.interruptible:
            raise
        channel.reject(error)
        raise Abandoned from error
    return perf_counter() - began


def _report(assignment: Assignment, channel: Channel, chunk: int, error: BaseException) -> None:
    if assignment.plan.fail_fast:
        handed_out = assignment.tickets.stop(assignment.count)
        if assignment.handed_out is None:  # Why: a second stop counts the tickets of the first.
            assignment.handed_out = handed_out
    try:
        shape = assignment.block_shape(chunk + assignment.plan.base)
    except BaseException as again:  # Why: a sequence of the user may raise anything.
        if isinstance(again, KeyboardInterrupt) and channel.interruptible:
            raise
        shape = None
    # Invariant: the status says failed before the parent is told.
    assignment.ledger.status[chunk] = FAILED
    channel.failed(chunk + assignment.plan.base, error, shape)
