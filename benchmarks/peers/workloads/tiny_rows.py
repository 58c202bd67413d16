"""Many tiny rows: 20,000 of 16 numbers, np.sum of each."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern


def points(size: str) -> list[Point]:
    """One."""
    return [{"chunks": 200 if size == "smoke" else 20_000}]


def sums(array: np.ndarray) -> np.ndarray:
    """In one expression."""
    return array.sum(axis=1)


def job(point: Point) -> Job:
    """A row is a chunk."""
    return Job("tiny_rows", "rows", (np.sum,), (point["chunks"], 16), (1, 16), whole=sums)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """As NumPy's."""
    near(answer, sums(array))


THIS = Workload(
    "20,000 rows of 16 numbers, np.sum",
    points,
    job,
    pattern,
    verify,
    rounds=60,
    seconds=5.0,
    sittings=3,
    longest=60.0,
)
