"""Row sums of a large array: bound by the bandwidth of memory."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern, sum_rows

SIDE = {"smoke": 60, "quick": 4_000, "full": 10_000}


def points(size: str) -> list[Point]:
    """Return the only point."""
    return [{"chunks": SIDE[size], "gigabytes": SIDE[size] ** 2 * 8 / 1e9}]


def job(point: Point) -> Job:
    """Make each row, or each band of rows, a chunk."""
    side = point["chunks"]
    return Job("row_sums", "rows", (np.sum,), (side, side), (1, side), whole=sum_rows, banded=True)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with NumPy."""
    near(answer, sum_rows(array))


WORKLOAD = Workload(
    "row sums of 10,000 x 10,000, np.sum",
    points,
    job,
    pattern,
    verify,
    rounds=60,
    seconds=4.0,
    restarts=3,
)
