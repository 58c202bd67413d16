"""The loop of a worker: claim tickets, compute their chunks, mark them in the ledger.

Guarantees
----------
- A chunk is computed only by the holder of its ticket, and marked after it was written.
- The tickets of a claim depend on the time of the chunks before (about a millisecond's work per
  claim) and never exceed ``remaining / (4 x workers)``, so that uneven chunks balance.
- An exception of the function never ends the loop; the run decides on its consequences.
- Where chunks are short, the clock is read once per claim, and each chunk of it is noted with the
  mean. Where they are long, it is read once per chunk: the end of a chunk begins the next.
- The time in which a worker waits for its outputs belongs to no chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns, perf_counter
from typing import Any

from shmpar.ipc.ledger import CURSOR, DONE, FAILED, FIRST, GENERATION, JOINED, LAST, SINCE, WAITED
from shmpar.worker.compute import Abandoned, Assignment, Channel, Chunks, Stretch, block_shape
from shmpar.worker.context import exit_if_forked, inside_worker

SHORT_SECONDS = 20e-6  # Why: reading the clock costs a shorter chunk a noticeable part.
CLAIM_SECONDS = 1e-3
_SHARE = 4  # a claim takes at most 1 / (4 x workers) of the remaining tickets
_TINY = 1e-9  # Why not 0: that means "not known" in the ledger.

Compute = Callable[[int], None]


class _Clock:
    """Notes the times of one worker's chunks in the ledger, for the report."""

    __slots__ = ("_assignment", "_began", "_chunks", "_count", "_each", "_mean", "_waited")

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._began = 0.0
        self._chunks: Any = None
        self._count = 1
        self._each = False
        self._mean = 0.0
        self._waited = assignment.waited

    def begin(self, compute: Compute, first: int, last: int, now: float) -> Compute:
        """Begin a claim; return the function that computes its chunks.

        Parameters
        ----------
        compute : callable
            Computes a chunk.
        first, last : int
            The claim's tickets, half-open.
        now : float
            The time, by :func:`time.perf_counter`.
        """
        assignment, slot = self._assignment, self._assignment.slot
        self._began = began = max(0.0, now - assignment.origin)
        self._count = count = last - first
        if not slot[JOINED]:  # Why here: a worker that comes late, without a claim, writes nothing.
            slot[JOINED] = int((assignment.joined or now) * 1e9)
        if count == 1:  # noted at its end, at once
            self._chunks = first if assignment.todo is None else assignment.todo[first]
            return compute
        ledger, todo = assignment.ledger, assignment.todo
        self._chunks = slice(first, last) if todo is None else list(todo[first:last])
        ledger.note_claim(self._chunks, assignment.worker, began)
        self._each = self._mean >= SHORT_SECONDS
        return _each_timed(compute, ledger.times.seconds, now) if self._each else compute

    def end(self, seconds: float) -> None:
        """End a claim that took so long."""
        assignment = self._assignment
        if assignment.waited != self._waited:
            waited, self._waited = assignment.waited - self._waited, assignment.waited
            assignment.slot[WAITED] += int(waited * 1e9)
            seconds = seconds - waited
        self._mean = mean = max(seconds / self._count, _TINY)
        if self._count == 1:
            assignment.ledger.note_chunk(self._chunks, assignment.worker, self._began, mean)
        elif not self._each:
            assignment.ledger.times.seconds[self._chunks] = mean


