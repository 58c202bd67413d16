"""The floor: a warm call with nothing to do."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import corner
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern


def points(_: str) -> list[Point]:
    """One."""
    return [{"chunks": 2}]


def job(_: Point) -> Job:
    """Ten numbers in two chunks."""
    return Job("floor", "tiles", (corner,), (2, 5), (1, 5))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """The first column."""
    near(answer, array[:, 0])


THIS = Workload(
    "a warm call, two chunks that cost nothing",
    points,
    job,
    pattern,
    verify,
    ways=("same",),
    rounds=50,
)
