"""The chunks that took longest.

Imports plan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shmpar.plan import Plan
from shmpar.report.timings import Timings

__all__ = ["SlowChunk", "slowest"]


class SlowChunk(NamedTuple):
    """A chunk and how long it took.

    Attributes
    ----------
    chunk : int
        Its number.
    region : tuple of slice
        Where it lies in the array that was cut.
    seconds : float
        How long it took; the mean of its claim, where chunks are shorter than 20 us.
    worker : int
        Who computed it.
    """

    chunk: int
    region: tuple[slice, ...]
    seconds: float
    worker: int


def slowest(plan: Plan, timings: Timings, count: int) -> list[SlowChunk]:
    """The chunks that took longest, the longest first; equal ones in their order."""
    order = np.lexsort((timings.chunks, -timings.durations))[: max(count, 0)]
    return [
        SlowChunk(
            int(timings.chunks[place]),
            plan.region(int(timings.chunks[place])),
            float(timings.durations[place]),
            int(timings.workers[place]),
        )
        for place in order
    ]
