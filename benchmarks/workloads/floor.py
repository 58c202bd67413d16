"""The floor: a warm call with nothing to do."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, corner, near, pattern


def points(_: str) -> list[Point]:
    """Return the only point."""
    return [{"chunks": 2}]


def job(_: Point) -> Job:
    """Cut ten numbers into two chunks."""
    return Job("floor", "tiles", (corner,), (2, 5), (1, 5))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with the first column."""
    near(answer, array[:, 0])


WORKLOAD = Workload(
    "a warm call, two chunks that cost nothing",
    points,
    job,
    pattern,
    verify,
    ways=("same",),
    rounds=50,
)
