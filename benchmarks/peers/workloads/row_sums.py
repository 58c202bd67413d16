"""Row sums of a large array: bound by the bandwidth of memory."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.job import Job
from benchmarks.peers.workloads.tiny_rows import sums
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

SIDE = {"smoke": 60, "quick": 4_000, "full": 10_000}


def points(size: str) -> list[Point]:
    """One."""
    return [{"chunks": SIDE[size], "gigabytes": SIDE[size] ** 2 * 8 / 1e9}]


def job(point: Point) -> Job:
    """A row is a chunk, or a band of rows is."""
    side = point["chunks"]
    return Job("row_sums", "rows", (np.sum,), (side, side), (1, side), whole=sums, banded=True)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """As NumPy's."""
    near(answer, sums(array))


THIS = Workload(
    "row sums of 10,000 x 10,000, np.sum",
    points,
    job,
    pattern,
    verify,
    rounds=60,
    seconds=4.0,
    sittings=3,
)
