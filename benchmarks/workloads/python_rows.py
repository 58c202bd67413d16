"""Functions in pure Python for each row, which threads cannot run in parallel."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.workloads import Job, Point, Workload, logistic, near, rows, sizes

STEPS = {"python_rows": 2_000, "uneven_rows": 30}


def uneven(size: str) -> list[Point]:
    """Return both orders of rows; in a small run only the harder order."""
    chunks = {"smoke": 40, "quick": 1_000, "full": 2_000}[size]
    orders = ("clustered", "random") if size == "full" else ("clustered",)
    return [{"order": order, "chunks": chunks} for order in orders]


def job(name: str, point: Point) -> Job:
    """Make each row a chunk: a start value and a number of steps."""
    return Job(name, "rows", (logistic,), (point["chunks"], 2), (1, 2))


def fill(name: str, array: np.ndarray, point: Point) -> None:
    """Give rows the same number of steps; of uneven rows, a tenth has 500 times as many."""
    array[:, 0] = np.linspace(0.1, 0.9, len(array))
    array[:, 1] = STEPS[name]
    if name == "uneven_rows":
        array[-(len(array) // 10) :, 1] *= 500
        if point["order"] == "random":
            np.random.default_rng(5).shuffle(array[:, 1])


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare some rows with the same steps in this process."""
    near(answer[:3], np.array([logistic(row) for row in array[:3]]))
    near(answer[-3:], np.array([logistic(row) for row in array[-3:]]))


WORKLOADS = {
    "python_rows": Workload(
        "pure-Python function, 5,000 rows",
        sizes(rows, smoke=[20], quick=[1_000], full=[5_000]),
        partial(job, "python_rows"),
        partial(fill, "python_rows"),
        verify,
        rounds=30,
        seconds=6.0,
        restarts=3,
    ),
    "uneven_rows": Workload(
        "pure-Python rows, a tenth costs 500 times more",
        uneven,
        partial(job, "uneven_rows"),
        partial(fill, "uneven_rows"),
        verify,
        rounds=30,
        seconds=5.0,
    ),
}
