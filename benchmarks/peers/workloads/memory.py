"""Peak memory: the proportional set size of all processes of a system, while it runs."""

from __future__ import annotations

import numpy as np

from benchmarks.peers import systems
from benchmarks.peers.functions import add_one
from benchmarks.peers.job import Job
from benchmarks.peers.workloads import gaussian
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

ROWS = {"smoke": 64, "quick": 1_000, "full": 4_000}


def points(size: str) -> list[Point]:
    """A plain map and one with a halo."""
    points = [
        {"verb": "map", "rows": ROWS[size], "chunks": 400},
        {"verb": "halo", **gaussian.points(size)[0]},
    ]
    return points if size == "full" else points[1:]


def job(point: Point) -> Job:
    """Output as large as the input."""
    if point["verb"] == "halo":
        return gaussian.job(point)
    rows = point["rows"]
    return Job("memory", "blocks", (add_one,), (rows, 10_000), (-(-rows // 400), 10_000))


def verify(answer: np.ndarray, array: np.ndarray, point: Point) -> None:
    """As NumPy's, here and there."""
    if point["verb"] == "halo":
        gaussian.verify(answer, array, point)
    else:
        near(answer[::37], array[::37] + 1)


THIS = Workload(
    "peak memory of a map and of a filter with halo",
    points,
    job,
    pattern,
    verify,
    systems=tuple(name for name in systems.NAMES if name not in {"ceiling", "private", "numba"}),
    how="memory",
    rounds=1,
)
