"""A pure-Python function for each row, which threads cannot run in parallel."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, logistic, near

STEPS = 2_000


def points(size: str) -> list[Point]:
    """Return the only point."""
    return [{"chunks": {"smoke": 20, "quick": 1_000, "full": 5_000}[size]}]


def job(point: Point) -> Job:
    """Make each row a chunk: a start value and a number of steps."""
    return Job("python_rows", "rows", (logistic,), (point["chunks"], 2), (1, 2))


def fill(array: np.ndarray, _: Point) -> None:
    """Give all rows the same number of steps."""
    array[:, 0] = np.linspace(0.1, 0.9, len(array))
    array[:, 1] = STEPS


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare some rows with the same steps in this process."""
    near(answer[:3], np.array([logistic(row) for row in array[:3]]))
    near(answer[-3:], np.array([logistic(row) for row in array[-3:]]))


WORKLOAD = Workload(
    "pure-Python function, 5,000 rows",
    points,
    job,
    fill,
    verify,
    rounds=30,
    seconds=6.0,
    restarts=3,
)
