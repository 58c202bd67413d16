"""Mean and standard deviation of 100 x 100 tiles."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import mean_std
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

SIDE = {"smoke": 300, "quick": 4_000, "full": 10_000}


def points(size: str) -> list[Point]:
    """One."""
    side = SIDE[size]
    return [{"side": side, "chunks": (side // 100) ** 2, "gigabytes": side**2 * 8 / 1e9}]


def whole(array: np.ndarray) -> np.ndarray:
    """In two expressions, over an array of four axes."""
    side = len(array)
    grid = array.reshape(side // 100, 100, side // 100, 100)
    return np.stack([grid.mean(axis=(1, 3)), grid.std(axis=(1, 3))])


def job(point: Point) -> Job:
    """Two values a tile."""
    side = point["side"]
    return Job("tiles", "tiles", (mean_std,), (side, side), (100, 100), outputs=2, whole=whole)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """As NumPy's, on the first band of tiles and the last."""
    across = array.shape[1] // 100
    for band, part in ((array[:100], answer[:, :across]), (array[-100:], answer[:, -across:])):
        grid = band.reshape(100, across, 100)
        near(part, np.stack([grid.mean(axis=(0, 2)), grid.std(axis=(0, 2))]))


THIS = Workload(
    "mean and std of 10,000 tiles", points, job, pattern, verify, rounds=30, seconds=9, sittings=3
)
