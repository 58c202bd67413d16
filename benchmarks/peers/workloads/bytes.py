"""Growth with the size of the array: sums of rows of a megabyte."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.job import Job
from benchmarks.peers.workloads.tiny_rows import sums
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

ROW = 125_000  # numbers: 1 MB
MEGABYTES = {"smoke": (1,), "quick": (2, 200), "full": (1, 10, 100, 1_000, 8_000)}


def points(size: str) -> list[Point]:
    """Whole megabytes; what does not fit into memory is left out by whoever measures."""
    return [
        {"chunks": count, "gigabytes": round(count * 8e-9 * ROW, 6)} for count in MEGABYTES[size]
    ]


def job(point: Point) -> Job:
    """A row is a chunk."""
    return Job("bytes", "rows", (np.sum,), (point["chunks"], ROW), (1, ROW), whole=sums)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """As NumPy's, at both ends."""
    near(answer[:2], sums(array[:2]))
    near(answer[-2:], sums(array[-2:]))


THIS = Workload(
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
