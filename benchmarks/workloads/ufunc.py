"""A ufunc in and out: bound by the bandwidth of memory, both ways."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern

SHAPE = {"smoke": (64, 50), "quick": (2_000, 5_000), "full": (5_000, 10_000)}


def points(size: str) -> list[Point]:
    """Return the only point."""
    rows, columns = SHAPE[size]
    return [{"shape": [rows, columns], "chunks": 32, "gigabytes": 2 * rows * columns * 8 / 1e9}]


def job(point: Point) -> Job:
    """Cut the array into bands of rows."""
    rows, columns = point["shape"]
    return Job("ufunc", "blocks", (np.sqrt,), (rows, columns), (-(-rows // 32), columns))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare some rows with NumPy."""
    near(answer[::37], np.sqrt(array[::37]))


WORKLOAD = Workload("np.sqrt of 400 MB, in and out", points, job, pattern, verify, rounds=9)
