"""Many tiny rows: 20,000 of 16 numbers, np.sum of each."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern, sum_rows


def points(size: str) -> list[Point]:
    """Return the only point."""
    return [{"chunks": 200 if size == "smoke" else 20_000}]


def job(point: Point) -> Job:
    """Make each row a chunk."""
    return Job("tiny_rows", "rows", (np.sum,), (point["chunks"], 16), (1, 16), whole=sum_rows)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with NumPy."""
    near(answer, sum_rows(array))


WORKLOAD = Workload(
    "20,000 rows of 16 numbers, np.sum",
    points,
    job,
    pattern,
    verify,
    rounds=60,
    seconds=5.0,
    restarts=3,
    longest=60.0,
)
