"""Mean and standard deviation of 100 x 100 tiles."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern

SIDE = {"smoke": 300, "quick": 4_000, "full": 10_000}


def mean_std(tile: np.ndarray) -> tuple[float, float]:
    """Return two values of a tile."""
    return tile.mean(), tile.std()


def points(size: str) -> list[Point]:
    """Return the only point."""
    side = SIDE[size]
    return [{"side": side, "chunks": (side // 100) ** 2, "gigabytes": side**2 * 8 / 1e9}]


def whole(array: np.ndarray) -> np.ndarray:
    """Compute all tiles in two expressions over an array of four axes."""
    side = len(array)
    grid = array.reshape(side // 100, 100, side // 100, 100)
    return np.stack([grid.mean(axis=(1, 3)), grid.std(axis=(1, 3))])


def job(point: Point) -> Job:
    """Compute two values per tile."""
    side = point["side"]
    return Job("tiles", "tiles", (mean_std,), (side, side), (100, 100), outputs=2, whole=whole)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare the first and the last band of tiles with NumPy."""
    across = array.shape[1] // 100
    for band, part in ((array[:100], answer[:, :across]), (array[-100:], answer[:, -across:])):
        grid = band.reshape(100, across, 100)
        near(part, np.stack([grid.mean(axis=(0, 2)), grid.std(axis=(0, 2))]))


WORKLOAD = Workload(
    "mean and std of 10,000 tiles", points, job, pattern, verify, rounds=30, seconds=9, restarts=3
)
