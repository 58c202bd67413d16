"""Three maps, each over the result of the previous map."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern

SHAPE = {"smoke": (64, 50), "quick": (2_000, 2_500), "full": (4_000, 5_000)}


def halve(block: np.ndarray) -> np.ndarray:
    """Return the first map's result."""
    return block * 0.5 + 1


def root(block: np.ndarray) -> np.ndarray:
    """Return the second map's result."""
    return np.sqrt(block)


def wave(block: np.ndarray) -> np.ndarray:
    """Return the third map's result."""
    return block * block - 0.25 * block


def whole(array: np.ndarray) -> np.ndarray:
    """Compute all three maps in one expression."""
    return wave(root(halve(array)))


def points(size: str) -> list[Point]:
    """Return the only point."""
    rows, columns = SHAPE[size]
    return [{"shape": [rows, columns], "chunks": 32}]


def job(point: Point) -> Job:
    """Cut the array into bands of rows."""
    rows, columns = point["shape"]
    cut = (-(-rows // 32), columns)
    return Job("chain", "blocks", (halve, root, wave), (rows, columns), cut, whole=whole)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare some rows with NumPy."""
    near(answer[::37], whole(array[::37]))


WORKLOAD = Workload("a chain of three maps over 160 MB", points, job, pattern, verify, rounds=9)