def _each_timed(compute: Compute, seconds: Any, began: float) -> Compute:
    """Wrap a function so that the duration of each chunk is noted."""
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
        Whether no tickets are left.

    Raises
    ------
    KeyboardInterrupt
        If the channel may be interrupted, and is; the chunk in progress is not marked.
    """
    with inside_worker():
        try:
            exhausted = _work(assignment, channel)
        except Abandoned:
            exhausted = True
        # Invariant: a worker that holds nothing is blamed for no chunk. After an exception that
        # ends the worker the slot stays, since it tells which chunks were finished.
        assignment.slot[LAST] = 0
    return exhausted


def _work(assignment: Assignment, channel: Channel) -> bool:
    chunks, clock, size = Chunks(assignment, channel), _Clock(assignment), 1
    claim, count, todo = assignment.tickets.claim, assignment.count, assignment.todo
    while (first := claim(size)) < count:
        last = min(first + size, count)
        assignment.claimed += last - first
        began = perf_counter()
        plain = chunks.claimed(range(first, last) if todo is None else todo[first:last])
        compute = clock.begin(plain, first, last, began)
        stretch = chunks.stretch if compute is plain else None
        _run_claim(assignment, channel, stretch or _each(assignment, compute), first, last)
        spent = perf_counter() - began
        clock.end(spent)
        size = _next_size(size, spent / (last - first), count - last, assignment.workers)
        if assignment.most is not None:
            size = min(size, assignment.most - assignment.claimed)
        if size == 0 or channel.enough():
            return False
    return True


def _next_size(size: int, seconds: float, remaining: int, workers: int) -> int:
    """Return the tickets of the next claim; at most eight times the last one's."""
    wanted = int(CLAIM_SECONDS / max(seconds, _TINY))  # Why max: the clock may stand still.
    return max(1, min(wanted, 8 * size, remaining // (_SHARE * workers)))


def _each(assignment: Assignment, compute: Compute) -> Stretch:
    """Return the loop over the chunks of tickets that moves the cursor ahead of each."""
    slot, todo, timed = assignment.slot, assignment.todo, assignment.plan.timed

    def each(first: int, last: int) -> None:
        for ticket in range(first, last):
            if timed:
                slot[SINCE] = monotonic_ns()
            slot[CURSOR] = ticket
            compute(ticket if todo is None else todo[ticket])

    return each


def _run_claim(
    assignment: Assignment, channel: Channel, stretch: Stretch, first: int, last: int
) -> None:
    slot = assignment.slot
    # Invariant: the slot is emptied before it is filled, and `last` is written at the end, so that
    # a worker killed in between holds its old claim, nothing, or its whole new claim.
    slot[LAST] = 0
    slot[GENERATION] = assignment.generation
    slot[FIRST] = slot[CURSOR] = first
    ticket, failed = first, []
    slot[SINCE] = monotonic_ns()
    slot[LAST] = last
    while ticket < last:
        try:
            stretch(ticket, last)
            ticket = last
        except Abandoned:
            raise
        except BaseException as error:  # Why: SystemExit of the function is its failure too.
            exit_if_forked(error)
            ticket = max(ticket, slot[CURSOR])  # it may have failed before it began
            if isinstance(error, KeyboardInterrupt) and channel.interruptible:
                raise
            failed.append(ticket)
            _report(assignment, channel, ticket, error)
            if assignment.plan.fail_fast:
                break
            ticket += 1
    exit_if_forked()
    if assignment.plan.returns_objects:
        channel.flush()
    _mark(assignment, channel, first, ticket, failed)
    slot[CURSOR] = last


def _report(assignment: Assignment, channel: Channel, ticket: int, error: BaseException) -> None:
    if assignment.plan.fail_fast:
        handed = assignment.tickets.stop(assignment.count)
        if assignment.handed is None:  # Why: a second stop counts the first one's tickets.
            assignment.handed = handed
    chunk = ticket if assignment.todo is None else assignment.todo[ticket]
    # Invariant: the status says failed before the parent is told.
    assignment.ledger.status[chunk] = FAILED
    channel.failed(chunk, error, block_shape(assignment, chunk))


def _mark(
    assignment: Assignment, channel: Channel, first: int, end: int, failed: list[int]
) -> None:
    """Mark the tickets ``first <= t < end`` as done, except those that failed."""
    status, todo, begin = assignment.ledger.status, assignment.todo, first
    for stop in (*failed, end):
        if first < stop:
            status[slice(first, stop) if todo is None else list(todo[first:stop])] = DONE
        first = stop + 1
    if assignment.reports:
        channel.finished(assignment.generation, begin, end)
