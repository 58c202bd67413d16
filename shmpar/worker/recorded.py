"""Around the computing of a chunk: what it has put into the outputs is recorded, and checked.

Imports checksum, pattern and plan, and the neighbours in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar import pattern
from shmpar.checksum import checksum
from shmpar.placement import ResultError
from shmpar.worker.assignment import Assignment

__all__ = ["recorded"]

Array = np.ndarray[Any, Any]
Compute = Callable[[int], None]


def recorded(assignment: Assignment, outputs: Sequence[Array], compute: Compute) -> Compute:
    """Note the checksum of what a chunk has put into the outputs, once it is there."""
    plan, sums = assignment.plan, assignment.sums
    if sums is None:
        return compute
    if plan.check:
        compute = _checked(assignment, outputs, compute)

    def record(chunk: int) -> None:
        compute(chunk)
        sums[chunk] = checksum(plan.windows(chunk, outputs))

    return record


def _checked(assignment: Assignment, outputs: Sequence[Array], compute: Compute) -> Compute:
    """Refuse a window that somebody has written before, and one that is not written whole."""
    plan, sums = assignment.plan, assignment.sums

    def check(chunk: int) -> None:
        windows = plan.windows(chunk, outputs)
        if sums is not None and sums[chunk]:
            raise ResultError("check=True: the chunk was computed before")
        if not all(pattern.left(window, pattern.FIRST).all() for window in windows):
            raise ResultError(
                "check=True: its window of the output was written before it was computed; the "
                "function, or another process, writes outside of its window"
            )
        compute(chunk)
        if plan.pass_out:
            _check_whole(windows, lambda: compute(chunk))

    return check


def _check_whole(windows: Sequence[Array], again: Callable[[], None]) -> None:
    """Raise `ResultError` if the function has not written all of its window.

    A value that looks like the pattern by chance is told from one that was never written by
    another pattern, and another call.
    """
    missing = [pattern.left(window, pattern.FIRST) for window in windows]
    if not any(one.any() for one in missing):
        return
    for window in windows:
        pattern.fill(window, pattern.SECOND)
    again()
    count = sum(
        int((one & pattern.left(window, pattern.SECOND)).sum())
        for one, window in zip(missing, windows, strict=True)
    )
    if count:
        raise ResultError(
            f"check=True: the function left {count:,} elements of its window unwritten"
        )
