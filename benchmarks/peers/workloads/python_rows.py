"""A function in pure Python, a row each: what threads cannot do."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import logistic
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near

STEPS = 2_000


def points(size: str) -> list[Point]:
    """One."""
    return [{"chunks": {"smoke": 20, "quick": 1_000, "full": 5_000}[size]}]


def job(point: Point) -> Job:
    """Where to begin, and how many steps."""
    return Job("python_rows", "rows", (logistic,), (point["chunks"], 2), (1, 2))


def fill(array: np.ndarray, _: Point) -> None:
    """All rows take the same number of steps."""
    array[:, 0] = np.linspace(0.1, 0.9, len(array))
    array[:, 1] = STEPS


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Nothing but the same steps gives the same number."""
    near(answer[:3], np.array([logistic(row) for row in array[:3]]))
    near(answer[-3:], np.array([logistic(row) for row in array[-3:]]))


THIS = Workload(
    "pure-Python function, 5,000 rows",
    points,
    job,
    fill,
    verify,
    rounds=30,
    seconds=6.0,
    sittings=3,
)
