"""Rows whose cost differs 500-fold: clustered at the end, or anywhere."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import logistic
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near

STEPS = 30


def points(size: str) -> list[Point]:
    """Two; in a hurry the one that is harder."""
    chunks = {"smoke": 40, "quick": 1_000, "full": 2_000}[size]
    orders = ("clustered", "random") if size == "full" else ("clustered",)
    return [{"order": order, "chunks": chunks} for order in orders]


def job(point: Point) -> Job:
    """Where to begin, and how many steps."""
    return Job("uneven_rows", "rows", (logistic,), (point["chunks"], 2), (1, 2))


def fill(array: np.ndarray, point: Point) -> None:
    """A tenth of all rows takes 500 times as many steps."""
    array[:, 0] = np.linspace(0.1, 0.9, len(array))
    array[:, 1] = STEPS
    array[-(len(array) // 10) :, 1] = 500 * STEPS
    if point["order"] == "random":
        np.random.default_rng(5).shuffle(array[:, 1])


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Nothing but the same steps gives the same number."""
    near(answer[:3], np.array([logistic(row) for row in array[:3]]))
    near(answer[-3:], np.array([logistic(row) for row in array[-3:]]))


THIS = Workload(
    "pure-Python rows, a tenth costs 500 times more",
    points,
    job,
    fill,
    verify,
    rounds=30,
    seconds=5.0,
)
