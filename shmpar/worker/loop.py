"""How long chunks take: a worker's notes of it in the ledger, for the report.

Imports the ledger, and assignment in this package.

Guarantees
----------
- Where chunks are short, the clock is read once a claim, and each chunk of it is noted with the
  mean; where they are long, it is read once a chunk, the end of one being the begin of the next.
- The time in which a worker waits for its outputs is no chunk's.

The loop of a worker: claim tickets, compute their chunks, say so in the ledger.

Imports the neighbours in this package and the ledger.

Guarantees
----------
- A chunk is computed only by the holder of its ticket, and marked after it was written.
- How many tickets a claim takes depends on the time of the chunks before (about a millisecond's
  work a claim) and never exceeds ``remaining / (4 x workers)``, so that uneven chunks balance.
- An exception of the function never ends the loop; the run decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns, perf_counter
from typing import Any

from shmpar.ipc.ledger import CURSOR, DONE, FAILED, FIRST, GENERATION, JOINED, LAST, SINCE, WAITED
from shmpar.plan import Failure
from shmpar.worker.compute import Abandoned, Assignment, Channel, Chunks, Stretch, block_shape
from shmpar.worker.context import end_offspring, entered

__all__ = ["SHORT_SECONDS", "Clock", "work"]

SHORT_SECONDS = 20e-6  # reading the clock and noting what it says takes 0.1 to 0.2 us
_TINY = 1e-9  # 0 would say that it is not known

Compute = Callable[[int], None]


class Clock:
    """Notes the times of one worker's chunks."""

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
        """A claim begins; give the function that computes its chunks.

        Parameters
        ----------
        compute : callable
            What computes a chunk.
        first, last : int
            The claim's tickets, half-open.
        now : float
            The time, by :func:`time.perf_counter`.
        """
        assignment, slot = self._assignment, self._assignment.slot
        self._began = began = max(0.0, now - assignment.origin)
        self._count = count = last - first
        if not slot[JOINED]:  # now, and not with the plan: who comes late writes nothing
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
        """The claim has taken so long."""
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
    """The same, but each chunk's duration is noted."""
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


CLAIM_SECONDS = 1e-3
_SHARE = 4  # a claim takes at most 1 / (4 x workers) of what remains


def work(chunks: Chunks, channel: Channel) -> bool:
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
    with entered():
        try:
            exhausted = _work(chunks, channel)
        except Abandoned:
            exhausted = True
        # Held no more: a later death of this worker blames no chunk. After an exception that ends
        # the worker the slot stays as it is, for what was finished to be known.
        chunks.assignment.slot[LAST] = 0
    return exhausted


def _work(chunks: Chunks, channel: Channel) -> bool:
    assignment = chunks.assignment
    chunks.begin(channel)
    claim, count, todo = assignment.tickets.claim, assignment.count, assignment.todo
    clock, size = Clock(assignment), 1
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
        assignment.spent += spent
        size = _next_size(size, spent / (last - first), count - last, assignment.workers)
        if assignment.most is not None:
            size = min(size, assignment.most - assignment.claimed)
        if size == 0 or channel.enough():
            return False
    return True


def _next_size(size: int, seconds: float, remaining: int, workers: int) -> int:
    """Tickets of the next claim; at most eight times the last one's."""
    wanted = int(CLAIM_SECONDS / max(seconds, 1e-9))  # a clock may have stood still
    return max(1, min(wanted, 8 * size, remaining // (_SHARE * workers)))


def _each(assignment: Assignment, compute: Callable[[int], None]) -> Stretch:
    """The loop over the chunks of tickets, with the cursor moved ahead of each."""
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
    # Empty, then filled, `last` at the end: see the ledger's guarantees.
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
        except BaseException as error:  # SystemExit of the function is its failure
            end_offspring(error)
            ticket = max(ticket, slot[CURSOR])  # it may have failed before it began
            if isinstance(error, KeyboardInterrupt) and channel.interruptible:
                raise
            failed.append(ticket)
            _report(assignment, channel, ticket, error)
            if assignment.plan.fail_fast:
                break
            ticket += 1
    end_offspring()
    if assignment.plan.returns_objects:
        channel.flush()
    _mark(assignment, channel, first, ticket, failed)
    slot[CURSOR] = last


def _report(assignment: Assignment, channel: Channel, ticket: int, error: BaseException) -> None:
    if assignment.plan.fail_fast:
        handed = assignment.tickets.stop(assignment.count)
        if assignment.handed is None:  # a second failure stops what is stopped
            assignment.handed = handed
    chunk = ticket if assignment.todo is None else assignment.todo[ticket]
    assignment.ledger.status[chunk] = FAILED
    channel.failed(Failure(chunk, error, block_shape(assignment, chunk)))


def _mark(
    assignment: Assignment, channel: Channel, first: int, end: int, failed: list[int]
) -> None:
    """Record the tickets ``first <= t < end`` as done, but for those that failed."""
    status, todo, begin = assignment.ledger.status, assignment.todo, first
    for stop in (*failed, end):
        if first < stop:
            status[slice(first, stop) if todo is None else list(todo[first:stop])] = DONE
        first = stop + 1
    if assignment.reports:
        channel.finished(assignment.generation, begin, end)
