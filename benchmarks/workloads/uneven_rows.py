"""Rows with a 500-fold difference in cost: clustered at the end, or anywhere."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, logistic, near

STEPS = 30


def points(size: str) -> list[Point]:
    """Return both orders of rows; in a small run only the harder order."""
    chunks = {"smoke": 40, "quick": 1_000, "full": 2_000}[size]
    orders = ("clustered", "random") if size == "full" else ("clustered",)
    return [{"order": order, "chunks": chunks} for order in orders]


def job(point: Point) -> Job:
    """Make each row a chunk: a start value and a number of steps."""
    return Job("uneven_rows", "rows", (logistic,), (point["chunks"], 2), (1, 2))


def fill(array: np.ndarray, point: Point) -> None:
    """Give a tenth of all rows 500 times as many steps."""
    array[:, 0] = np.linspace(0.1, 0.9, len(array))
    array[:, 1] = STEPS
    array[-(len(array) // 10) :, 1] = 500 * STEPS
    if point["order"] == "random":
        np.random.default_rng(5).shuffle(array[:, 1])


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare some rows with the same steps in this process."""
    near(answer[:3], np.array([logistic(row) for row in array[:3]]))
    near(answer[-3:], np.array([logistic(row) for row in array[-3:]]))


WORKLOAD = Workload(
    "pure-Python rows, a tenth costs 500 times more",
    points,
    job,
    fill,
    verify,
    rounds=30,
    seconds=5.0,
)
