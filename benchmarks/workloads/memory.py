"""Peak memory: the proportional set size of all processes of a system during a call."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from benchmarks import systems
from benchmarks.workloads import Job, Point, Workload, gaussian, near, pattern

ROWS = 4_000
LARGE = {"side": 10_000, "chunks": 100, "dtype": "f8"}  # the larger image


def add_one(block: np.ndarray) -> np.ndarray:
    """Return an output as large as the input."""
    return block + 1


def points(size: str) -> list[Point]:
    """Return a plain map, and maps with a halo over a small image and a large image."""
    (halo,) = gaussian.points(size)
    if size != "full":
        return [{"verb": "halo", **halo}]
    return [
        {"verb": "map", "rows": ROWS, "chunks": 400},
        {"verb": "halo", **halo},
        {"verb": "halo", **LARGE},
    ]


def job(point: Point) -> Job:
    """Make the output as large as the input."""
    if point["verb"] == "halo":
        dtype, across = point.get("dtype", "f4"), math.isqrt(point["chunks"])
        cut = (-(-point["side"] // across),) * 2
        return replace(gaussian.job(point), chunks=cut, dtype=dtype, out_dtype=dtype)
    rows = point["rows"]
    return Job("memory", "blocks", (add_one,), (rows, 10_000), (-(-rows // 400), 10_000))


def verify(answer: np.ndarray, array: np.ndarray, point: Point) -> None:
    """Compare with the weighted mean of neighbours.

    SciPy would add its memory to systems that do not import it.
    """
    if point["verb"] != "halo":
        near(answer[::37], array[::37] + 1)
        return
    weights = np.exp(-(np.arange(-12, 13) ** 2) / (2 * 3.0**2))
    weights /= weights.sum()
    edge = point["side"] // math.isqrt(point["chunks"])
    for row, column in ((20, 20), (edge, edge), (edge - 1, 3 * edge + 5)):
        window = array[row - 12 : row + 13, column - 12 : column + 13]
        near(answer[row, column], weights @ window.astype("f8") @ weights)


WORKLOAD = Workload(
    "peak memory of a map and of a filter with halo",
    points,
    job,
    pattern,
    verify,
    systems=tuple(name for name in systems.NAMES if name not in {"ceiling", "private", "numba"}),
    others="are limits of time",
    how="memory",
    rounds=1,
)
