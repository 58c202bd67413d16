"""Three maps, each of what the one before gave."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import halve, root, wave
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

SHAPE = {"smoke": (64, 50), "quick": (2_000, 2_500), "full": (4_000, 5_000)}


def points(size: str) -> list[Point]:
    """One."""
    rows, columns = SHAPE[size]
    return [{"shape": [rows, columns], "chunks": 32}]


def whole(array: np.ndarray) -> np.ndarray:
    """In one expression."""
    return wave(root(halve(array)))


def job(point: Point) -> Job:
    """Bands of rows."""
    rows, columns = point["shape"]
    cut = (-(-rows // 32), columns)
    return Job("chain", "blocks", (halve, root, wave), (rows, columns), cut, whole=whole)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """As NumPy's, here and there."""
    near(answer[::37], whole(array[::37]))


THIS = Workload("a chain of three maps over 160 MB", points, job, pattern, verify, rounds=9)
