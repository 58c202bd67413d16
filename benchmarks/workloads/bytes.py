"""Growth with the size of the array: sums of rows of a megabyte."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern, sum_rows

ROW = 125_000  # numbers: 1 MB
MEGABYTES = {"smoke": (1,), "quick": (2, 200), "full": (1, 10, 100, 1_000, 8_000)}


def points(size: str) -> list[Point]:
    """Return a point per size of the array; a size that exceeds the memory is left out later."""
    return [
        {"chunks": count, "gigabytes": round(count * 8e-9 * ROW, 6)} for count in MEGABYTES[size]
    ]


def job(point: Point) -> Job:
    """Make each row a chunk."""
    return Job("bytes", "rows", (np.sum,), (point["chunks"], ROW), (1, ROW), whole=sum_rows)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with NumPy at both ends."""
    near(answer[:2], sum_rows(array[:2]))
    near(answer[-2:], sum_rows(array[-2:]))


WORKLOAD = Workload(
    "1 MB to 8 GB, sums of rows of 1 MB",
    points,
    job,
    pattern,
    verify,
    systems=("ours", "ceiling", "private", "numba", "threads", "pool", "joblib", "dask_threads"),
    others="one of each kind, since a turn of 8 GB takes long",
    rounds=7,
    seconds=0.6,
)
