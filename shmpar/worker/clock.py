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

    __slots__ = ("_assignment", "_chunks", "_count", "_each", "_mean", "_waited")

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._chunks: Any = None
        self._count = 1
        self._each = False
        self._mean = 0.0
        self._waited = assignment.waited

    def begin(self, compute: Compute, first: int, last: int, began: float) -> Compute:
        """Note a claim's begin; give the function that computes its chunks.

        Parameters
        ----------
        compute : callable
            What computes a chunk.
        first, last : int
            The claim's tickets, half-open.
        began : float
            When, by :func:`time.perf_counter`.
        """
        assignment = self._assignment
        self._count = last - first
        self._chunks = chunks = _chunks(assignment.todo, first, last)
        ledger = assignment.ledger
        ledger.note_claim(chunks, assignment.worker, began - assignment.origin)
        if not assignment.slot[JOINED]:
            assignment.slot[JOINED] = int((assignment.joined or began) * 1e9)
        self._each = self._count > 1 and self._mean >= SHORT_SECONDS
        return _each_timed(compute, ledger.seconds, began) if self._each else compute

    def end(self, seconds: float) -> None:
        """Note how long the claim has taken."""
        assignment = self._assignment
        if assignment.waited != self._waited:
            waited, self._waited = assignment.waited - self._waited, assignment.waited
            assignment.slot[WAITED] += int(waited * 1e9)
            seconds = seconds - waited
        self._mean = seconds / self._count
        if not self._each:
            assignment.ledger.seconds[self._chunks] = max(self._mean, _TINY)


def _chunks(todo: Any, first: int, last: int) -> Any:
    """The index of a claim's chunks."""
    if last - first == 1:
        return first if todo is None else todo[first]
    return slice(first, last) if todo is None else list(todo[first:last])


def _each_timed(compute: Compute, seconds: Any, began: float) -> Compute:
    """The same, but each chunk's duration is noted."""
    note, then = seconds.data, began

    def timed(chunk: int) -> None:
        nonlocal then
        try:
            compute(chunk)
        finally:
            now = perf_counter()
            note[chunk] = now - then
            then = now

    return timed
