"""How long chunks take: a worker's notes of it in the ledger, for the report.

Imports the ledger, and assignment in this package.

Guarantees
----------
- Where chunks are short, the clock is read once a claim, and each chunk of it is noted with the
  mean; where they are long, it is read once a chunk, the end of one being the begin of the next.
- The time in which a worker waits for its outputs is no chunk's.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from shmpar.ledger import JOINED, WAITED
from shmpar.worker.assignment import Assignment

__all__ = ["SHORT_SECONDS", "Clock"]

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
